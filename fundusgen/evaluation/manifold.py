"""Whether generated images lie where real ones do, and whether real ones are all reached.

Beside `fidelity`, which says how far apart two sets are, this says in which way: precision (or
density) falls where pictures are not realistic, recall (or coverage) where kinds of pictures are
missing. Precision and recall are of Kynkaanniemi et al. 2019, density and coverage of Naeem et al.
2020, which outliers among the real images spoil less.

All four count what lies in balls around images that reach to their k-th nearest neighbour. So they
depend on how many images there are: more real ones make smaller balls, more generated ones raise
coverage and recall. Compare figures at equal numbers only (`equal_places` takes them), and
beside those of a second real set, whose coverage is about `expected_coverage` and whose density is
about 1.

M real images, N generated ones, D features, P, Q patients of the generated and the real set,
B replicates.
"""

from collections.abc import Hashable, Iterable, Sequence
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

NEIGHBOURS = 5
# Rows of a matrix of distances that are made at a time: memory, not speed.
_ROWS = 1024


@dataclass(frozen=True)
class Overlap:
    """How the generated set lies over the real one.

    Attributes:
        precision: Share of the generated images within the ball of a real one.
        recall: Share of the real images within the ball of a generated one.
        density: Balls of real images that a generated one lies in, on average, over k; may exceed
            1 where generated images keep to where real ones are most frequent.
        coverage: Share of the real images whose ball has a generated one in it.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


@dataclass(frozen=True)
class Shares:
    """The four figures of `Overlap` without intervals."""

    precision: float
    recall: float
    density: float
    coverage: float


def overlap(
    x_ND: NDArray[np.floating],
    y_MD: NDArray[np.floating],
    *,
    k: int = NEIGHBOURS,
    y_groups_M: Sequence[Hashable] | None = None,
) -> Shares:
    """Compute precision, recall, density and coverage.

    The k nearest neighbours of a real image are among those of other patients: with both eyes of
    everybody in the set, a ball would otherwise reach to the fellow eye and little further. What
    lies on the edge of a ball is in it, as in Kynkaanniemi et al. 2019, equation 1 (the code of
    Naeem et al. leaves it out, which differs only where features repeat).

    Args:
        x_ND: Features of the generated images, finite.
        y_MD: Features of the real ones.
        k: Which neighbour a ball reaches to; both papers and most others use 3 to 5.
        y_groups_M: The patient of each real image; each its own where None.

    Raises:
        ValueError: Features that cannot be compared, or no k neighbours in one of the sets.

    Source: Kynkaanniemi et al. 2019, equations 1 and 2; Naeem et al. 2020, equations 3 and 5.
    """
    inside = _Inside.of(x_ND, y_MD, k, y_groups_M)
    shares_4B = inside.shares(np.ones((1, len(x_ND))), np.ones((1, len(y_MD))))
    return Shares(*(float(share_B[0]) for share_B in shares_4B))


def overlap_estimate(
    x_ND: NDArray[np.floating],
    y_MD: NDArray[np.floating],
    rng: np.random.Generator,
    *,
    k: int = NEIGHBOURS,
    x_groups_N: Sequence[Hashable] | None = None,
    y_groups_M: Sequence[Hashable] | None = None,
    replicates: int = REPLICATES,
) -> Overlap:
    """Compute `overlap` with bootstrap replicates, resampled as in `kid_estimate`.

    Radii stay those of the sets as they are: a resampled set repeats images, and its nearest
    neighbours at distance zero would be no neighbours at all. An image that a replicate draws
    twice counts twice, in density as a ball too; the ball of one that it does not draw is not
    there. That moves replicates down, as `Estimate.interval` expects: only their spread is used.
    Intervals of precision and recall are rather too wide for it; those of coverage hold the mean in
    about 9 of 10 draws of 80 images.

    Args:
        x_ND: Features of the generated images, finite.
        y_MD: Features of the real ones.
        rng: Source of the resampling; patients of the real side are drawn first.
        k: Which neighbour a ball reaches to.
        x_groups_N: The patient of each generated image; each its own where None. Given only where
            the first set is real too; then its balls also leave their own patient out.
        y_groups_M: The patient of each real image.
        replicates: B.

    Raises:
        ValueError: As in `overlap`, or a set is of fewer than `LEAST_GROUPS` patients.
    """
    inside = _Inside.of(x_ND, y_MD, k, y_groups_M, x_groups_N)
    x_members_PN, y_members_QM = members(x_groups_N, len(x_ND)), members(y_groups_M, len(y_MD))
    y_weights_BM = resampled(y_members_QM.shape[0], replicates, rng) @ y_members_QM
    x_weights_BN = resampled(x_members_PN.shape[0], replicates, rng) @ x_members_PN
    values = inside.shares(np.ones((1, len(x_ND))), np.ones((1, len(y_MD))))
    draws = inside.shares(x_weights_BN, y_weights_BM)
    return Overlap(
        *(
            Estimate(float(value_B[0]), draw_B)
            for value_B, draw_B in zip(values, draws, strict=True)
        )
    )


def expected_coverage(generated: int, real: int, k: int = NEIGHBOURS) -> float:
    """Coverage that is to be expected of sets from the same population, each image independent.

    Args:
        generated: Number of images of the set to judge.
        real: Number of images of the reference, more than k.
        k: Which neighbour a ball reaches to.

    Source: Naeem et al. 2020, lemma 2: 1 - (M-1)...(M-k) / ((N+M-1)...(N+M-k)).
    """
    before_k = np.arange(1, k + 1)
    return float(1 - np.prod((real - before_k) / (generated + real - before_k)))


def equal_places(
    x_groups_N: Sequence[Hashable], y_groups_M: Sequence[Hashable], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose equally many images of two sets, patient by patient.

    Args:
        x_groups_N: The patient of each image of the one set.
        y_groups_M: The same of the other.
        rng: Source of the order of patients.

    Returns:
        Places of the images in the one and in the other set, ascending, as many as the smaller set
        has. All images of a patient are chosen or none, but of the last patient to fit.
    """
    count = min(len(x_groups_N), len(y_groups_M))
    return _by_patient(x_groups_N, count, rng), _by_patient(y_groups_M, count, rng)


