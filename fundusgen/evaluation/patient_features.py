"""Features of photographs together with whose they are, and how near two sets of features lie.

What the tests for leakage (`copying`, `membership`) share. A patient is counted once, however
many photographs there are of them.

N, M images of two sets, D features, P patients of one.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fundusgen.evaluation.resampling import Floats, members

Places = NDArray[np.int64]
# Numbers of a block of distances: 64 MiB.
_BLOCK = 2**23


@dataclass(frozen=True, eq=False)
class PatientFeatures:
    """Features of some photographs, and the patient of each.

    Attributes:
        features_ND: (N, D) finite, at least one image.
        patients_N: Whose each image is.

    Raises:
        ValueError: Shapes do not fit, or features are not finite.
    """

    features_ND: NDArray[np.floating]
    patients_N: Sequence[Hashable]

    def __post_init__(self) -> None:
        """Check that every image has features and a patient."""
        check_finite(self.features_ND)
        if len(self.patients_N) != len(self.features_ND):
            raise ValueError(
                f"{len(self.patients_N)} patients for {len(self.features_ND)} images: "
                "one for each is needed"
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.features_ND)

    @property
    def patient_count(self) -> int:
        """P, the number of patients."""
        return len(set(self.patients_N))

    @property
    def owners_N(self) -> Places:
        """(N,) int64: the patient of each image, from 0, in the order of their first image."""
        owners_N: Places = members(self.patients_N, len(self)).tocsc().indices.astype(np.int64)
        return owners_N

    def one_image_each(self, rng: np.random.Generator) -> Floats:
        """Features (P, D) of one image of each patient, drawn at random."""
        shuffled_N = rng.permutation(len(self))
        _, first_P = np.unique(self.owners_N[shuffled_N], return_index=True)
        return np.asarray(self.features_ND[shuffled_N[first_P]], np.float64)

    def split(self, rng: np.random.Generator) -> tuple["PatientFeatures", "PatientFeatures"]:
        """Split into two halves at random, no patient in both.

        Raises:
            ValueError: There are fewer than two patients.
        """
        count = self.patient_count
        if count < 2:
            raise ValueError(f"{count} patient cannot be split into two halves")
        in_first_P = np.zeros(count, np.bool_)
        in_first_P[rng.permutation(count)[: count // 2]] = True
        in_first_N = in_first_P[self.owners_N]
        return self._part(in_first_N), self._part(~in_first_N)

    def _part(self, kept_N: NDArray[np.bool_]) -> "PatientFeatures":
        patients = tuple(who for who, kept in zip(self.patients_N, kept_N, strict=True) if kept)
        return PatientFeatures(self.features_ND[kept_N], patients)


def check_finite(features_ND: NDArray[np.floating]) -> None:
    """Refuse what is no table of features.

    Raises:
        ValueError: It is not (N, D), empty, or not finite.
    """
    if features_ND.ndim != 2 or not features_ND.size:
        raise ValueError(f"features are (N, D) with at least one image, not {features_ND.shape}")
    if not np.isfinite(features_ND).all():
        raise ValueError("features are not finite: a broken extractor cannot be compared by")


def distance_blocks(
    x_ND: NDArray[np.floating], y_MD: NDArray[np.floating]
) -> Iterator[tuple[slice, Floats]]:
    """Go through the Euclidean distances of all pairs, some rows at a time.

    Args:
        x_ND: Rows.
        y_MD: Columns.

    Yields:
        Which rows, and their distances (rows, M).

    Raises:
        ValueError: The sets have different features.
    """
    if x_ND.shape[1] != y_MD.shape[1]:
        raise ValueError(f"{x_ND.shape[1]} and {y_MD.shape[1]} features cannot be compared")
    # Around a common centre, and in double precision: a copy differs in digits that the product
    # would lose.
    centre_D = y_MD.mean(axis=0, dtype=np.float64)
    y = np.asarray(y_MD, np.float64) - centre_D
    y_squared_M = (y**2).sum(axis=1)
    rows = max(1, _BLOCK // len(y))
    for start in range(0, len(x_ND), rows):
        x = np.asarray(x_ND[start : start + rows], np.float64) - centre_D
        squared_NM = x @ y.T
        squared_NM *= -2
        squared_NM += y_squared_M
        squared_NM += (x**2).sum(axis=1)[:, None]
        np.maximum(squared_NM, 0, out=squared_NM)
        yield slice(start, start + len(x)), np.sqrt(squared_NM, out=squared_NM)


def nearest(x_ND: NDArray[np.floating], y_MD: NDArray[np.floating]) -> tuple[Floats, Places]:
    """Find the nearest image of the second set for each of the first.

    Returns:
        Its distance (N,), Euclidean, and its place (N,) int64 in the second set.

    Raises:
        ValueError: The sets have different features.
    """
    distances_N = np.empty(len(x_ND), np.float64)
    places_N = np.empty(len(x_ND), np.int64)
    for rows, distances_RM in distance_blocks(x_ND, y_MD):
        places_N[rows] = distances_RM.argmin(axis=1)
        distances_N[rows] = distances_RM.min(axis=1)
    return distances_N, places_N
