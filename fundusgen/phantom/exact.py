"""Arithmetic and draws that give the same bits on every machine.

First step of the simulator: everything else in `fundusgen.phantom` computes with this module.
IEEE 754 fixes the result of + - * / sqrt, rounding, comparison and conversion to the last bit;
it does not fix sin, exp or pow, and numpy's versions differ with the SIMD level of the processor.
So the simulator uses only the former (elementwise, or summed in a fixed order by cumsum and
bincount), and builds the few functions it needs from them here. No dot, einsum, sum or scipy
filter decides a pixel: these may fuse or reorder additions.

Legend of axes: S side of the image in pixels, C colour channel, V vessels, K points along one.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[Any]

_TWO_PI = 6.283185307179586
_SQRT3 = 1.7320508075688772
_LN2 = 0.6931471805599453
# Coefficients of the Taylor series of exp, highest power first: |x| <= ln2 / 2 leaves 2e-7.
_EXP_TAYLOR = (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw one number uniformly from [low, high)."""
    return low + (high - low) * float(rng.random())


def uniforms(rng: np.random.Generator, low: float, high: float, *shape: int) -> Floats:
    """Draw an array of numbers uniformly from [low, high).

    Only `Generator.random` is used in the simulator: 53 bits of the raw stream, no rejection and
    no libm, unlike `normal` and `gamma`.
    """
    return low + (high - low) * rng.random(shape)


def bell(rng: np.random.Generator, mean: float, sd: float) -> float:
    """Draw from a bounded bell curve: the sum of four uniforms, never beyond 3.5 sd."""
    # The operations of `bells`, on single numbers: several times as fast.
    one, two, three, four = rng.random(4).tolist()
    total: float = ((one + two) + (three + four)) - 2.0
    return mean + sd * _SQRT3 * total


def bells(rng: np.random.Generator, mean: float, sd: float, *shape: int) -> Floats:
    """Draw an array from the bell curve of `bell` (Irwin-Hall with four terms)."""
    draws = rng.random((4, *shape))
    total = ((draws[0] + draws[1]) + (draws[2] + draws[3])) - 2.0
    return np.asarray(mean + sd * _SQRT3 * total)


def whole(rng: np.random.Generator, low: int, high: int) -> int:
    """Draw a whole number from low to high, both included."""
    return low + int(float(rng.random()) * (high - low + 1))


def cos_sin(turns: Floats) -> tuple[Floats, Floats]:
    """Return cosine and sine of angles given in turns, by Taylor and two double angles.

    Good to 1e-9, and the same 1e-9 everywhere.
    """
    quarter = (turns - np.rint(turns)) * (_TWO_PI / 4)
    square = quarter * quarter
    sine = quarter * (1 - square / 6 * (1 - square / 20 * (1 - square / 42 * (1 - square / 72))))
    cosine = 1 - square / 2 * (1 - square / 12 * (1 - square / 30 * (1 - square / 56)))
    for _ in range(2):
        cosine, sine = cosine * cosine - sine * sine, 2 * cosine * sine
    return cosine, sine


def exp(x: Floats) -> Floats:
    """Return e**x with a relative error below 1e-6; meant for -60 < x < 60."""
    power = np.rint(x * (1 / _LN2))
    rest = x - power * _LN2
    value = rest * _EXP_TAYLOR[0] + _EXP_TAYLOR[1]
    for coefficient in _EXP_TAYLOR[2:]:
        value *= rest
        value += coefficient
    # ldexp only shifts the exponent, so it is exact.
    return np.asarray(np.ldexp(value, power.astype(np.int32)))


def cube_root(x: Floats) -> Floats:
    """Return the cube root of numbers in [1e-4, 1] by Newton's rule with a fixed step count."""
    root = 0.4 + 0.6 * x
    for _ in range(8):
        root = (2 * root + x / (root * root)) / 3
    return root


def clip01(x: Floats) -> Floats:
    """Limit to [0, 1]."""
    return np.minimum(np.maximum(x, 0.0), 1.0)


def hat(square: Floats) -> Floats:
    """Return a smooth bump over a squared distance: 1 at 0, exactly 0 from 1 on."""
    inside = np.maximum(1 - square, 0.0)
    return np.asarray(inside * inside)


def falloff(square: Floats) -> Floats:
    """Return a smooth bump with a long tail over a squared distance: 1 at 0, a quarter at 1."""
    inverse = 1 / (1 + square)
    return inverse * inverse
