"""Membership inference: how well a score tells who was in the training set, patient by patient.

The yardstick of all attacks: `generator_attacks` scores photographs by generated images,
`model_attacks` by all weights of a model. Whatever the attack, a score of every photograph becomes
one of every patient, since what a hospital owes is owed to patients. Needs to know who was in the
training set, so it runs at a site.

An AUC near 0.5 says that this attack failed, not that none will succeed: only the epsilon of the
ledger bounds all attacks. An AUC above 0.5 does say that something leaks, as long as it was
decided at random which patients were trained on: another camera among the members is found out,
too.

N, M images, P members, Q non-members, B replicates.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, mannwhitneyu

from fundusgen.evaluation.resampling import REPLICATES, Estimate, Floats, members, resampled

FALSE_POSITIVE_RATE = 0.01
# Of so many non-members, one is 1 %.
RESOLVED_FROM = 100
_CONFIDENCE = 0.95

# How the scores of a patient's photographs become one.
OverImages = Literal["max", "mean"]


@dataclass(frozen=True, eq=False)
class Attack:
    """What an attack achieves; patients are what is counted.

    Attributes:
        name: Of the attack.
        auc: Chance that a member scores above a non-member, ties by half; 0.5 is a guess.
        true_positive_rate: Share of members that are named while at most 1 % of non-members are.
        members: Number of patients P that were trained on.
        non_members: Number of patients Q that were not.
        p_value: Chance of such scores or higher ones of members, were they like non-members'
            (Mann-Whitney, one-sided).
        true_positive_upper: What the true-positive rate does not exceed, at 95 %: the greater of
            the bootstrap's bound and that of Clopper and Pearson for the members alone.
        caveat: What the figures cannot show; empty where there are patients enough.
    """

    name: str
    auc: Estimate
    true_positive_rate: Estimate
    members: int
    non_members: int
    p_value: float
    true_positive_upper: float
    caveat: str

    @property
    def auc_upper(self) -> float:
        """What the AUC does not exceed, at 95 % (one-sided)."""
        return _upper(self.auc)

    @property
    def succeeds(self) -> bool:
        """Whether members are told from others: all of the AUC's 95 % interval is above 0.5."""
        return self.auc.interval[0] > 0.5


def attack(
    name: str,
    member_scores_N: NDArray[np.floating],
    member_patients_N: Sequence[Hashable],
    other_scores_M: NDArray[np.floating],
    other_patients_M: Sequence[Hashable],
    rng: np.random.Generator,
    *,
    over_images: OverImages = "max",
    replicates: int = REPLICATES,
) -> Attack:
    """Judge an attack by the scores that it gives to photographs.

    Args:
        name: Of the attack.
        member_scores_N: Of photographs that were trained on; the higher, the more like a member.
        member_patients_N: Whose these are.
        other_scores_M: Of photographs of other patients, divided from the members at random.
        other_patients_M: Whose these are.
        rng: Resamples patients.
        over_images: How the scores of a patient's photographs become one: `max`, since a single
            photograph that was memorised gives the patient away; or `mean`, which is less noisy
            where all of them leak a little.
        replicates: Of the bootstrap.

    Raises:
        ValueError: Scores are not finite or not one a patient's photograph, or there are fewer
            than `LEAST_GROUPS` patients of a kind.
    """
    member_scores_P = patient_scores(member_scores_N, member_patients_N, over_images)
    other_scores_Q = patient_scores(other_scores_M, other_patients_M, over_images)
    member_weights_BP = resampled(len(member_scores_P), replicates, rng)
    other_weights_BQ = resampled(len(other_scores_Q), replicates, rng)
    ones_P, ones_Q = np.ones((1, len(member_scores_P))), np.ones((1, len(other_scores_Q)))
    auc = Estimate(
        float(aucs(member_scores_P, other_scores_Q, ones_P, ones_Q)[0]),
        aucs(member_scores_P, other_scores_Q, member_weights_BP, other_weights_BQ),
    )
    rate = Estimate(
        float(true_positive_rates(member_scores_P, other_scores_Q, ones_P, ones_Q)[0]),
        true_positive_rates(member_scores_P, other_scores_Q, member_weights_BP, other_weights_BQ),
    )
    return Attack(
        name,
        auc,
        rate,
        len(member_scores_P),
        len(other_scores_Q),
        _p_value(member_scores_P, other_scores_Q),
        max(_upper(rate), _clopper_pearson_upper(rate.value, len(member_scores_P))),
        _caveat(len(other_scores_Q)),
    )


