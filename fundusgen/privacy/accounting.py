"""From events to epsilon, and from a target epsilon to the noise.

What a site has spent is one number: the epsilon, at the site's delta, of all mechanisms in its
ledger composed. This module gives it as an upper bound, and finds before the first step of a
study how much noise keeps the site within a target. Epsilons are never added up or averaged:
events are composed. Unit: the patient; neighbours: one patient added or removed with all images.

Sources: Gopi, Lee & Wutschitz 2021 (PRV, by Opacus), Koskela et al. 2020 and Google's
`dp-accounting` (PLD), Mironov, Talwar & Zhang 2019 (RDP), Balle & Wang 2018 (Gaussian).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from scipy.optimize import brentq

from fundusgen.errors import AccountingError
from fundusgen.privacy.composition import (
    Composition,
    coarsened,
    compose,
    full_batch_mu,
    require_delta,
)
from fundusgen.privacy.events import Event
from fundusgen.privacy.gaussian_bounds import gaussian_epsilon, step_epsilon
from fundusgen.privacy.prv import prv_epsilon
from fundusgen.privacy.renyi import rdp_epsilon

# Each further mechanism costs one more convolution; beyond this the history is coarsened, upwards.
MAX_MECHANISMS = 16
# Noise outside this range is not proposed: less is no privacy, more is no learning.
NOISE_RANGE = (0.05, 1e4)
# The calibrated noise is at most this share above the smallest that would do.
NOISE_TOLERANCE = 2e-3


def epsilon(events: Iterable[Event], delta: float) -> float:
    """Give the total epsilon of all events, composed: an upper bound.

    Guarantee: the composition of the events, each mechanism chosen with all earlier outputs
    known, but the noise, rates and steps of the events not chosen by them, is (epsilon, delta)-DP
    for adding or removing one patient. (Where they were chosen in view of outputs, a cap on this
    value is no proven protection: see `privacy_filter`.) The value is the smallest of three upper
    bounds: PRV (estimate plus its error; the larger of both directions), RDP, and the exact
    Gaussian with every patient in every step. The PRV's error is 0.2% of epsilon, at least 0.0002
    and at most 0.01; larger (up to 0.25) only where its grid would not fit into memory, for an
    epsilon far above any budget. Where PRV cannot be computed soundly, the other two stand.
    Edge cases: no events, or none with steps, cost 0.0. Plain Gaussians alone are exact. For PRV,
    more than `MAX_MECHANISMS` distinct pairs of noise and sample rate are rounded to fewer,
    towards less privacy. Never negative, NaN or infinite.

    Args:
        events: The history; equal pairs of noise and rate are merged, so long studies are cheap.
        delta: In (0, 1); well below one over the number of patients to mean anything.

    Raises:
        AccountingError: delta is outside (0, 1).
    """
    require_delta(delta)
    return _epsilon(compose(events), float(delta))


def epsilon_prv(events: Iterable[Event], delta: float) -> float | None:
    """Give the total epsilon by PRV alone, where it can be computed soundly.

    Guarantee: an upper bound: estimate plus error, the larger of both directions; of a history
    with more than `MAX_MECHANISMS` different mechanisms, of one rounded towards less privacy.
    Edge cases: None for a history of plain Gaussians alone, which needs no PRV, and where the
    numbers leave what PRV can compute (`prv_epsilon`).

    Raises:
        AccountingError: delta is outside (0, 1).
    """
    require_delta(delta)
    composition = compose(events)
    return _prv(composition, float(delta)) if composition.subsampled else None


def is_coarsened(events: Iterable[Event]) -> bool:
    """Say whether PRV and PLD round this history to fewer mechanisms, towards less privacy.

    Guarantee: false only if both compose every mechanism as it is.
    Edge cases: plain Gaussians are merged exactly and do not count.
    """
    return len(compose(events).subsampled) > MAX_MECHANISMS


def epsilon_rdp(events: Iterable[Event], delta: float) -> float:
    """Give the total epsilon by Renyi DP alone: the looser upper check.

    Guarantee: an upper bound, independent of PRV and PLD; usually 7 to 15% above them.
    Edge cases: 0.0 without steps. For noise below 0.1 as if every patient were in every step.

    Raises:
        AccountingError: delta is outside (0, 1).
    """
    require_delta(delta)
    composition = compose(events)
    return rdp_epsilon(composition, delta) if composition.costs else 0.0


def epsilon_pld(events: Iterable[Event], delta: float) -> float:
    """Give the total epsilon by Google's `dp-accounting`: the independent second opinion.

    Guarantee: the pessimistic estimate of the privacy loss distribution, adding or removing one
    patient, discretised at 1e-4; more coarsely, still an upper bound, for an epsilon above 50.
    Edge cases: 0.0 without steps.

    Raises:
        AccountingError: delta is outside (0, 1).
    """
    require_delta(delta)
    composition = coarsened(compose(events), MAX_MECHANISMS)
    return _pld(composition, float(delta)) if composition.costs else 0.0


def calibrate_noise_multiplier(
    *,
    target_epsilon: float,
    target_delta: float,
    sample_rate: float,
    steps: int,
    spent: Sequence[Event] = (),
) -> float:
    """Find the smallest noise multiplier that keeps everything within the target, by all bounds.

    Guarantee: for `[*spent, planned]` with the noise returned, `epsilon`, `epsilon_pld` and
    `epsilon_rdp` at `target_delta` are each at most `target_epsilon`, checked on the value
    returned itself. At most `NOISE_TOLERANCE` above the smallest such noise. Looks at no patient:
    all arguments are public, so the noise is too.
    Cost: RDP is the loosest and decides. PRV alone would do with 4 to 9% less noise for targets
    of 1 to 10; in return no accountant that an auditor may choose finds the site above target.
    Edge cases: `sample_rate == 1` is the plain Gaussian mechanism. A target so generous that
    0.05 would do returns 0.05.

    Args:
        target_epsilon: What the site may have spent in the end, `spent` included; > 0, finite.
        target_delta: In (0, 1).
        sample_rate: Of the planned steps, in (0, 1].
        steps: How many are planned, >= 1.
        spent: What the ledger holds already.

    Raises:
        AccountingError: A parameter makes no sense, `spent` leaves nothing, or no noise up to
            10,000 is enough.
    """
    require_delta(target_delta)
    if not (isinstance(target_epsilon, int | float) and 0 < target_epsilon < math.inf):
        raise AccountingError(
            f"target_epsilon is {target_epsilon!r}", expected="a finite number above 0"
        )
    if Event("subsampled_gaussian", 1.0, sample_rate, steps).steps == 0:
        raise AccountingError("no steps are planned", expected="steps of at least 1")
    already = epsilon_rdp(spent, target_delta)
    if already >= target_epsilon:
        raise AccountingError(
            f"epsilon {already:.3f} is spent already (by Renyi DP), the target is "
            f"{target_epsilon:g}",
            expected="a target above what the ledger holds",
            remedy="Raise target_epsilon, or leave this site out of the study",
        )

    def by_rdp(noise_multiplier: float) -> float:
        return epsilon_rdp(planned(noise_multiplier), target_delta)

    def by_all(noise_multiplier: float) -> float:
        events = planned(noise_multiplier)
        return max(bound(events, target_delta) for bound in (epsilon_rdp, epsilon, epsilon_pld))

    def planned(noise_multiplier: float) -> list[Event]:
        return [*spent, Event("subsampled_gaussian", noise_multiplier, sample_rate, steps)]

    # The quick bound is above the others: they are asked once, and again only if one objects.
    noise = _smallest(by_rdp, target_epsilon, start=1.0)
    if noise is not None and by_all(noise) > target_epsilon:
        noise = _smallest(by_all, target_epsilon, start=noise)
    if noise is None:
        raise AccountingError(
            f"no noise up to {NOISE_RANGE[1]:g} keeps {steps} steps at sample rate "
            f"{sample_rate:g} within epsilon {target_epsilon:g} (spent: {already:.3f})",
            remedy="Raise target_epsilon or target_delta, or plan fewer steps",
        )
    return noise


def _smallest(cost: Callable[[float], float], target: float, *, start: float) -> float | None:
    """Find the smallest noise whose falling cost is within the target, or None above the range."""
    least, most = NOISE_RANGE
    low = high = min(max(start, least), most)
    stride = 1.1
    if cost(low) <= target:
        while cost(low) <= target:
            if low == least:
                return least
            high, low, stride = low, max(low / stride, least), stride**2
    else:
        while cost(high) > target:
            if high == most:
                return None
            low, high, stride = high, min(high * stride, most), stride**2
    root = math.exp(
        brentq(
            lambda log_noise: cost(math.exp(log_noise)) - target,
            math.log(low),
            math.log(high),
            xtol=NOISE_TOLERANCE / 8,
        )
    )
    noise = _rounded_up(root)
    while cost(noise) > target:
        noise = _rounded_up(noise * (1 + NOISE_TOLERANCE / 8))
    return noise


def _rounded_up(noise: float) -> float:
    """Round up to five significant digits, for numbers that people read in ledgers."""
    scale = math.pow(10.0, 4 - math.floor(math.log10(noise)))
    return math.ceil(noise * scale) / scale


@lru_cache(maxsize=4096)
def _epsilon(composition: Composition, delta: float) -> float:
    if not composition.costs:
        return 0.0
    full_batch = gaussian_epsilon(full_batch_mu(composition), delta)
    if not composition.subsampled:
        return full_batch
    bound = min(full_batch, rdp_epsilon(composition, delta))
    tight = _prv(composition, delta)
    # No composition costs less than its dearest part: a value below it is a numerical failure.
    least = max(step_epsilon(noise, rate, delta) for noise, rate, _ in composition.subsampled)
    least = max(least, gaussian_epsilon(composition.gaussian_mu, delta)) * (1 - 1e-6)
    if tight is not None and tight >= least:
        bound = min(bound, tight)
    if not least <= bound < math.inf:
        raise AccountingError(
            f"no sound epsilon was found for {composition} at delta {delta:g}",
            remedy="Please report this history: it is a fault in the accounting",
        )
    return bound


@lru_cache(maxsize=4096)
def _prv(composition: Composition, delta: float) -> float | None:
    full_batch = gaussian_epsilon(full_batch_mu(composition), delta)
    bound = min(full_batch, rdp_epsilon(composition, delta))
    few = coarsened(composition, MAX_MECHANISMS)
    return prv_epsilon(few, delta, min(0.01, max(2e-4, 0.002 * bound)))


@lru_cache(maxsize=256)
def _pld(composition: Composition, delta: float) -> float:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    # The default mesh of 1e-4 would need gigabytes for the losses of almost no noise.
    mesh = 1e-4 * max(1.0, rdp_epsilon(composition, delta) / 50)
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, mesh)
    for noise_multiplier, sample_rate, steps in composition.subsampled:
        step = dp_accounting.GaussianDpEvent(noise_multiplier)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(sample_rate, step), steps)
    if composition.gaussian_mu > 0:
        accountant.compose(dp_accounting.GaussianDpEvent(1 / composition.gaussian_mu))
    return max(0.0, float(accountant.get_epsilon(delta)))
