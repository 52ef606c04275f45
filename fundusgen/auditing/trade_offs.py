"""Trade-offs: how well any test can tell whether a patient took part, for each amount of noise.

What bounds are inverted with. A test finds some of those who took part (true positives) and
suspects some who did not (false positives); a mechanism's trade-off says how few of the latter
there can be (Dong, Roth & Su 2022). A family holds the mechanisms of one sample rate and number
of steps, ordered by their noise: more noise, no test better. Audits find the largest noise that
what was seen contradicts; all mechanisms with more are contradicted with it.

E points of a privacy profile.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from fundusgen.privacy.gaussian_bounds import gaussian_epsilon

# Noise is looked for on a grid, this far apart; a bound ends at most one point too low.
_STEP = 1.005
# No further than this from the noise that is claimed: 150 times, and where losses have to be
# composed numerically 6 times.
_FARTHEST, _FARTHEST_SAMPLED = 1000, 360
_PROFILE_POINTS = 300
_SMALLEST_DELTA = 1e-12
# Losses are joined by lines between points this far apart; epsilon is too large by 1e-4 or so.
_MESH = 4e-3


class TradeOff(Protocol):
    """What tests of one mechanism can do."""

    def least_false_positives(self, true_positives: float) -> float:
        """Give the smallest rate of false positives, 0 to 1, of tests with these true ones."""
        ...


@dataclass(frozen=True)
class GaussianTradeOff:
    """The trade-off of telling N(0, 1) from N(mu, 1): that of plain Gaussian mechanisms.

    Attributes:
        mu: Distance of the two, at least 0.
    """

    mu: float

    def least_false_positives(self, true_positives: float) -> float:
        """Dong, Roth & Su 2022, equation 6."""
        return float(ndtr(ndtri(true_positives) - self.mu))


@dataclass(frozen=True, eq=False)
class ProfileTradeOff:
    """The trade-off of everything that is (epsilon, delta)-DP for each pair of a profile.

    Attributes:
        epsilons_E: At least 0.
        deltas_E: The delta of each, for adding and for removing a patient.
    """

    epsilons_E: NDArray[np.float64]
    deltas_E: NDArray[np.float64]

    def least_false_positives(self, true_positives: float) -> float:
        """Wasserman & Zhou 2010: each pair is a line above which no test lies, and its mirror."""
        factors_E = np.exp(-self.epsilons_E)
        line = ((true_positives - self.deltas_E) * factors_E).max()
        mirror = (1 - self.deltas_E - (1 - true_positives) / factors_E).max()
        return float(max(0.0, line, mirror))


@dataclass(frozen=True)
class GaussianFamily:
    """Gaussian mechanisms of one sample rate and number of steps, with any noise.

    Attributes:
        sample_rate: Probability of each patient to enter a step, in (0, 1].
        steps: At least 1.
    """

    sample_rate: float
    steps: int

    def trade_off(self, noise_multiplier: float) -> TradeOff:
        """Give the trade-off with this noise; where steps are sampled, one a little too good."""
        if self.sample_rate == 1:
            return GaussianTradeOff(math.sqrt(self.steps) / noise_multiplier)
        return _sampled(self.sample_rate, self.steps, noise_multiplier)

    def epsilon(self, noise_multiplier: float, delta: float) -> float:
        """Give a lower bound on the exact epsilon with this noise, short of it by 0.02 or so.

        Args:
            noise_multiplier: Above 0.
            delta: In (0, 1).
        """
        if self.sample_rate == 1:
            # `gaussian_epsilon` rounds up, by 1e-9 of the value at most.
            mu = math.sqrt(self.steps) / noise_multiplier
            return gaussian_epsilon(mu, delta) * (1 - 1e-8)
        return _sampled_epsilon(self.sample_rate, self.steps, noise_multiplier, delta)

    def least_noise_contradicted(
        self, claimed: float, contradicts: Callable[[TradeOff], bool]
    ) -> float | None:
        """Find the least noise that an observation contradicts, with all noise above it.

        Args:
            claimed: Noise multiplier to begin with.
            contradicts: Whether the observation is improbable with a trade-off; true for every
                larger noise where it is true for one.

        Returns:
            A noise multiplier that is contradicted, at most `_STEP` above the least; None where
            no noise is.
        """
        farthest = _FARTHEST if self.sample_rate == 1 else _FARTHEST_SAMPLED

        def contradicted(place: int) -> bool:
            return contradicts(self.trade_off(claimed * _STEP**place))

        # Doubling away from the claim: where it holds, little noise need not be looked at.
        first = contradicted(0)
        edge, stride = 0, -8 if first else 8
        while True:
            if abs(edge) == farthest:
                return claimed * _STEP**edge if first else None
            place = max(-farthest, min(farthest, edge + stride))
            if contradicted(place) != first:
                break
            edge, stride = place, 2 * stride
        below, above = sorted((edge, place))
        while above - below > 1:
            middle = (above + below) // 2
            if contradicted(middle):
                above = middle
            else:
                below = middle
        return claimed * _STEP**above


@lru_cache(maxsize=512)
def _sampled(sample_rate: float, steps: int, noise_multiplier: float) -> ProfileTradeOff:
    """Compose privacy losses, rounded towards less privacy: the trade-off contradicts less."""
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    # Large losses are kept more coarsely, still too large: a fine grid would need gigabytes.
    coarse = max(1.0, sample_rate * steps / noise_multiplier**2 / 50)
    losses = from_gaussian_mechanism(
        noise_multiplier, value_discretization_interval=_MESH * coarse, sampling_prob=sample_rate
    ).self_compose(steps)
    largest = max(1.0, float(losses.get_epsilon_for_delta(_SMALLEST_DELTA)))
    epsilons_E = np.linspace(0, min(largest, 300.0), _PROFILE_POINTS)
    return ProfileTradeOff(epsilons_E, np.asarray(losses.get_delta_for_epsilon(epsilons_E)))


@lru_cache(maxsize=512)
def _sampled_epsilon(sample_rate: float, steps: int, noise: float, delta: float) -> float:
    """Compose privacy losses, rounded towards more privacy: the epsilon is no larger than it is."""
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    losses = from_gaussian_mechanism(
        noise,
        pessimistic_estimate=False,
        # Each step's losses are rounded down, by so much at most.
        value_discretization_interval=min(1e-3, max(1e-4, 0.02 / steps)),
        sampling_prob=sample_rate,
        use_connect_dots=False,
    ).self_compose(steps)
    return max(0.0, float(losses.get_epsilon_for_delta(delta)))