def patient_scores(
    scores_N: NDArray[np.floating], patients_N: Sequence[Hashable], over_images: OverImages
) -> Floats:
    """Bring the scores of photographs to one of each patient, (P,), in order of first photographs.

    Raises:
        ValueError: A score is not finite, or there is not one patient for each.
    """
    if not np.isfinite(scores_N).all():
        raise ValueError("scores are not finite: such an attack cannot be judged")
    membership_PN = members(patients_N, len(scores_N))
    scores = np.asarray(scores_N, np.float64)
    if over_images == "mean":
        means_P: Floats = membership_PN @ scores / membership_PN.sum(axis=1)
        return means_P
    highest_P = np.full(membership_PN.shape[0], -np.inf)
    np.maximum.at(highest_P, membership_PN.tocsc().indices, scores)
    return highest_P


def aucs(
    member_scores_P: Floats,
    other_scores_Q: Floats,
    member_weights_BP: Floats,
    other_weights_BQ: Floats,
) -> Floats:
    """Area under the ROC curve, with each patient counted as often as weighed.

    Returns:
        (B,), the chance that a member scores above a non-member, plus half that of a tie.

    Source: Hanley and McNeil 1982, equation 1.
    """
    order_Q = np.argsort(other_scores_Q)
    below_BQ = np.cumsum(other_weights_BQ[:, order_Q], axis=1)
    below_BQ = np.concatenate([np.zeros((len(below_BQ), 1)), below_BQ], axis=1)
    lower_P = np.searchsorted(other_scores_Q[order_Q], member_scores_P, "left")
    upper_P = np.searchsorted(other_scores_Q[order_Q], member_scores_P, "right")
    beaten_BP = (below_BQ[:, lower_P] + below_BQ[:, upper_P]) / 2
    wins_B = (member_weights_BP * beaten_BP).sum(axis=1)
    aucs_B: Floats = wins_B / (member_weights_BP.sum(axis=1) * below_BQ[:, -1])
    return aucs_B


def true_positive_rates(
    member_scores_P: Floats,
    other_scores_Q: Floats,
    member_weights_BP: Floats,
    other_weights_BQ: Floats,
) -> Floats:
    """Share of members above the lowest threshold that at most 1 % of non-members are above.

    Not interpolated between thresholds: with fewer than `RESOLVED_FROM` non-members, it is the
    share of members above all of them.

    Returns:
        (B,), 0 to 1, with each patient counted as often as weighed.

    Source: Carlini et al. 2022, "Membership Inference Attacks From First Principles", section 3.
    """
    order_Q = np.argsort(-other_scores_Q)
    above_BQ = np.cumsum(other_weights_BQ[:, order_Q], axis=1)
    # Room for rounding: 1 of 100 is 1 %.
    too_many_BQ = above_BQ > FALSE_POSITIVE_RATE * above_BQ[:, -1:] + 1e-9
    thresholds_B = other_scores_Q[order_Q][too_many_BQ.argmax(axis=1)]
    named_BP = member_scores_P > thresholds_B[:, None]
    rates_B: Floats = (member_weights_BP * named_BP).sum(axis=1) / member_weights_BP.sum(axis=1)
    return rates_B


def _p_value(member_scores_P: Floats, other_scores_Q: Floats) -> float:
    together = np.concatenate([member_scores_P, other_scores_Q])
    if (together == together[0]).all():
        # All alike: ranks have no variance to divide by.
        return 1.0
    return float(mannwhitneyu(member_scores_P, other_scores_Q, alternative="greater").pvalue)


def _upper(estimate: Estimate) -> float:
    spread_B = estimate.replicates_B - estimate.replicates_B.mean()
    return min(1.0, estimate.value + float(np.quantile(spread_B, _CONFIDENCE)))


def _clopper_pearson_upper(rate: float, count: int) -> float:
    hits = round(rate * count)
    return 1.0 if hits == count else float(beta.ppf(_CONFIDENCE, hits + 1, count - hits))


def _caveat(non_members: int) -> str:
    if non_members >= RESOLVED_FROM:
        return ""
    return (
        f"{non_members} non-members cannot show a false-positive rate of 1 %: the true-positive "
        f"rate is that above all of them, and {RESOLVED_FROM} are needed to resolve it"
    )
