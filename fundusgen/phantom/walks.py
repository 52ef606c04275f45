"""Random walks of numbers: how far a parameter of a phantom moves, and where it turns back.

Beside the simulator's draws, for `variation`. A step is `strength` times a bell curve as wide as
the difference of two independent draws of the prior. It does not pull towards the prior's mean, so
many steps can reach what the prior is poor in; it is reflected at the bounds of what an eye or a
camera can be, so that no value is impossible and none collects at a bound.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fundusgen.phantom.exact import bell, bells

Thing = TypeVar("Thing", bound=Any)

_SQRT2 = 1.4142135623730951
# Sd of a uniform draw as a share of its range: 1 / sqrt(12).
_UNIFORM_SD = 0.28867513459481287


class Walk(NamedTuple):
    """How a number walks.

    Attributes:
        sd: Standard deviation of its prior.
        low: Lowest value that it may reach.
        high: Highest value that it may reach.
    """

    sd: float
    low: float
    high: float


def walked(rng: np.random.Generator, value: float, walk: Walk, strength: float) -> float:
    """Move a number by one step.

    Args:
        rng: Source of the one draw.
        value: Where to start.
        walk: Width of the step and bounds.
        strength: 0 to 1; at 1 the step is as wide as the difference of two draws.

    Returns:
        A value within the bounds.
    """
    step = bell(rng, 0.0, walk.sd * _SQRT2) * strength
    return reflected(value + step, walk.low, walk.high)


def moved(
    rng: np.random.Generator, thing: Thing, walks: Mapping[str, Walk], strength: float
) -> Thing:
    """Move the named fields of a dataclass, in the order of the table."""
    steps = bells(rng, 0.0, _SQRT2, len(walks)).tolist()
    values = {
        name: reflected(getattr(thing, name) + step * walk.sd * strength, walk.low, walk.high)
        for step, (name, walk) in zip(steps, walks.items(), strict=True)
    }
    return replace(thing, **values)


def reflected(value: float, low: float, high: float) -> float:
    """Return a value that went beyond a bound to the inside, as a mirror there would."""
    if value < low:
        value = 2 * low - value
    if value > high:
        value = 2 * high - value
    return min(max(value, low), high)


def spread(bounds: tuple[float, float]) -> float:
    """Return the standard deviation of a uniform draw between two bounds."""
    return (bounds[1] - bounds[0]) * _UNIFORM_SD


def growth_sd(sd: float) -> float:
    """Return the sd of the logarithm of the ratio of two draws, each with the given sd."""
    return sd * _SQRT2