@dataclass(frozen=True, eq=False)
class _Inside:
    """Which images lie in whose balls: float32 of 0 and 1, for fast products with weights."""

    of_real_MN: NDArray[np.float32]
    of_generated_NM: NDArray[np.float32]
    k: int

    @classmethod
    def of(
        cls,
        x_ND: NDArray[np.floating],
        y_MD: NDArray[np.floating],
        k: int,
        y_groups_M: Sequence[Hashable] | None,
        x_groups_N: Sequence[Hashable] | None = None,
    ) -> "_Inside":
        check_features(x_ND, y_MD)
        # Double precision: squared distances are differences of numbers much larger than they.
        x, y = np.asarray(x_ND, np.float64), np.asarray(y_MD, np.float64)
        x_radii_N, y_radii_M = _radii(x, k, x_groups_N), _radii(y, k, y_groups_M)
        real_MN = np.empty((len(y), len(x)), np.float32)
        generated_NM = np.empty((len(x), len(y)), np.float32)
        for rows in _slices(len(y)):
            squares_RN = _squares(y[rows], x)
            real_MN[rows] = squares_RN <= y_radii_M[rows, None]
            generated_NM[:, rows] = (squares_RN <= x_radii_N).T
        return cls(real_MN, generated_NM, k)

    def shares(self, x_weights_BN: Floats, y_weights_BM: Floats) -> tuple[Floats, ...]:
        """Precision, recall, density and coverage (B,) with images counted as often as weighed."""
        x_BN, y_BM = x_weights_BN.astype(np.float32), y_weights_BM.astype(np.float32)
        x_total_B, y_total_B = x_weights_BN.sum(axis=1), y_weights_BM.sum(axis=1)
        x_there_BN, y_there_BM = np.sign(x_BN), np.sign(y_BM)
        precision_B = _mean(y_there_BM @ self.of_real_MN > 0, x_weights_BN)
        recall_B = _mean(x_there_BN @ self.of_generated_NM > 0, y_weights_BM)
        # As M times the mean share of balls, so that its value does not follow how many images
        # the patients have that a replicate happens to draw.
        balls_B = ((y_BM @ self.of_real_MN) * x_weights_BN).sum(axis=1)
        density_B = balls_B / (x_total_B * y_total_B) * (len(self.of_real_MN) / self.k)
        coverage_B = _mean(x_there_BN @ self.of_real_MN.T > 0, y_weights_BM)
        return precision_B, recall_B, density_B, coverage_B


def _mean(hits_BN: NDArray[np.bool_], weights_BN: Floats) -> Floats:
    mean_B: Floats = (hits_BN * weights_BN).sum(axis=1) / weights_BN.sum(axis=1)
    return mean_B


def _radii(y_MD: Floats, k: int, groups_M: Sequence[Hashable] | None) -> Floats:
    """Squared distance (M,) of each image to its k-th nearest of another patient."""
    owners_M = members(groups_M, len(y_MD)).tocsc().indices
    most = int(np.bincount(owners_M).max())
    if not 1 <= k <= len(y_MD) - most:
        raise ValueError(
            f"neighbour number {k} among {len(y_MD)} images, of which one patient has {most}: "
            "more images of other patients than k are needed"
        )
    radii_M = np.empty(len(y_MD))
    for rows in _slices(len(y_MD)):
        squares_RM = _squares(y_MD[rows], y_MD)
        squares_RM[owners_M[rows, None] == owners_M] = np.inf
        radii_M[rows] = np.partition(squares_RM, k - 1, axis=1)[:, k - 1]
    return radii_M


def _squares(x_ND: Floats, y_MD: Floats) -> Floats:
    squares_NM: Floats = -2 * (x_ND @ y_MD.T)
    squares_NM += (x_ND**2).sum(axis=1)[:, None]
    squares_NM += (y_MD**2).sum(axis=1)
    return np.maximum(squares_NM, 0, out=squares_NM)


def _slices(count: int) -> Iterable[slice]:
    return (slice(start, start + _ROWS) for start in range(0, count, _ROWS))


def _by_patient(
    groups_N: Sequence[Hashable], count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    owners_N = members(groups_N, len(groups_N)).tocsc().indices
    turn_P = rng.permutation(owners_N.max() + 1)
    return np.sort(np.argsort(turn_P[owners_N], kind="stable")[:count])
