"""Epsilon by numerical composition of privacy loss variables: the tight upper bound.

Sources: Gopi, Lee & Wutschitz 2021 (method and error bound), by the parts of Opacus.

Opacus is imported in the functions that compute: it brings torch, and a ledger must open at once.
"""

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import ndtr

from fundusgen.privacy.composition import Composition
from fundusgen.privacy.gaussian_bounds import gaussian_epsilon
from fundusgen.privacy.renyi import rdp_epsilon

# The grid of privacy losses is held in memory several times over: 2^20 doubles are 8 MB.
MAX_GRID_POINTS = 2**20
# Above this loss the exponentials of the PRVs leave 64-bit floats; no budget is ever near.
MAX_LOSS = 500.0
# Opacus bounds what rounding does to the tail; below this delta the bound eats the delta.
MIN_PRV_DELTA = 1e-10


def prv_epsilon(composition: Composition, delta: float, eps_error: float) -> float | None:
    """Bound epsilon by numerical composition of privacy losses, or say that it cannot be done.

    Guarantee: estimate plus `eps_error` at `delta` minus its share of error (delta / 1000), the
    upper end of Gopi et al. 2021, Theorem 5.5; the larger of adding and removing the patient.
    Edge cases: None where the grid would be too large or too coarse, delta too small, the loss
    beyond floating point, or where a check on the composed distribution fails.

    Args:
        composition: At least one subsampled mechanism.
        delta: In (0, 1).
        eps_error: The error wanted; enlarged, up to 0.25, where the grid would not fit.
    """
    if delta < MIN_PRV_DELTA:
        return None
    delta_error = delta / 1000
    loss = _loss_bound(composition, delta_error)
    if not loss <= MAX_LOSS:
        return None
    loss = _stepped_up(loss)
    steps = sum(steps for *_, steps in composition.subsampled) + (composition.gaussian_mu > 0)
    # Gopi et al. 2021, Theorem 5.5: this mesh keeps the rounding of all steps within eps_error.
    points_of_error = math.sqrt(steps * math.log(12 / delta_error) / 2)
    eps_error = max(eps_error, loss * points_of_error / (MAX_GRID_POINTS / 2 - 8))
    if eps_error > 0.25:
        return None
    mesh = 1 / _stepped_up(points_of_error / eps_error)
    grid = _Grid(next_fast_len(math.ceil(loss / mesh) + 2), mesh)
    directions = [
        _composed_epsilon(composition, grid, removing, delta, delta_error, eps_error)
        for removing in (True, False)
    ]
    if None in directions:
        return None
    return max(epsilon for epsilon in directions if epsilon is not None)


@dataclass(frozen=True)
class _GaussianLoss:
    """The privacy loss of a plain Gaussian: N(mu^2 / 2, mu^2), the same in both directions."""

    mu: float

    def cdf(self, t: Any) -> Any:
        return ndtr((t - self.mu**2 / 2) / self.mu)


@dataclass(frozen=True)
class _AddingLoss:
    """The privacy loss of a subsampled Gaussian when a patient is added.

    Opacus has the other direction only. The loss is -log(1 - q + q exp((2x - 1) / (2 sigma^2)))
    for x ~ N(0, sigma^2), which is at most -log(1 - q).
    """

    noise_multiplier: float
    sample_rate: float

    def cdf(self, t: Any) -> Any:
        q, sigma = self.sample_rate, self.noise_multiplier
        inside = (np.exp(-np.asarray(t)) - (1 - q)) / q
        z = np.log(np.where(inside > 0, inside, 1.0))
        return np.where(inside > 0, ndtr(-(sigma * z + 1 / (2 * sigma))), 1.0)


