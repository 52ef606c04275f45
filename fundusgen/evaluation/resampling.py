"""Intervals: patients drawn again from those there are, and what depends on them computed anew.

The part of `fidelity` that both distances share. Both eyes of a patient are more alike than two
patients, so it is patients that are resampled where it is known who they are, and images by
themselves where they are drawn by a generator.

N, M images of two sets, D features, P patients of one, B replicates.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Floats = NDArray[np.float64]
REPLICATES = 400
# Fewer resampled patients say nothing about their spread.
LEAST_GROUPS = 10
_INTERVAL_PERCENT = (2.5, 97.5)


@dataclass(frozen=True)
class Estimate:
    """A distance, and how it varies with who happened to be photographed and drawn.

    Attributes:
        value: From the sets as they are.
        replicates_B: From resampled sets; real sides that are resampled by generators of equal
            state share their patients, number for number.
    """

    value: float
    replicates_B: Floats

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of the replicates, moved so that their mean is the value.

        Resampling repeats images, which moves a Frechet distance up; only the spread is used.
        Near zero the bootstrap of KID is too wide rather than too narrow.
        """
        return interval(self.value, self.replicates_B)


def interval(value: float, replicates_B: Floats) -> tuple[float, float]:
    """95 % of the replicates around a value; see `Estimate.interval`."""
    low, high = np.percentile(replicates_B - replicates_B.mean(), _INTERVAL_PERCENT)
    return float(value + low), float(value + high)


def members(groups_N: Sequence[Hashable] | None, count: int) -> csr_array:
    """Say which image is whose.

    Args:
        groups_N: The patient of each image; each image its own where None.
        count: N.

    Returns:
        (P, N), 1 where the image is the patient's.

    Raises:
        ValueError: There is not one patient for each image.
    """
    if groups_N is None:
        groups_N = range(count)
    if len(groups_N) != count:
        raise ValueError(f"{len(groups_N)} patients for {count} images: one for each is needed")
    places: dict[Hashable, int] = {}
    rows_N = [places.setdefault(group, len(places)) for group in groups_N]
    return csr_array((np.ones(count), (rows_N, np.arange(count))), shape=(len(places), count))


def resampled(groups: int, replicates: int, rng: np.random.Generator) -> Floats:
    """Draw as many patients as there are, with replacement, B times over.

    Args:
        groups: P.
        replicates: B.
        rng: Source of the draws.

    Returns:
        How often each patient is drawn, (B, P).

    Raises:
        ValueError: There are fewer than `LEAST_GROUPS` patients.
    """
    if groups < LEAST_GROUPS:
        raise ValueError(f"an interval from {groups} patients: at least {LEAST_GROUPS} are needed")
    counts_BP = rng.multinomial(groups, np.full(groups, 1 / groups), size=replicates)
    return counts_BP.astype(np.float64)


def check_features(x_ND: NDArray[np.floating], y_MD: NDArray[np.floating]) -> None:
    """Refuse features of two sets that cannot be compared.

    Raises:
        ValueError: Shapes do not fit, features are not finite, or a set has fewer than two images.
    """
    if x_ND.ndim != 2 or y_MD.ndim != 2 or x_ND.shape[1] != y_MD.shape[1]:
        raise ValueError(f"features are (N, D) and (M, D), not {x_ND.shape} and {y_MD.shape}")
    if min(len(x_ND), len(y_MD)) < 2:
        raise ValueError(f"sets of {len(x_ND)} and {len(y_MD)} images: at least 2 are needed each")
    if not (np.isfinite(x_ND).all() and np.isfinite(y_MD).all()):
        raise ValueError("features are not finite: a broken extractor cannot be compared by")
