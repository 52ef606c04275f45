"""Renyi differential privacy of composed Gaussian mechanisms, and the epsilon that follows.

At one order the divergences of all steps add up; from the sum follows an epsilon at any delta.
`accounting` takes the best of many orders, for a history whose mechanisms were fixed ahead;
`privacy_filter` keeps to one order, for mechanisms that were chosen on the way.

Sources: Mironov 2017 (composition), Mironov, Talwar & Zhang 2019 (subsampled Gaussian, by
Opacus), Balle et al. 2020 (conversion).

Opacus is imported in the function that computes: it brings torch, and a ledger must open at once.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fundusgen.privacy.composition import Composition

# Opacus' whole orders, and larger ones for a small epsilon.
WHOLE_ORDERS = (*map(float, range(2, 64)), 72.0, 80.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0)
# Opacus' series lose all digits (and may not end) for less noise than this.
MIN_SERIES_NOISE = 0.1
# Between whole orders Opacus cuts two alternating series where a term is below e^-30 (9.4e-14).
SERIES_ERROR = 3e-13
# At a whole order it adds order + 1 terms, each rounded to 64 bits.
ROUNDING_ERROR = 1e-15


def rdp_epsilon(composition: Composition, delta: float) -> float:
    """Bound epsilon by the best of many orders.

    Guarantee: an upper bound for adding or removing one patient, where mechanisms are chosen
    with earlier outputs known but their noise, rates and steps are not chosen by them.
    Edge cases: delta may be so large that 0 is enough. The orders are 2 to 512, and tenths
    around the best of them where that is at most 11.

    Args:
        composition: At least one mechanism.
        delta: In (0, 1).
    """
    whole = epsilons_at(composition, WHOLE_ORDERS, delta)
    best = WHOLE_ORDERS[int(np.argmin(whole))]
    # Between whole orders Opacus sums long series: only the neighbours of the best are worth it.
    if best > 11:
        return max(0.0, float(whole.min()))
    between = tuple(round(best + tenths / 10, 1) for tenths in range(-9, 10) if tenths)
    return max(0.0, float(min(whole.min(), epsilons_at(composition, between, delta).min())))


def epsilons_at(
    composition: Composition, orders: tuple[float, ...], delta: float
) -> NDArray[np.float64]:
    """Give the epsilon that each order alone shows.

    Guarantee: each is an upper bound, by Balle et al. 2020, Theorem 21: a mechanism of
    divergence rho at order a is (rho + log(1 - 1/a) - (log delta + log a) / (a - 1), delta)-DP.
    Edge cases: may be negative for a large delta; 0 is then enough.

    Args:
        composition: The history.
        orders: Each above 1.
        delta: In (0, 1).
    """
    order = np.array(orders)
    divergence = composition.gaussian_mu**2 / 2 * order
    for noise_multiplier, sample_rate, steps in composition.subsampled:
        divergence = divergence + steps * _divergences(noise_multiplier, sample_rate, orders)
    # Written out, since Opacus' own warns where an end of the orders is best.
    bound: NDArray[np.float64] = (
        divergence + np.log1p(-1 / order) - (math.log(delta) + np.log(order)) / (order - 1)
    )
    return bound


@lru_cache(maxsize=2**16)
def step_divergence(noise_multiplier: float, sample_rate: float, order: float) -> float:
    """Give the Renyi divergence of one step, of the patient removed or added.

    Guarantee: an upper bound for both directions: of the two, Opacus' series are for the larger
    (Mironov, Talwar & Zhang 2019, Theorem 5), and what they cut off or round is added. Never
    above that of a step with every patient.
    Edge cases: where the series fail, or for noise below `MIN_SERIES_NOISE`, as if every patient
    were in the step.

    Args:
        noise_multiplier: Above 0.
        sample_rate: In (0, 1].
        order: Above 1.
    """
    from opacus.accountants.analysis.rdp import compute_rdp

    full_batch = order / 2 * (1 / noise_multiplier) ** 2
    if noise_multiplier < MIN_SERIES_NOISE:
        return full_batch
    try:
        found = float(
            compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=order)
        )
    except (ArithmeticError, ValueError):
        return full_batch
    is_whole = float(order).is_integer()
    error = (ROUNDING_ERROR * (order + 1) if is_whole else SERIES_ERROR) / (order - 1)
    if not found >= -error:
        return full_batch
    found = max(found, 0.0) + error
    if order > 2 and not is_whole:
        # A Renyi divergence never falls with its order: where it does, digits were lost.
        below = step_divergence(noise_multiplier, sample_rate, float(math.floor(order)))
        found = max(found, below)
    return min(found, full_batch)


@lru_cache(maxsize=2**12)
def _divergences(
    noise_multiplier: float, sample_rate: float, orders: tuple[float, ...]
) -> NDArray[np.float64]:
    found = np.array([step_divergence(noise_multiplier, sample_rate, order) for order in orders])
    found.flags.writeable = False
    return found
