"""What no lower bound shows: how noise is distributed, who is sampled, and what is accounted.

A sampler that is not Poisson, or noise that comes again in every step, need not make the canaries
of one audit easier to find, but voids the proof that the claim rests on. Each check here is a
hypothesis test whose p-value is exact, or too large, for code that does what the claim assumes;
it fails below `ALARM`.

Axes: T releases, N directions of pure noise, P patients who took part.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fundusgen.auditing.canaries import Booleans, Floats, Observation
from fundusgen.auditing.mechanisms import AuditedMechanism
from fundusgen.privacy.events import Event, beyond

# Probability of each false alarm: an audit makes some forty tests, so 4 in 10,000 sound ones err.
ALARM = 1e-5


@dataclass(frozen=True)
class Check:
    """One property of a mechanism, and whether it was seen to hold.

    Attributes:
        code: Its name, for programs.
        claim: What should hold.
        found: What was seen, with its figure.
        p_value: Probability of what was seen, or worse, if the claim holds.
    """

    code: str
    claim: str
    found: str
    p_value: float

    @property
    def holds(self) -> bool:
        """Whether what was seen is no reason for alarm."""
        # NaN, of a release that is not finite, fails the comparison and the check.
        return self.p_value >= ALARM


def all_checks(
    mechanism: AuditedMechanism, seen: Observation, rng: np.random.Generator
) -> Iterator[Check]:
    """Run every check that applies to a mechanism.

    Args:
        mechanism: As claimed.
        seen: What it did.
        rng: Breaks ties of counts, so that their p-values are exact.
    """
    event = mechanism.event
    yield accounted(mechanism.planned, len(seen.released_TM), seen.counted)
    yield contribution(seen.own_TP[seen.drawn_TP], event.noise_multiplier)
    yield noise_size(seen.noise_TN, event.noise_multiplier)
    yield noise_shape(seen.noise_TN)
    if len(seen.noise_TN) > 1:
        yield noise_over_steps(seen.noise_TN)
    yield noise_over_directions(seen.noise_TN)
    if mechanism.stage == "dpsgd":
        yield sampling_rate(seen.drawn_TP, event.sample_rate)
        if event.sample_rate < 1:
            yield sampling_sizes(seen.drawn_TP, event.sample_rate, rng)
            yield sampling_patients(seen.drawn_TP, event.sample_rate, rng)
        if event.sample_rate < 1 and len(seen.drawn_TP) > 1:
            yield sampling_over_steps(seen.drawn_TP, event.sample_rate)


def accounted(planned: Event, releases: int, counted: tuple[Event, ...]) -> Check:
    """Whether the ledger holds every step that was taken."""
    taken = Event(planned.kind, planned.noise_multiplier, planned.sample_rate, releases)
    missing = sum(event.steps for event in beyond([taken], counted))
    return Check(
        "accounting",
        "the accountant counts every release of every round",
        f"{releases - missing} of {releases} releases are counted",
        1.0 if not missing else 0.0,
    )


def contribution(own_K: Floats, noise_multiplier: float) -> Check:
    """Whether a patient adds no more than the bound, on average over those who were sampled.

    Canaries ask for ten times the bound. What each adds is 1 at most, and Gaussian noise.

    Args:
        own_K: Releases along the directions of patients who were in them.
        noise_multiplier: As claimed.
    """
    mean = float(own_K.mean()) if own_K.size else 0.0
    excess = (mean - 1) * np.sqrt(max(1, own_K.size)) / noise_multiplier
    return Check(
        "contribution",
        "a patient adds at most the bound to a release, however many images they have",
        f"{mean:.3f} times the bound, on average",
        float(stats.norm.sf(excess)),
    )


def noise_size(noise_TN: Floats, noise_multiplier: float) -> Check:
    """Whether noise has the variance that is claimed: chi-square, both ways."""
    squares = float(np.square(noise_TN / noise_multiplier).sum())
    size = noise_TN.size
    share = np.sqrt(squares / size) if size else 0.0
    return Check(
        "noise-size",
        f"noise has a standard deviation of {noise_multiplier:g} times the bound",
        f"{share * noise_multiplier:.4g} times the bound, {100 * share:.1f}% of what is claimed",
        _two_sided(float(stats.chi2.cdf(squares, size)), float(stats.chi2.sf(squares, size))),
    )


def noise_shape(noise_TN: Floats) -> Check:
    """Whether noise is Gaussian: Kolmogorov and Smirnov.

    Scaled by its own spread, so that size is another check's business; that makes p too large.
    """
    flat = noise_TN.ravel()
    spread = float(np.sqrt(np.square(flat).mean())) if flat.size else 0.0
    if spread == 0.0:
        return Check("noise-shape", "noise is Gaussian", "there is no noise", 0.0)
    test = stats.kstest(flat / spread, "norm")
    return Check(
        "noise-shape",
        "noise is Gaussian",
        f"its distribution function is within {test.statistic:.4f} of the Gaussian's",
        float(test.pvalue),
    )


def noise_over_steps(noise_TN: Floats) -> Check:
    """Whether noise is drawn afresh in each release: the most alike two, among all pairs."""
    releases, directions = noise_TN.shape
    alike_TT = _correlations(noise_TN)
    alike = alike_TT[np.triu_indices(releases, 1)]
    worst = float(np.abs(alike).max())
    return Check(
        "noise-over-steps",
        "noise of one release says nothing of that of another",
        f"correlation of the two most alike releases: {worst:.3f}",
        _of_several(_correlation_p(worst, directions), len(alike)),
    )


def noise_over_directions(noise_TN: Floats) -> Check:
    """Whether noise is drawn afresh along each direction: neighbours, and the two halves."""
    half = noise_TN.shape[1] // 2
    first, second = noise_TN[:, : 2 * half : 2], noise_TN[:, 1 : 2 * half : 2]
    neighbours = _correlation(first.ravel(), second.ravel())
    halves = _correlation(noise_TN[:, :half].ravel(), noise_TN[:, half : 2 * half].ravel())
    worst = max(abs(neighbours), abs(halves))
    return Check(
        "noise-over-directions",
        "noise along one direction says nothing of that along another",
        f"correlation of neighbours {neighbours:.3f}, of the two halves {halves:.3f}",
        _of_several(_correlation_p(worst, first.size), 2),
    )


def sampling_rate(drawn_TP: Booleans, sample_rate: float) -> Check:
    """Whether patients are sampled as often as claimed: exact binomial."""
    drawn, chances = int(drawn_TP.sum()), drawn_TP.size
    p = 1.0 if not chances else float(stats.binomtest(drawn, chances, sample_rate).pvalue)
    return Check(
        "sampling-rate",
        f"each patient enters a step with probability {sample_rate:g}",
        f"{drawn / max(1, chances):.4f} of all chances were taken",
        p,
    )


def sampling_sizes(drawn_TP: Booleans, sample_rate: float, rng: np.random.Generator) -> Check:
    """Whether the sizes of samples vary as those of Poisson samples do.

    Batches of a fixed size vary too little, patients who come in groups make them vary too much.
    """
    sizes_T = drawn_TP.sum(axis=1)
    return Check(
        "sampling-sizes",
        "the size of a sample varies as that of a Poisson sample",
        f"standard deviation {sizes_T.std():.2f}, where "
        f"{np.sqrt(drawn_TP.shape[1] * sample_rate * (1 - sample_rate)):.2f} is expected",
        _dispersion_p(sizes_T, drawn_TP.shape[1], sample_rate, rng),
    )


def sampling_patients(drawn_TP: Booleans, sample_rate: float, rng: np.random.Generator) -> Check:
    """Whether patients are in as many samples as chance has it.

    Shuffling deals each of them equally many, and a sample that is drawn once and used again
    makes some come always and some never.
    """
    counts_P = drawn_TP.sum(axis=0)
    return Check(
        "sampling-patients",
        "how often a patient is sampled varies as independent draws do",
        f"standard deviation {counts_P.std():.2f}, where "
        f"{np.sqrt(len(drawn_TP) * sample_rate * (1 - sample_rate)):.2f} is expected",
        _dispersion_p(counts_P, len(drawn_TP), sample_rate, rng),
    )


def sampling_over_steps(drawn_TP: Booleans, sample_rate: float) -> Check:
    """Whether two samples share as many patients as chance has it, the strangest of all pairs."""
    drawn = drawn_TP.astype(np.float64)
    pairs = np.triu_indices(len(drawn), 1)
    shared = (drawn @ drawn.T)[pairs]
    patients, both = drawn.shape[1], sample_rate**2
    p = min(
        _two_sided(
            float(stats.binom.cdf(count, patients, both)),
            float(stats.binom.sf(count - 1, patients, both)),
        )
        for count in (shared.min(), shared.max())
    )
    return Check(
        "sampling-over-steps",
        "two samples have no more and no fewer patients in common than chance has it",
        f"{shared.min():.0f} to {shared.max():.0f}, where about {patients * both:.0f} are expected",
        _of_several(p, len(shared)),
    )


def _two_sided(below: float, above: float) -> float:
    return _of_several(float(np.minimum(below, above)), 2)


def _of_several(p_value: float, tests: int) -> float:
    """The p-value of the least of several; not a number where that is none."""
    return float(np.minimum(1.0, tests * p_value))


def _dispersion_p(
    counts: NDArray[np.int64], trials: int, rate: float, rng: np.random.Generator
) -> float:
    """Exact p-value of the spread of binomial counts about what is claimed, both ways.

    A count is spread evenly over the probability that it has, and so becomes an exact Gaussian.
    """
    if not counts.size:
        return 1.0
    below = stats.binom.cdf(counts - 1, trials, rate)
    uniform = below + rng.random(counts.shape) * stats.binom.pmf(counts, trials, rate)
    # The best that floats can tell from 0 and 1.
    gaussian = stats.norm.ppf(np.clip(uniform, 1e-16, 1 - 1e-16))
    squares = float(np.square(gaussian).sum())
    return _two_sided(
        float(stats.chi2.cdf(squares, counts.size)), float(stats.chi2.sf(squares, counts.size))
    )


def _correlations(rows_TN: Floats) -> Floats:
    """Correlations of rows whose mean is known to be zero; rows of zeros are like all others."""
    norms_T = np.sqrt(np.square(rows_TN).sum(axis=1))
    alike_TT: Floats = rows_TN @ rows_TN.T
    with np.errstate(invalid="ignore", divide="ignore"):
        alike_TT = alike_TT / np.outer(norms_T, norms_T)
    return np.nan_to_num(alike_TT, nan=1.0)


def _correlation(one: Floats, other: Floats) -> float:
    """Correlation of two rows whose mean is known to be zero; rows of zeros are alike."""
    norm = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / norm if norm else 1.0


def _correlation_p(correlation: float, size: int) -> float:
    """Two-sided p-value of an uncentred correlation of Gaussians: exact, Student's t."""
    if size < 2:
        return 1.0
    if abs(correlation) >= 1:
        return 0.0
    t = abs(correlation) * np.sqrt((size - 1) / (1 - correlation**2))
    return float(2 * stats.t.sf(t, size - 1))
