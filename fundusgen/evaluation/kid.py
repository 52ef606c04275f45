"""KID: how far apart two sets are by the means of a kernel over all pairs of images.

The distance that leads (Binkowski et al. 2018, "Demystifying MMD GANs"): the estimate is unbiased
whatever the number of images, so that sets of different sizes can be compared, and it may come out
below zero for sets that are alike.

Where it is said who the images belong to, pairs within a patient are left out, and the estimate
stays unbiased for the population that patients are drawn from.

N, M images of the two sets, D features, P, Q patients of the two sets, B replicates.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from fundusgen.evaluation.resampling import (
    REPLICATES,
    Estimate,
    Floats,
    check_features,
    members,
    resampled,
)


def kid(
    x_ND: NDArray[np.floating],
    y_MD: NDArray[np.floating],
    *,
    x_groups_N: Sequence[Hashable] | None = None,
    y_groups_M: Sequence[Hashable] | None = None,
) -> float:
    """Compute the squared maximum mean discrepancy under the kernel (x.y / D + 1)^3.

    All pairs are used, not the customary random subsets. Customarily shown times 1,000.

    Args:
        x_ND: Features of one set, finite.
        y_MD: Features of the other.
        x_groups_N: The patient of each image of the first set; each its own where None. Pairs of
            images of one patient are left out.
        y_groups_M: The same of the second.

    Returns:
        The unbiased estimate; below zero at times where the sets are alike.

    Raises:
        ValueError: Shapes do not fit, features are not finite, or a set is of fewer than two
            patients.

    Source: Binkowski et al. 2018, equation 4 and section 4; Gretton et al. 2012, lemma 6.
    """
    check_features(x_ND, y_MD)
    sums = _KernelSums.of(x_ND, y_MD, x_groups_N, y_groups_M)
    return float(sums.distances(np.ones((1, len(sums.x_P))), np.ones((1, len(sums.y_Q))))[0])


def kid_estimate(
    x_ND: NDArray[np.floating],
    y_MD: NDArray[np.floating],
    rng: np.random.Generator,
    *,
    x_groups_N: Sequence[Hashable] | None = None,
    y_groups_M: Sequence[Hashable] | None = None,
    replicates: int = REPLICATES,
) -> Estimate:
    """Compute `kid` with bootstrap replicates: patients are drawn again, with replacement.

    A patient drawn twice makes no pairs with themself, so that replicates are centred on the
    estimate.

    Args:
        x_ND: As in `kid`, and so on.
        y_MD: The real side, which is resampled first: with generators of equal state, its
            replicates are the same patients for every `x_ND`.
        rng: Source of the resampling.
        x_groups_N: Without groups, each image is resampled by itself.
        y_groups_M: The same of the second set.
        replicates: B.

    Raises:
        ValueError: As in `kid`, or a set is of fewer than `LEAST_GROUPS` patients.
    """
    check_features(x_ND, y_MD)
    sums = _KernelSums.of(x_ND, y_MD, x_groups_N, y_groups_M)
    y_weights_BQ = resampled(len(sums.y_Q), replicates, rng)
    x_weights_BP = resampled(len(sums.x_P), replicates, rng)
    value = sums.distances(np.ones((1, len(sums.x_P))), np.ones((1, len(sums.y_Q))))[0]
    return Estimate(float(value), sums.distances(x_weights_BP, y_weights_BQ))


@dataclass(frozen=True, eq=False)
class _KernelSums:
    """Sums of the kernel over the images of each pair of patients, and how many these have."""

    xx_PP: Floats
    yy_QQ: Floats
    xy_PQ: Floats
    x_P: Floats
    y_Q: Floats

    @classmethod
    def of(
        cls,
        x_ND: NDArray[np.floating],
        y_MD: NDArray[np.floating],
        x_groups_N: Sequence[Hashable] | None,
        y_groups_M: Sequence[Hashable] | None,
    ) -> "_KernelSums":
        x_members_PN, y_members_QM = (
            members(x_groups_N, len(x_ND)),
            members(y_groups_M, len(y_MD)),
        )
        return cls(
            _summed(x_members_PN, _kernel(x_ND, x_ND), x_members_PN),
            _summed(y_members_QM, _kernel(y_MD, y_MD), y_members_QM),
            _summed(x_members_PN, _kernel(x_ND, y_MD), y_members_QM),
            x_members_PN.sum(axis=1),
            y_members_QM.sum(axis=1),
        )

    def distances(self, x_weights_BP: Floats, y_weights_BQ: Floats) -> Floats:
        """The estimate (B,) with each patient counted as often as weighed."""
        x_counts_BP, y_counts_BQ = x_weights_BP * self.x_P, y_weights_BQ * self.y_Q
        cross_B = ((x_weights_BP @ self.xy_PQ) * y_weights_BQ).sum(axis=1)
        cross_B /= x_counts_BP.sum(axis=1) * y_counts_BQ.sum(axis=1)
        within_B = _within(self.xx_PP, x_weights_BP, x_counts_BP)
        within_B += _within(self.yy_QQ, y_weights_BQ, y_counts_BQ)
        distances_B: Floats = within_B - 2 * cross_B
        return distances_B


def _within(sums_PP: Floats, weights_BP: Floats, counts_BP: Floats) -> Floats:
    """Mean kernel over pairs of images of different patients."""
    own_P = np.diagonal(sums_PP)
    total_B = ((weights_BP @ sums_PP) * weights_BP).sum(axis=1) - weights_BP**2 @ own_P
    pairs_B = counts_BP.sum(axis=1) ** 2 - (counts_BP**2).sum(axis=1)
    if not pairs_B.all():
        raise ValueError("KID needs at least two patients on each side: there are no pairs")
    mean_B: Floats = total_B / pairs_B
    return mean_B


def _kernel(x_ND: NDArray[np.floating], y_MD: NDArray[np.floating]) -> Floats:
    # Double precision: KID is a difference of means some thousand times as large.
    x, y = np.asarray(x_ND, np.float64), np.asarray(y_MD, np.float64)
    kernel_NM: Floats = x @ y.T
    kernel_NM /= x.shape[1]
    kernel_NM += 1
    # Two products: a general power takes ten times as long.
    cubed_NM = kernel_NM * kernel_NM
    cubed_NM *= kernel_NM
    return cubed_NM


def _summed(rows_PN: csr_array, kernel_NM: Floats, columns_QM: csr_array) -> Floats:
    sums_PM: Floats = rows_PN @ kernel_NM
    return np.ascontiguousarray((columns_QM @ sums_PM.T).T)
