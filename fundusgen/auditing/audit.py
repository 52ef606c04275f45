"""An audit of one mechanism: what is claimed, what was found, and whether the two agree.

The last part of the pipeline of `auditing`. Bounds are shown at `CONFIDENCE`, as papers show them.
But where a claim is exact, one bound in twenty at that confidence lies above it by chance, and
an audit that cried so often would not be listened to. So a claim is called false only if a bound
at a confidence of one less `ALARM` lies above it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fundusgen.auditing.bounds import (
    clopper_pearson_bound,
    gaussian_bound,
    gaussian_scores_bound,
)
from fundusgen.auditing.canaries import Observation, coins, log_likelihood_ratio
from fundusgen.auditing.checks import ALARM, Check, all_checks
from fundusgen.auditing.mechanisms import AuditedMechanism, joined, observe
from fundusgen.auditing.one_run import correct_guesses, f_dp_bound, one_run_bound
from fundusgen.privacy.noise import NoiseSource

CONFIDENCE = 0.95
# A Gaussian bound below this share of the claim means that faults may have gone unseen.
SUFFICIENT_POWER = 0.6
# Share of canaries that one-run methods guess about: fixed beforehand, and near the best for
# claims of 2 to 10; on the rest they abstain.
_GUESSED = 0.3


@dataclass(frozen=True)
class Bound:
    """A lower bound on epsilon by one method.

    Attributes:
        method: Its name.
        source: Where it comes from.
        assumes: What it takes for granted of the mechanism, beyond fair coins.
        epsilon: The bound at `CONFIDENCE`.
        certain: The bound at a confidence of one less `ALARM`, by which the claim is judged.
    """

    method: str
    source: str
    assumes: str
    epsilon: float
    certain: float


@dataclass(frozen=True)
class MechanismAudit:
    """What an audit of one mechanism found.

    Attributes:
        mechanism: As claimed.
        canaries: How many there were.
        included: How many took part.
        runs: Over how many runs they were spread.
        delta: Of the claim and all bounds.
        claim: Epsilon by the accountant, of what the ledger holds after a run.
        bounds: By each method that applies.
        checks: Of what no bound shows.
    """

    mechanism: AuditedMechanism
    canaries: int
    included: int
    runs: int
    delta: float
    claim: float
    bounds: tuple[Bound, ...]
    checks: tuple[Check, ...]

    @property
    def exceeding(self) -> tuple[Bound, ...]:
        """The bounds that contradict the claim."""
        # NaN contradicts too.
        return tuple(bound for bound in self.bounds if not bound.certain <= self.claim)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that do not hold."""
        return tuple(check for check in self.checks if not check.holds)

    @property
    def holds(self) -> bool:
        """Whether nothing contradicts the claim."""
        return not self.exceeding and not self.failed

    @property
    def power(self) -> float:
        """The best Gaussian bound as a share of the claim; how much an audit can see."""
        best = max(bound.epsilon for bound in self.bounds if bound.method.startswith("Gaussian"))
        return best / self.claim if self.claim > 0 else 0.0

    @property
    def sufficient(self) -> bool:
        """Whether the audit could have seen a claim that is much too small."""
        return self.power >= SUFFICIENT_POWER


def audit_mechanism(
    mechanism: AuditedMechanism,
    noise: NoiseSource,
    rng: np.random.Generator,
    *,
    canaries: int,
    runs: int = 1,
    delta: float = 1e-5,
) -> MechanismAudit:
    """Run a mechanism on canaries and hold what it releases against its accountant's claim.

    Guarantee: of sound code, each bound is above the true epsilon with a probability of at most
        1 - `CONFIDENCE`, and each check or bound gives an alarm with one of at most `ALARM`,
        where what they assume is true. No patient is touched: all may be shown to anyone.
    Edge cases: a check that had nothing to look at, as no canary was in, or out, or sampled, does
        not hold. Of 20 canaries that befalls one audit in 500,000; of rare samples, many more.

    Args:
        mechanism: What to audit.
        noise: The randomness of the mechanism, as in production.
        rng: Source of the canaries' coins, then of how checks break ties, and of nothing that the
            mechanism draws.
        canaries: At least 2 a run; a thousand for claims of 8.
        runs: Independent runs over which they are spread.
        delta: At which epsilon is claimed and bounded, in (0, 1).

    Raises:
        ValueError: There are fewer than two canaries a run.
        PrivacyError: A number is out of range, or a step failed.
    """
    sizes = [len(part) for part in np.array_split(np.arange(canaries), runs)]
    seen = joined([observe(mechanism, coins(size, rng), noise, delta) for size in sizes])
    return MechanismAudit(
        mechanism,
        canaries,
        int(seen.included_M.sum()),
        runs,
        delta,
        seen.claim,
        all_bounds(mechanism, seen, delta),
        tuple(all_checks(mechanism, seen, rng)),
    )


def all_bounds(mechanism: AuditedMechanism, seen: Observation, delta: float) -> tuple[Bound, ...]:
    """Bound epsilon by every method that applies to a mechanism.

    Args:
        mechanism: As claimed.
        seen: What it did.
        delta: In (0, 1).
    """
    event, included_M = mechanism.event, seen.included_M
    noise, family = event.noise_multiplier, mechanism.family
    scores_M = log_likelihood_ratio(seen.released_TM, noise, event.sample_rate)
    sums_M = seen.released_TM.sum(axis=0)
    canaries = len(scores_M)
    guesses = round(_GUESSED * canaries)
    correct = correct_guesses(scores_M, included_M, guesses)

    def bound(method: str, source: str, assumes: str, at: Callable[[float], float]) -> Bound:
        return Bound(method, source, assumes, at(CONFIDENCE), at(1 - ALARM))

    bounds = [
        bound(
            "Clopper-Pearson",
            "Jagielski et al. 2020",
            "scores are independent",
            lambda confidence: clopper_pearson_bound(scores_M, included_M, delta, confidence),
        ),
        bound(
            "Gaussian, threshold",
            "Nasr et al. 2023",
            "scores are independent; noise is Gaussian, sampling and steps as claimed",
            lambda confidence: gaussian_bound(
                seen.released_TM,
                included_M,
                family,
                claimed_noise=noise,
                delta=delta,
                confidence=confidence,
            ),
        ),
        bound(
            "one run",
            "Steinke et al. 2023",
            "nothing",
            lambda confidence: one_run_bound(
                canaries=canaries,
                guesses=guesses,
                correct=correct,
                delta=delta,
                confidence=confidence,
            ),
        ),
        bound(
            "one run, f-DP",
            "Mahloujifar et al. 2024",
            "noise is Gaussian, sampling and steps as claimed",
            lambda confidence: f_dp_bound(
                family,
                claimed_noise=noise,
                canaries=canaries,
                guesses=guesses,
                correct=correct,
                delta=delta,
                confidence=confidence,
            ),
        ),
    ]
    if event.sample_rate == 1:
        scores = bound(
            "Gaussian, scores",
            "Andrew et al. 2023",
            "scores are independent and Gaussian",
            lambda confidence: gaussian_scores_bound(sums_M, included_M, delta, confidence),
        )
        bounds.insert(2, scores)
    return tuple(bounds)
