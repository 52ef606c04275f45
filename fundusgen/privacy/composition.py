"""A history of mechanisms in one canonical form, which all accountants and their caches share.

Between the ledger's events and the bounds on epsilon (`gaussian_bounds`, `renyi`, `prv`). Which
events come first, and which of them belong to which round, matters to no accountant.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from fundusgen.errors import AccountingError
from fundusgen.privacy.events import Event


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

    @property
    def costs(self) -> bool:
        """Whether anything was run at all."""
        return bool(self.subsampled) or self.gaussian_mu > 0


def compose(events: Iterable[Event]) -> Composition:
    """Bring a history into its canonical form.

    Guarantee: lossless: the same mechanisms, each as often. Equal for all orders of the events.
    Edge cases: steps at a sample rate of 1 are plain Gaussians, whatever their kind. Events of
    no steps are dropped.
    """
    steps_of: defaultdict[tuple[float, float], int] = defaultdict(int)
    for event in events:
        steps_of[event.noise_multiplier, event.sample_rate] += event.steps
    return Composition(
        tuple(sorted((*pair, steps) for pair, steps in steps_of.items() if steps and pair[1] < 1)),
        math.sqrt(
            math.fsum(steps * (1 / noise) ** 2 for (noise, q), steps in steps_of.items() if q == 1)
        ),
    )


def coarsened(composition: Composition, most: int) -> Composition:
    """Round a history to fewer different mechanisms, towards less privacy.

    Guarantee: every step has at most its noise and at least its sample rate, so every epsilon
    can only rise.
    Edge cases: unchanged where there are no more than `most` subsampled mechanisms; more than
    that remain only where even a grid of factors of 10 cannot tell fewer apart.

    Args:
        composition: The history.
        most: How many subsampled mechanisms are wanted at most.
    """
    subsampled = composition.subsampled
    for ratio in (1.001, 1.01, 1.05, 1.2, 2.0, 10.0):
        if len(subsampled) <= most:
            break
        subsampled = _on_grid(subsampled, ratio)
    return Composition(subsampled, composition.gaussian_mu)


def full_batch_mu(composition: Composition) -> float:
    """Give the mu of the same history with every patient in every step.

    Guarantee: a mechanism at least as revealing: a subsampled step is a mixture of a full step
    and none, so dominated by it (joint convexity).
    Edge cases: 0 for an empty history.
    """
    total = math.fsum(steps * (1 / noise) ** 2 for noise, _, steps in composition.subsampled)
    return math.sqrt(total + composition.gaussian_mu**2)


def require_delta(delta: float) -> None:
    """Refuse a delta at which Gaussian noise has no meaningful epsilon.

    Guarantee: returns only for a real number in (0, 1).
    Edge cases: True and False are not numbers.

    Raises:
        AccountingError: It is anything else.
    """
    if (
        isinstance(delta, bool)
        or not isinstance(delta, int | float)
        or not 0.0 < float(delta) < 1.0
    ):
        raise AccountingError(
            f"delta is {delta!r}",
            expected="a number in (0, 1), below one over the number of patients",
            remedy="Gaussian noise has no epsilon at delta 0; delta 1 promises nothing",
        )


def _on_grid(
    subsampled: tuple[tuple[float, float, int], ...], ratio: float
) -> tuple[tuple[float, float, int], ...]:
    """Move noise down and rates up onto a grid, and merge what falls together."""
    coarse: defaultdict[tuple[float, float], int] = defaultdict(int)
    for noise, rate, steps in subsampled:
        less = min(noise, ratio ** math.floor(math.log(noise, ratio)))
        # A rate of 1 belongs to the plain Gaussians; the number below it is as good.
        more = min(max(rate, ratio ** math.ceil(math.log(rate, ratio))), 1 - 2**-20)
        coarse[less, max(rate, more)] += steps
    return tuple(sorted((*pair, steps) for pair, steps in coarse.items()))
