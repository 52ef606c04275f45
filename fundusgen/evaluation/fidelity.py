"""How far apart two sets of images are, by their features: both distances, with intervals.

The second step of evaluation, after `features`. KID leads; the Frechet distance stands beside it,
since it is what most papers give. All of this is computed where the photographs are: no figure of
it leaves a site by itself.

N, M images of the two sets, D features.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fundusgen.evaluation.frechet import PrincipalAxes, frechet_distance, frechet_estimate
from fundusgen.evaluation.kid import kid, kid_estimate
from fundusgen.evaluation.resampling import REPLICATES, Estimate, interval

__all__ = [
    "Estimate",
    "Fidelity",
    "PrincipalAxes",
    "fidelity",
    "frechet_distance",
    "frechet_estimate",
    "interval",
    "kid",
    "kid_estimate",
]


@dataclass(frozen=True)
class Fidelity:
    """Both distances of a set from a reference; KID as it is, not times 1,000."""

    kid: Estimate
    frechet: Estimate


def fidelity(
    x_ND: NDArray[np.floating],
    y_MD: NDArray[np.floating],
    seed: int,
    *,
    x_groups_N: Sequence[Hashable] | None = None,
    y_groups_M: Sequence[Hashable] | None = None,
    axes: PrincipalAxes | None = None,
    replicates: int = REPLICATES,
) -> Fidelity:
    """Measure both distances with 95 % intervals.

    Args:
        x_ND: Features of the set to judge.
        y_MD: Features of the reference set, which is real.
        seed: Of the resampling. With the same, replicates of several sets against one reference
            share its patients, number for number, and may be averaged or subtracted.
        x_groups_N: The patient of each image; None for generated ones, which have none.
        y_groups_M: The patient of each image of the reference.
        axes: Of the Frechet distance, where it is not to be the reference's own.
        replicates: Of the bootstrap.

    Raises:
        ValueError: Features that cannot be compared, or too few patients for an interval.
    """
    near = kid_estimate(
        x_ND,
        y_MD,
        np.random.default_rng(seed),
        x_groups_N=x_groups_N,
        y_groups_M=y_groups_M,
        replicates=replicates,
    )
    frechet = frechet_estimate(
        x_ND,
        y_MD,
        np.random.default_rng(seed),
        x_groups_N=x_groups_N,
        y_groups_M=y_groups_M,
        axes=axes,
        replicates=replicates,
    )
    return Fidelity(near, frechet)
