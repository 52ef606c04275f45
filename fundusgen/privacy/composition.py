"""Upper bounds on the epsilon of composed Gaussian mechanisms, by three independent routes.

The numbers under `accounting`, which chooses among them. All take a history in one canonical
form, `Composition`: how often each subsampled Gaussian was run, and all plain Gaussians as one.

* `gaussian_epsilon`: Balle & Wang 2018, exact for plain Gaussians.
* `rdp_epsilon`: Renyi DP by Opacus (Mironov, Talwar & Zhang 2019), loose and robust.
* `prv_epsilon`: privacy loss variables by Opacus (Gopi, Lee & Wutschitz 2021), tight.

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
from scipy.special import log_ndtr, ndtr

# The grid of privacy losses is held in memory several times over: 2^20 doubles are 8 MB.
MAX_GRID_POINTS = 2**20
# Above this loss the exponentials of the PRVs leave 64-bit floats; no budget is ever near.
MAX_LOSS = 500.0
# Opacus' series for Renyi DP lose all digits (and may not end) for less noise than this.
MIN_SERIES_NOISE = 0.1
# Opacus bounds what rounding does to the tail; below this delta the bound eats the delta.
MIN_PRV_DELTA = 1e-10
# Opacus' whole orders, and larger ones for a small epsilon.
_WHOLE_ORDERS = (*map(float, range(2, 64)), 72.0, 80.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0)


class Composition(NamedTuple):
    """A history of mechanisms, in the one order and form that all bounds and caches share.

    Args:
        subsampled: `(noise_multiplier, sample_rate, steps)` with sample_rate < 1 and steps > 0,
            sorted, each pair of noise and rate once.
        gaussian_mu: All full-batch Gaussians together: `sqrt(sum(steps / noise_multiplier^2))`;
            Gaussians compose to a Gaussian (Dong, Roth & Su 2022, Corollary 3.3).
    """

    subsampled: tuple[tuple[float, float, int], ...]
    gaussian_mu: float


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


def full_batch_mu(composition: Composition) -> float:
    """Give the mu of the same history with every patient in every step.

    Guarantee: a mechanism at least as revealing: a subsampled step is a mixture of a full step
    and none, so dominated by it (joint convexity).
    Edge cases: 0 for an empty history.
    """
    total = sum(steps / noise**2 for noise, _, steps in composition.subsampled)
    return math.sqrt(total + composition.gaussian_mu**2)


def rdp_epsilon(composition: Composition, delta: float) -> float:
    """Bound epsilon by Renyi differential privacy.

    Guarantee: an upper bound for adding or removing one patient; conversion by Balle et al.
    2020, Theorem 21.
    Edge cases: infinite where every order overflows.
    """
    whole = _epsilons_at(composition, _WHOLE_ORDERS, delta)
    best = _WHOLE_ORDERS[int(np.argmin(whole))]
    # Between whole orders Opacus sums long series: only the neighbours of the best are worth it.
    between = tuple(best + tenths / 10 for tenths in range(-9, 10) if tenths and best <= 11)
    finest = _epsilons_at(composition, between, delta) if between else whole
    return max(0.0, float(min(whole.min(), finest.min())))


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
    delta_error = delta / 1000
    loss = _loss_bound(composition, delta_error)
    if delta < MIN_PRV_DELTA or not loss <= MAX_LOSS:
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
        product = np.prod([spectrum.values**steps for spectrum, steps in spectra], axis=0)
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


def _epsilons_at(
    composition: Composition, orders: tuple[float, ...], delta: float
) -> NDArray[np.float64]:
    divergence = np.array(
        [
            math.fsum(
                [
                    composition.gaussian_mu**2 / 2 * order,
                    *(steps * _rdp(noise, rate, order) for noise, rate, steps in composition[0]),
                ]
            )
            for order in orders
        ]
    )
    # Balle et al. 2020, Theorem 21; written out, since Opacus' own warns when an end is best.
    order = np.array(orders)
    bound: NDArray[np.float64] = (
        divergence + np.log1p(-1 / order) - (math.log(delta) + np.log(order)) / (order - 1)
    )
    return bound


@lru_cache(maxsize=2**16)
def _rdp(noise_multiplier: float, sample_rate: float, order: float) -> float:
    """Give the Renyi divergence of one step, never above that of a full-batch step."""
    from opacus.accountants.analysis.rdp import compute_rdp

    full_batch = order / (2 * noise_multiplier**2)
    if noise_multiplier < MIN_SERIES_NOISE:
        return full_batch
    try:
        found = float(
            compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=order)
        )
    except (ArithmeticError, ValueError):
        return full_batch
    below = math.floor(order) if order > 2 and not float(order).is_integer() else 0
    if below:
        # A Renyi divergence never falls with its order: where it does, digits were lost.
        found = max(found, _rdp(noise_multiplier, sample_rate, float(below)))
    return min(found, full_batch) if found >= 0 else full_batch
