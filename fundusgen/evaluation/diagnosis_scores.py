"""How well a classifier diagnoses: scores with intervals, and differences between classifiers.

The measure of `usefulness`. All classifiers that are compared are tested on the same photographs,
and their replicates are the same resampled patients, number for number, so that differences have
intervals of their own, which are narrower than those of the two scores.

- AUC: the rank of the ill among the well, ties counted half (Hanley and McNeil 1982, Radiology
  143(1), "The meaning and use of the area under a receiver operating characteristic curve").
- Balanced accuracy: recall, averaged over the classes (Brodersen et al. 2010, ICPR, "The balanced
  accuracy and its posterior distribution").
- Quadratic kappa: agreement of grades beyond chance, a mistake counted by the square of its
  distance (Cohen 1968, Psychological Bulletin 70(4), "Weighted kappa").

N images, P patients, K classes, B replicates.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fundusgen.evaluation.resampling import (
    REPLICATES,
    Estimate,
    Floats,
    members,
    resampled,
)

ScoreName = Literal["auc", "balanced_accuracy", "quadratic_kappa"]
Verdict = Literal["helps", "harms", "cannot tell"]
RANGES: dict[ScoreName, tuple[float, float]] = {
    "auc": (0.0, 1.0),
    "balanced_accuracy": (0.0, 1.0),
    "quadratic_kappa": (-1.0, 1.0),
}
# A class of one patient is in 63 % of the replicates only, and says nothing of its spread.
LEAST_PATIENTS_OF_A_CLASS = 2


@dataclass(frozen=True, eq=False)
class Examination:
    """Labelled photographs to test on, and their patients drawn again.

    Attributes:
        labels_N: int64, the class of each photograph.
        classes: K.
        weights_BN: How often each photograph is drawn; of a patient, all or none are.
    """

    labels_N: NDArray[np.int64]
    classes: int
    weights_BN: Floats

    @classmethod
    def drawn(
        cls,
        labels_N: NDArray[np.int64],
        patients_N: Sequence[Hashable],
        classes: int,
        seed: int,
        replicates: int = REPLICATES,
    ) -> "Examination":
        """Draw the patients again, B times over.

        A replicate that lacks a class the photographs have is drawn anew: scores are undefined
        without it, or are of another thing. So intervals are given that every class is there,
        which matters only for a class of a handful of patients.

        Args:
            labels_N: The class of each photograph, 0 to K - 1. Classes of which there is no
                photograph count in no score.
            patients_N: The patient of each photograph.
            classes: K, at least 2.
            seed: With the same, the same patients are drawn.
            replicates: B.

        Raises:
            ValueError: Lengths differ, a label is out of range, there are fewer than two classes
                or `resampling.LEAST_GROUPS` patients, or a class has fewer than
                `LEAST_PATIENTS_OF_A_CLASS`.
        """
        owners_PN = members(patients_N, len(labels_N))
        has_PK = owners_PN @ _one_hot(labels_N, classes) > 0
        patients_K = has_PK.sum(axis=0)
        there_K = patients_K > 0
        if there_K.sum() < 2 or patients_K[there_K].min() < LEAST_PATIENTS_OF_A_CLASS:
            raise ValueError(
                f"classes of {patients_K.tolist()} patients to test on: two or more classes of at "
                f"least {LEAST_PATIENTS_OF_A_CLASS} patients each are needed"
            )
        rng = np.random.default_rng(seed)
        counts_BP = resampled(len(has_PK), replicates, rng)
        while True:
            lacking_B = ~((counts_BP @ has_PK[:, there_K]) > 0).all(axis=1)
            if not lacking_B.any():
                return cls(labels_N, classes, np.asarray(counts_BP @ owners_PN))
            counts_BP[lacking_B] = resampled(len(has_PK), int(lacking_B.sum()), rng)

    def score(self, name: ScoreName, probabilities_NK: NDArray[np.floating]) -> Estimate:
        """Score what a classifier says of the photographs.

        Its diagnosis is the class that it finds most probable, the first among equals.

        Args:
            name: The AUC is of the second class of two.
            probabilities_NK: The probability of each class.

        Raises:
            ValueError: The shape is another, a number is not finite, or the AUC of other than two
                classes is asked for.
        """
        expected = (len(self.labels_N), self.classes)
        if probabilities_NK.shape != expected or not np.isfinite(probabilities_NK).all():
            raise ValueError(
                f"probabilities {probabilities_NK.shape}: finite ones {expected} are needed"
            )
        # The photographs as they are come first, the replicates after them.
        weights_BN = np.concatenate([np.ones((1, len(self.labels_N))), self.weights_BN])
        if name == "auc":
            if self.classes != 2:
                raise ValueError(f"AUC is of two classes, not of {self.classes}")
            scores_B = auc(self.labels_N, probabilities_NK[:, 1], weights_BN)
        else:
            found_N = probabilities_NK.argmax(axis=1)
            counts_BKK = confusions(self.labels_N, found_N, self.classes, weights_BN)
            of_counts = balanced_accuracy if name == "balanced_accuracy" else quadratic_kappa
            scores_B = of_counts(counts_BKK)
        return Estimate(float(scores_B[0]), scores_B[1:])


def averaged(estimates: Sequence[Estimate], seed: int) -> Estimate:
    """Average a score over the seeds of training, with replicates that also resample the seeds.

    Replicate number b of every seed is of the same patients, so the average varies with them as
    the average of the scores would. K seeds drawn from K spread by (K - 1) / K too little, which
    for the two or three that one can afford is made up for. Of one seed, only the patients vary.

    Args:
        estimates: Of each seed, one or more, from one `Examination`.
        seed: Of the draws of seeds.
    """
    replicates_KB = np.stack([estimate.replicates_B for estimate in estimates])
    seeds = len(replicates_KB)
    drawn_KB = np.random.default_rng(seed).integers(seeds, size=replicates_KB.shape)
    mean_B = replicates_KB.mean(axis=0)
    deviation_B = np.take_along_axis(replicates_KB, drawn_KB, axis=0).mean(axis=0) - mean_B
    widened = np.sqrt(seeds / (seeds - 1)) if seeds > 1 else 1.0
    value = float(np.mean([estimate.value for estimate in estimates]))
    return Estimate(value, mean_B + widened * deviation_B)


def difference(ones: Sequence[Estimate], others: Sequence[Estimate], seed: int) -> Estimate:
    """Average the difference of two scores, seed by seed and patient by patient.

    Args:
        ones: Of each seed.
        others: What is subtracted: of the same seeds, in the same order, of the same
            `Examination`.
        seed: As in `averaged`.

    Raises:
        ValueError: There are not as many of the one as of the other.
    """
    return averaged(
        [
            Estimate(one.value - other.value, one.replicates_B - other.replicates_B)
            for one, other in zip(ones, others, strict=True)
        ],
        seed,
    )


def verdict(change: Estimate) -> Verdict:
    """Say whether a change is above zero, below it, or not told apart from it at 95 %.

    Of forty changes that are none, about one is called `helps` and one `harms` by chance.
    """
    low, high = change.interval
    return "helps" if low > 0 else "harms" if high < 0 else "cannot tell"


def auc(labels_N: NDArray[np.int64], scores_N: NDArray[np.floating], weights_BN: Floats) -> Floats:
    """Compute the chance that an ill one scores above a well one, ties counted half.

    Args:
        labels_N: 1 for ill, 0 for well.
        scores_N: Higher for what is rather ill.
        weights_BN: How often each counts; the total of either class is above zero.

    Returns:
        (B,), 0 to 1. Source: Hanley and McNeil 1982, the trapezoidal area.
    """
    order_N = np.argsort(scores_N, kind="stable")
    ordered_N = scores_N[order_N]
    starts = np.flatnonzero(np.concatenate([[True], ordered_N[1:] != ordered_N[:-1]]))
    ordered_BN, ill_N = weights_BN[:, order_N], labels_N[order_N] == 1
    # Sums over what scores the same, in rising order.
    ill_BN = np.add.reduceat(ordered_BN * ill_N, starts, axis=1)
    well_BN = np.add.reduceat(ordered_BN * ~ill_N, starts, axis=1)
    below_BN = np.cumsum(well_BN, axis=1) - well_BN / 2
    won_B = (ill_BN * below_BN).sum(axis=1)
    area_B: Floats = won_B / (ill_BN.sum(axis=1) * well_BN.sum(axis=1))
    return area_B


def confusions(
    labels_N: NDArray[np.int64], found_N: NDArray[np.int64], classes: int, weights_BN: Floats
) -> Floats:
    """Count (B, K, K) how often each class, by row, was found to be each, by column."""
    pairs_NK = _one_hot(labels_N * classes + found_N, classes**2)
    return (weights_BN @ pairs_NK).reshape(len(weights_BN), classes, classes)


def balanced_accuracy(counts_BKK: Floats) -> Floats:
    """Average the recall over the classes that there are; (B,), 0 to 1. Brodersen et al. 2010."""
    of_class_BK = counts_BKK.sum(axis=2)
    right_BK = np.diagonal(counts_BKK, axis1=1, axis2=2)
    recall_BK = np.divide(right_BK, of_class_BK, out=np.zeros_like(right_BK), where=of_class_BK > 0)
    mean_B: Floats = recall_BK.sum(axis=1) / (of_class_BK > 0).sum(axis=1)
    return mean_B


def quadratic_kappa(counts_BKK: Floats) -> Floats:
    """Compute kappa with quadratic weights; (B,), -1 to 1, 0 for agreement by chance.

    One less the ratio of the weighted disagreement to that of independent raters with the same
    margins (Cohen 1968). It is defined wherever the photographs are of two classes or more.
    """
    grades_K = np.arange(counts_BKK.shape[1])
    penalty_KK = np.subtract.outer(grades_K, grades_K) ** 2
    margins_BKK = counts_BKK.sum(axis=2)[:, :, None] * counts_BKK.sum(axis=1)[:, None, :]
    observed_B = (counts_BKK * penalty_KK).sum(axis=(1, 2))
    by_chance_B = (margins_BKK * penalty_KK).sum(axis=(1, 2)) / counts_BKK.sum(axis=(1, 2))
    kappa_B: Floats = 1 - observed_B / by_chance_B
    return kappa_B


def _one_hot(labels_N: NDArray[np.int64], classes: int) -> Floats:
    if len(labels_N) and not 0 <= labels_N.min() <= labels_N.max() < classes:
        raise ValueError(f"labels are 0 to {classes - 1}, not {labels_N.min()} to {labels_N.max()}")
    return np.eye(classes)[labels_N]
