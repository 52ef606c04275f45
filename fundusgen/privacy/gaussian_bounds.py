"""Exact epsilon and delta of Gaussian mechanisms, and of one Poisson-sampled step.

Needs no numerical composition: plain Gaussians compose to a Gaussian. `accounting` takes these
where they are exact, and as the least that any composition must cost.

Sources: Balle & Wang 2018 (analytic Gaussian), Balle, Barthe & Gaboardi 2018 (subsampling).
"""

import math

from scipy.special import log_ndtr


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Give the exact delta of one Gaussian mechanism.

    Guarantee: the smallest delta for which the mechanism is (epsilon, delta)-DP, up to rounding;
    Balle & Wang 2018, Theorem 8.
    Edge cases: `mu == 0` gives 0. Valid for a negative epsilon too.

    Args:
        mu: Sensitivity over the noise's standard deviation, `1 / noise_multiplier`; >= 0.
        epsilon: A real number.
    """
    if mu == 0.0:
        return max(0.0, -math.expm1(epsilon))
    high = float(log_ndtr(mu / 2 - epsilon / mu))
    low = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    # The difference of the two terms, without subtracting nearly equal exponentials.
    return math.exp(high) * -math.expm1(min(0.0, low - high))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Give the epsilon of one Gaussian mechanism, rounded up.

    Guarantee: at least the true epsilon and at most 1e-9 of it (and 1e-12) above.
    Edge cases: 0 where the total variation distance is already below delta.

    Args:
        mu: Sensitivity over the noise's standard deviation; >= 0.
        delta: In (0, 1).
    """
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    # Renyi DP's bound (Mironov 2017) is above the exact epsilon: a bracket without a search.
    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    while high - low > 1e-10 * high + 1e-13:
        middle = (low + high) / 2
        if gaussian_delta(mu, middle) > delta:
            low = middle
        else:
            high = middle
    return high * (1 + 1e-10)


def step_epsilon(noise_multiplier: float, sample_rate: float, delta: float) -> float:
    """Give the exact epsilon of a single subsampled step: what any composition must exceed.

    Guarantee: the exact epsilon of one Poisson-subsampled Gaussian step when the patient is
    removed (Balle, Barthe & Gaboardi 2018, Theorem 8), rounded up by at most 1e-9 of it.
    Edge cases: 0 where delta is at least the sample rate.
    """
    if delta >= sample_rate:
        return 0.0
    full = gaussian_epsilon(1 / noise_multiplier, delta / sample_rate)
    # log(1 + q (e^x - 1)), written so that a large x does not overflow.
    return full + math.log(sample_rate + (1 - sample_rate) * math.exp(-full))
