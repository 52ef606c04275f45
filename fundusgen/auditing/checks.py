"""What no lower bound shows: how noise is distributed, who is sampled, and what is accounted.

A sampler that is not Poisson, or noise that comes again in every step, need not make the canaries
of one audit easier to find, but voids the proof that the claim rests on. Each check here is a
hypothesis test whose p-value is exact, or too large, for code that does what the claim assumes;
it fails below `ALARM`. A check for which there was nothing to look at has no p-value, and does not
hold either: nothing is vouched for that was not seen.

What they do not see: noise of two audits that is the same, and what a round does around its steps.

Axes: T releases, N directions of pure noise, P patients who took part.
"""

import math
from collections.abc import Iterator

import numpy as np
from scipy import stats

from fundusgen.auditing.canaries import Floats, Observation
from fundusgen.auditing.mechanisms import AuditedMechanism
from fundusgen.auditing.sampling_checks import (
    sampling_over_steps,
    sampling_patients,
    sampling_rate,
    sampling_sizes,
)
from fundusgen.auditing.verdicts import ALARM, Check, of_several, two_sided
from fundusgen.privacy.events import Event, beyond

__all__ = [
    "ALARM",
    "Check",
    "absence",
    "accounted",
    "all_checks",
    "contribution",
    "noise_over_directions",
    "noise_over_steps",
    "noise_shape",
    "noise_size",
    "noise_sizes",
    "sampling_over_steps",
    "sampling_patients",
    "sampling_rate",
    "sampling_sizes",
]


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
    if event.sample_rate < 1:
        yield absence(seen.own_TP[~seen.drawn_TP], event.noise_multiplier)
    yield noise_size(seen.noise_TN, event.noise_multiplier)
    if len(seen.noise_TN) > 1:
        yield noise_sizes(seen.noise_TN)
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
    claim = "a patient adds at most the bound to a release, however many images they have"
    if not own_K.size:
        return Check("contribution", claim, "nobody was sampled", math.nan)
    mean = float(own_K.mean())
    excess = (mean - 1) * np.sqrt(own_K.size) / noise_multiplier
    return Check(
        "contribution",
        claim,
        f"{mean:.3f} times the bound, on average",
        float(stats.norm.sf(excess)),
    )


def absence(own_K: Floats, noise_multiplier: float) -> Check:
    """Whether a patient adds nothing to a step that they were not sampled for: both ways.

    A gradient that is left over from an earlier step is in two steps, and costs as two.

    Args:
        own_K: Releases along the directions of patients who took part, but were not in them.
        noise_multiplier: As claimed.
    """
    claim = "a patient adds nothing to a release that they were not sampled for"
    if not own_K.size:
        return Check("absence", claim, "everybody was sampled", math.nan)
    mean = float(own_K.mean())
    excess = abs(mean) * np.sqrt(own_K.size) / noise_multiplier
    return Check(
        "absence",
        claim,
        f"{mean:.3f} times the bound, on average",
        float(2 * stats.norm.sf(excess)),
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
        two_sided(float(stats.chi2.cdf(squares, size)), float(stats.chi2.sf(squares, size))),
    )


def noise_sizes(noise_TN: Floats) -> Check:
    """Whether noise is of one size in all releases: each against those before it, exactly.

    Where a sum is divided by how many patients were in it, and not by a public number, the size of
    the noise tells how many there were. What the size is, is another check's business: the share of
    a release in the squares so far has a beta distribution, independent of all earlier shares.
    """
    releases, directions = noise_TN.shape
    squares_T = np.square(noise_TN).sum(axis=1)
    claim = "noise is of one size in all releases"
    # NaN fails the comparison too.
    if not squares_T[0] > 0:
        return Check("noise-sizes", claim, "there is no noise", math.nan)
    shares_S = squares_T[1:] / np.cumsum(squares_T)[1:]
    law = stats.beta(directions / 2, np.arange(1, releases) * directions / 2)
    # The nearer tail, so that neither is rounded to 1; the best that floats can tell from 0.
    tails_S = np.clip(np.minimum(law.cdf(shares_S), law.sf(shares_S)), 1e-300, 1)
    squares = float(np.square(stats.norm.ppf(tails_S)).sum())
    sizes_T = np.sqrt(squares_T / squares_T.mean())
    return Check(
        "noise-sizes",
        claim,
        f"from {sizes_T.min():.3f} to {sizes_T.max():.3f} times the mean",
        two_sided(
            float(stats.chi2.cdf(squares, releases - 1)),
            float(stats.chi2.sf(squares, releases - 1)),
        ),
    )


def noise_shape(noise_TN: Floats) -> Check:
    """Whether noise is Gaussian: Kolmogorov and Smirnov.

    Scaled by its own spread, so that size is another check's business; that makes p too large.
    """
    flat = noise_TN.ravel()
    if not flat.size:
        return Check("noise-shape", "noise is Gaussian", "nobody took no part", math.nan)
    spread = float(np.sqrt(np.square(flat).mean()))
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
        of_several(_correlation_p(worst, directions), len(alike)),
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
        of_several(_correlation_p(worst, first.size), 2),
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
        # One number is like any other.
        return math.nan
    if abs(correlation) >= 1:
        return 0.0
    t = abs(correlation) * np.sqrt((size - 1) / (1 - correlation**2))
    return float(2 * stats.t.sf(t, size - 1))
