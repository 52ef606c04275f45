"""Who is sampled: whether samples of patients are Poisson samples, as the claim assumes.

Axes: T releases, P patients who took part.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fundusgen.auditing.canaries import Booleans
from fundusgen.auditing.verdicts import Check, of_several, two_sided


def sampling_rate(drawn_TP: Booleans, sample_rate: float) -> Check:
    """Whether patients are sampled as often as claimed: exact binomial."""
    drawn, chances = int(drawn_TP.sum()), drawn_TP.size
    p = float(stats.binomtest(drawn, chances, sample_rate).pvalue) if chances else math.nan
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
        f"standard deviation {_deviation(sizes_T):.2f}, where "
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
        f"standard deviation {_deviation(counts_P):.2f}, where "
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
        two_sided(
            float(stats.binom.cdf(count, patients, both)),
            float(stats.binom.sf(count - 1, patients, both)),
        )
        for count in (shared.min(), shared.max())
    )
    # Of nobody, any two samples have nobody in common.
    p = p if patients else math.nan
    return Check(
        "sampling-over-steps",
        "two samples have no more and no fewer patients in common than chance has it",
        f"{shared.min():.0f} to {shared.max():.0f}, where about {patients * both:.0f} are expected",
        of_several(p, len(shared)),
    )


def _dispersion_p(
    counts: NDArray[np.int64], trials: int, rate: float, rng: np.random.Generator
) -> float:
    """Exact p-value of the spread of binomial counts about what is claimed, both ways.

    A count is spread evenly over the probability that it has, and so becomes an exact Gaussian.
    """
    if not counts.size or not trials:
        return math.nan
    below = stats.binom.cdf(counts - 1, trials, rate)
    uniform = below + rng.random(counts.shape) * stats.binom.pmf(counts, trials, rate)
    # The best that floats can tell from 0 and 1.
    gaussian = stats.norm.ppf(np.clip(uniform, 1e-16, 1 - 1e-16))
    squares = float(np.square(gaussian).sum())
    return two_sided(
        float(stats.chi2.cdf(squares, counts.size)), float(stats.chi2.sf(squares, counts.size))
    )


def _deviation(counts: NDArray[np.int64]) -> float:
    return float(counts.std()) if counts.size else math.nan
