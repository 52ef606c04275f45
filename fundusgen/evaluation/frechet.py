"""The Frechet distance: between two sets as if each were one Gaussian (Heusel et al. 2017).

The distance that is best known ("FID"). Small sets bias it upwards: compare it at equal numbers of
images only, and beside what two halves of the real ones have.

N, M images of the two sets, D features, K axes, P, Q patients of the two sets, B replicates.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fundusgen.evaluation.resampling import (
    REPLICATES,
    Estimate,
    Floats,
    check_features,
    members,
    resampled,
)

# Customary features have more dimensions than a hospital has test images; their covariance would
# be mostly chance.
MOST_AXES = 64


@dataclass(frozen=True, eq=False)
class PrincipalAxes:
    """Directions in which a reference set varies most.

    Attributes:
        axes_DK: Orthonormal columns, widest first.
    """

    axes_DK: Floats

    @classmethod
    def of(cls, reference_ND: NDArray[np.floating], most: int = MOST_AXES) -> "PrincipalAxes":
        """Find at most `most` axes, and fewer than there are images.

        Raises:
            ValueError: There are fewer than two images.
        """
        if len(reference_ND) < 2:
            raise ValueError(f"axes of {len(reference_ND)} images: at least 2 are needed")
        covariance_DD = np.cov(np.asarray(reference_ND, np.float64), rowvar=False)
        _, axes_DD = np.linalg.eigh(np.atleast_2d(covariance_DD))
        kept = min(most, len(reference_ND) - 1, axes_DD.shape[1])
        return cls(axes_DD[:, ::-1][:, :kept])

    def of_features(self, features_ND: NDArray[np.floating]) -> Floats:
        """Coordinates (N, K) of features along the axes."""
        coordinates_NK: Floats = np.asarray(features_ND, np.float64) @ self.axes_DK
        return coordinates_NK


def frechet_distance(
    x_ND: NDArray[np.floating], y_MD: NDArray[np.floating], *, axes: PrincipalAxes | None = None
) -> float:
    """Compute |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)) of means and covariances.

    With more than `MOST_AXES` features, both sets are first projected onto principal axes of the
    reference set `y_MD`. So every generator is judged along the same axes; a fault in a direction
    in which the reference does not vary is not seen, but by KID, which uses all features.

    Args:
        x_ND: Features of one set.
        y_MD: Features of the reference set.
        axes: Axes to project on, of another reference; of `y_MD` where None and needed.

    Returns:
        The distance, 0 or more; squared, as is customary for FID.

    Raises:
        ValueError: Shapes do not fit, features are not finite, or a set has fewer than two images.

    Source: Heusel et al. 2017, equation 6; Dowson and Landau 1982.
    """
    x_NK, y_MK = _projected(x_ND, y_MD, axes)
    return _frechet(_moments(x_NK, np.ones(len(x_NK))), _moments(y_MK, np.ones(len(y_MK))))


def frechet_estimate(
    x_ND: NDArray[np.floating],
    y_MD: NDArray[np.floating],
    rng: np.random.Generator,
    *,
    x_groups_N: Sequence[Hashable] | None = None,
    y_groups_M: Sequence[Hashable] | None = None,
    axes: PrincipalAxes | None = None,
    replicates: int = REPLICATES,
) -> Estimate:
    """Compute `frechet_distance` with bootstrap replicates, resampled as in `kid_estimate`.

    The axes stay as they are.

    Raises:
        ValueError: As in `frechet_distance`, or a set is of fewer than `LEAST_GROUPS` patients.
    """
    value = frechet_distance(x_ND, y_MD, axes=axes)
    x_NK, y_MK = _projected(x_ND, y_MD, axes)
    x_members_PN, y_members_QM = members(x_groups_N, len(x_NK)), members(y_groups_M, len(y_MK))
    y_weights_BQ = resampled(y_members_QM.shape[0], replicates, rng)
    x_weights_BP = resampled(x_members_PN.shape[0], replicates, rng)
    distances = [
        _frechet(_moments(x_NK, x_P @ x_members_PN), _moments(y_MK, y_Q @ y_members_QM))
        for x_P, y_Q in zip(x_weights_BP, y_weights_BQ, strict=True)
    ]
    return Estimate(value, np.array(distances))


def _projected(
    x_ND: NDArray[np.floating], y_MD: NDArray[np.floating], axes: PrincipalAxes | None
) -> tuple[Floats, Floats]:
    check_features(x_ND, y_MD)
    if axes is None and y_MD.shape[1] > MOST_AXES:
        axes = PrincipalAxes.of(y_MD)
    if axes is None:
        return np.asarray(x_ND, np.float64), np.asarray(y_MD, np.float64)
    return axes.of_features(x_ND), axes.of_features(y_MD)


def _moments(x_NK: Floats, weights_N: Floats) -> tuple[Floats, Floats]:
    """Mean (K,) and covariance (K, K) of images that count as often as weighed."""
    total = weights_N.sum()
    mean_K: Floats = weights_N @ x_NK / total
    deviations_NK = x_NK - mean_K
    covariance_KK: Floats = (deviations_NK.T * weights_N) @ deviations_NK / (total - 1)
    return mean_K, covariance_KK


def _frechet(x: tuple[Floats, Floats], y: tuple[Floats, Floats]) -> float:
    (x_mean_K, x_KK), (y_mean_K, y_KK) = x, y
    # The root of a product of two covariances has the trace of that of R y R, with R the root of
    # x; this one is symmetric, and needs no general root of a matrix that may be singular.
    root_KK = _root(x_KK)
    shared = np.sqrt(np.clip(np.linalg.eigvalsh(root_KK @ y_KK @ root_KK), 0, None)).sum()
    shift = x_mean_K - y_mean_K
    return max(float(shift @ shift + np.trace(x_KK) + np.trace(y_KK) - 2 * shared), 0.0)


def _root(matrix_KK: Floats) -> Floats:
    values_K, vectors_KK = np.linalg.eigh(matrix_KK)
    root_KK: Floats = (vectors_KK * np.sqrt(np.clip(values_K, 0, None))) @ vectors_KK.T
    return root_KK