def _composed_epsilon(
    composition: Composition,
    grid: "_Grid",
    removing: bool,
    delta: float,
    delta_error: float,
    eps_error: float,
) -> float | None:
    from opacus.accountants.analysis import prv

    try:
        spectra = [
            (_spectrum("removing" if removing else "adding", noise, rate, grid), steps)
            for noise, rate, steps in composition.subsampled
        ]
        if composition.gaussian_mu > 0:
            spectra.append((_spectrum("gaussian", composition.gaussian_mu, 1.0, grid), 1))
        # Gopi et al. 2021, Algorithm 1: a sum of losses is a product of spectra.
        product = np.prod([_power(spectrum.values, steps) for spectrum, steps in spectra], axis=0)
        points = 2 * grid.half
        # Point `half - 1` is loss 0: every addend after the first moved the sum by that much.
        moved = (sum(steps for _, steps in spectra) - 1) * (grid.half - 1) % points
        pmf = np.roll(irfft(product, n=points), -moved)
        shift = math.fsum(steps * spectrum.shift for spectrum, steps in spectra)
        composed = prv.DiscretePRV(pmf, grid.domain().shift_right(shift))
        # Mass that rounding lost or made is counted as if it gave the patient away.
        lost = abs(float(pmf.sum()) - 1)
        if lost > delta / 10 or float(pmf.min()) < -1e-12:
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            lower, estimate, upper = composed.compute_epsilon(delta, delta_error + lost, eps_error)
    except (ArithmeticError, ValueError, RuntimeError, Warning):
        return None
    ordered = math.isfinite(upper) and lower <= estimate <= upper
    return max(0.0, float(upper)) if ordered else None


def _power(values: NDArray[np.complex128], exponent: int) -> NDArray[np.complex128]:
    """Raise to a whole power by squaring: numpy's own takes a logarithm of every complex number."""
    result, square = np.ones_like(values), values
    while exponent:
        if exponent & 1:
            result = result * square
        exponent >>= 1
        if exponent:
            square = square * square
    return result


class _Grid(NamedTuple):
    """An even grid of losses whose point `half - 1` is loss 0."""

    half: int
    mesh: float

    def domain(self) -> Any:
        from opacus.accountants.analysis import prv

        return prv.Domain(-(self.half - 1) * self.mesh, self.half * self.mesh, 2 * self.half)


class _Spectrum(NamedTuple):
    """The Fourier transform of one discretised privacy loss, and how far its grid was moved."""

    values: NDArray[np.complex128]
    shift: float


# One step of each mechanism on each grid: a further round of a study changes only the power.
@lru_cache(maxsize=24)
def _spectrum(direction: str, noise_or_mu: float, sample_rate: float, grid: _Grid) -> _Spectrum:
    from opacus.accountants.analysis import prv

    variable: Any
    if direction == "gaussian":
        variable = _GaussianLoss(noise_or_mu)
    elif direction == "removing":
        variable = prv.PoissonSubsampledGaussianPRV(sample_rate, noise_or_mu)
    else:
        variable = _AddingLoss(noise_or_mu, sample_rate)
    domain = grid.domain()
    # scipy warns where the mean did not converge; numpy's overflow is the tail, whose mass is 0.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("error")
        discrete = prv.discretize(
            prv.TruncatedPrivacyRandomVariable(variable, domain.t_min, domain.t_max), domain
        )
    return _Spectrum(rfft(discrete.pmf / discrete.pmf.sum()), float(discrete.domain.shifts))


def _stepped_up(value: float) -> float:
    """Round up to a power of 2^(1/4), so that a growing history keeps its grid for a while."""
    return math.pow(2.0, math.ceil(4 * math.log2(value)) / 4)


def _loss_bound(composition: Composition, delta_error: float) -> float:
    """Give the loss beyond which the grid may be cut off (Gopi et al. 2021, Remark 5.6)."""
    steps = sum(steps for *_, steps in composition.subsampled) + 1
    loss = rdp_epsilon(composition, delta_error / 4)
    for noise_multiplier, sample_rate, _ in composition.subsampled:
        one = Composition(((noise_multiplier, sample_rate, 1),), 0.0)
        loss = max(loss, rdp_epsilon(one, delta_error / (8 * steps)))
    if composition.gaussian_mu > 0:
        loss = max(loss, gaussian_epsilon(composition.gaussian_mu, delta_error / (8 * steps)))
    return loss + 3
