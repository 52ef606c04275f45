"""Weights as they travel: check, average, digest.

Everything here works on numpy arrays by name and is what the server does with the outputs of
mechanisms: post-processing, which costs no privacy.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fundusgen.errors import FederationError

Weights = dict[str, NDArray[np.float32]]


def digest(weights: Mapping[str, NDArray[np.float32]]) -> str:
    """SHA-256 over names, types, shapes and values, in hex; independent of the order."""
    state = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        state.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        state.update(array.tobytes())
    return state.hexdigest()


def require_fit(weights: Mapping[str, NDArray[np.float32]], like: Weights) -> None:
    """Accept arrays only if they are exactly what was asked for.

    Raises:
        FederationError: Names, shapes or types differ, or a value is not finite.
    """
    if weights.keys() != like.keys():
        missing, extra = sorted(like.keys() - weights.keys()), sorted(weights.keys() - like.keys())
        raise FederationError(
            f"names differ: {len(missing)} missing {missing[:3]}, {len(extra)} unknown {extra[:3]}"
        )
    for name, array in weights.items():
        if array.dtype != like[name].dtype or array.shape != like[name].shape:
            raise FederationError(
                f"'{name}' is {array.dtype} {array.shape}",
                expected=f"{like[name].dtype} {like[name].shape}",
            )
        if not np.isfinite(array).all():
            raise FederationError(f"'{name}' holds a value that is not finite")


def distance(one: Mapping[str, NDArray[np.float32]], other: Weights) -> float:
    """L2 distance between two sets of weights with the same names."""
    squares = (np.sum((one[name].astype(np.float64) - other[name]) ** 2) for name in one)
    return float(np.sqrt(sum(squares)))


def outliers(distances: Sequence[float], max_ratio: float) -> list[bool]:
    """Say which update norms exceed `max_ratio` times the median; none of fewer than three."""
    if len(distances) < 3:
        return [False] * len(distances)
    bound = max_ratio * float(np.median(distances))
    return [distance > bound for distance in distances]


def average(replies: Iterable[tuple[float, Mapping[str, NDArray[np.float32]]]]) -> Weights:
    """Average weights with shares, McMahan et al. 2017, in float64.

    Args:
        replies: Pairs of a positive share and weights; shares need not add up to one.

    Raises:
        FederationError: There are no replies, or their shares add up to nothing.
    """
    total = 0.0
    summed: dict[str, NDArray[np.float64]] = {}
    for share, weights in replies:
        total += share
        for name, array in weights.items():
            term = share * array.astype(np.float64)
            summed[name] = summed[name] + term if name in summed else term
    if not summed or not total > 0:
        raise FederationError("There is nothing to average", expected="replies with shares above 0")
    return {name: (array / total).astype(np.float32) for name, array in summed.items()}


def mixed(old: Weights, new: Weights, decay: float) -> Weights:
    """Exponential moving average: `decay * old + (1 - decay) * new`."""
    return {name: (decay * old[name] + (1 - decay) * new[name]).astype(np.float32) for name in old}
