"""How real generated images look: distances and overlap by several features, beside two yardsticks.

Every figure stands beside that of raw phantoms, which know no patient, and that of other real
photographs, which nothing can be asked to beat. A figure belongs to the extractor that it was
computed by, and is never printed without its name.

N images, D features.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fundusgen.evaluation.features import FeatureExtractor
from fundusgen.evaluation.frechet import PrincipalAxes, frechet_estimate
from fundusgen.evaluation.images import ImageSet
from fundusgen.evaluation.kid import kid_estimate
from fundusgen.evaluation.manifold import equal_places, overlap_estimate
from fundusgen.evaluation.resampling import LEAST_GROUPS, REPLICATES, Estimate

OVERALL = "overall"
GENERATED, PHANTOMS, REAL = "generated", "phantoms", "real"
# Fewer patients of a condition give intervals that no two generators differ by.
CONDITION_PATIENTS = 30


@dataclass(frozen=True)
class Distances:
    """A set of images against a reference of real ones; KID as it is, not times 1,000.

    Attributes:
        kid: Kernel distance (Binkowski et al. 2018), which does not depend on the numbers.
        frechet: Frechet distance (Heusel et al. 2017), at equal numbers.
        precision: Share of the set that lies where real images do, at equal numbers.
        recall: Share of the reference that lies where the set does, at equal numbers.
        density: Real neighbourhoods that an image of the set lies in, over k; may exceed 1.
        coverage: Share of the reference with an image of the set in its neighbourhood.
        images: Images of the set.
        compared: Images of each side where numbers are equal.
    """

    kid: Estimate
    frechet: Estimate
    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate
    images: int
    compared: int


@dataclass(frozen=True)
class Realism:
    """All distances by one extractor.

    Attributes:
        extractor: Its name; with version and digest it says what measured.
        version: Of the code around the weights.
        digest: SHA-256 of the weights; empty where there are none.
        rows: For `overall` and each condition with enough patients: the distances of `generated`,
            `phantoms` and `real`, without those of which too few patients are left to compare.
    """

    extractor: str
    version: str
    digest: str
    rows: Mapping[str, Mapping[str, Distances]]


def realism(
    extractor: FeatureExtractor,
    generated: ImageSet,
    phantoms: ImageSet,
    real: ImageSet,
    other_real: ImageSet | None,
    seed: int,
    *,
    replicates: int = REPLICATES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Realism:
    """Measure by one extractor, overall and by condition.

    Args:
        extractor: Gives the features.
        generated: Images to judge; overall they should have the conditions of the real ones.
        phantoms: Raw phantoms of the same conditions.
        real: The test images.
        other_real: Photographs of other patients, for the floor; where None, one half of the test
            patients is held against the other.
        seed: Of resampling and halving.
        replicates: Of the bootstrap.
        on_progress: Called with groups done and groups in all.

    Raises:
        ValueError: There are fewer than `LEAST_GROUPS` test patients.
    """
    features = {
        name: extractor(images.images_NSSC)
        for name, images in ((GENERATED, generated), (PHANTOMS, phantoms), (REAL, real))
    }
    other_ND = None if other_real is None else extractor(other_real.images_NSSC)
    # One set of axes for all rows, so that they can be compared.
    axes = PrincipalAxes.of(features[REAL])
    measure = _Measure(seed, axes, replicates)
    groups = [OVERALL, *_conditions(real)]
    rows: dict[str, dict[str, Distances]] = {}
    for number, group in enumerate(groups):
        on_progress(number, len(groups))
        reference = _part(real, features[REAL], group)
        pairs = {
            name: (_part(images, features[name], group), reference)
            for name, images in ((GENERATED, generated), (PHANTOMS, phantoms))
        }
        if other_real is not None and other_ND is not None:
            pairs[REAL] = _part(other_real, other_ND, group), reference
        else:
            one_N, two_N = halves(reference.patients_N, seed)
            pairs[REAL] = reference.chosen(one_N), reference.chosen(two_N)
        found = {name: measure(*pair, drawn=name != REAL) for name, pair in pairs.items()}
        rows[group] = {name: row for name, row in found.items() if row is not None}
    on_progress(len(groups), len(groups))
    return Realism(extractor.name, extractor.version, extractor.digest, rows)


def halves(patients_N: Sequence[str], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide images in two by patient, at random; places in the one and in the other half."""
    patients = sorted(set(patients_N))
    order = np.random.default_rng(seed).permutation(len(patients))
    first = {patients[place] for place in order[: len(order) // 2]}
    first_N = np.array([patient in first for patient in patients_N], np.bool_)
    return np.flatnonzero(first_N), np.flatnonzero(~first_N)


@dataclass(frozen=True, eq=False)
class _Part:
    """Features of some images, and whose they are."""

    features_ND: NDArray[np.float32]
    patients_N: tuple[str, ...]

    @property
    def patient_count(self) -> int:
        return len(set(self.patients_N))

    def chosen(self, places: NDArray[np.int64]) -> "_Part":
        return _Part(self.features_ND[places], tuple(self.patients_N[place] for place in places))


@dataclass(frozen=True, eq=False)
class _Measure:
    """Compares two parts; the same test patients are resampled for every row."""

    seed: int
    axes: PrincipalAxes
    replicates: int

    def __call__(self, part: _Part, reference: _Part, *, drawn: bool) -> Distances | None:
        """All distances; None where equal numbers of images are of too few patients."""
        x_places, y_places = equal_places(part.patients_N, reference.patients_N, self._rng())
        x, y = part.chosen(x_places), reference.chosen(y_places)
        if min(x.patient_count, y.patient_count) < LEAST_GROUPS:
            return None
        x_groups = None if drawn else part.patients_N
        kid = kid_estimate(
            part.features_ND, reference.features_ND, self._rng(),
            x_groups_N=x_groups, y_groups_M=reference.patients_N, replicates=self.replicates,
        )  # fmt: skip
        x_groups = None if drawn else x.patients_N
        frechet = frechet_estimate(
            x.features_ND, y.features_ND, self._rng(), x_groups_N=x_groups,
            y_groups_M=y.patients_N, axes=self.axes, replicates=self.replicates,
        )  # fmt: skip
        overlap = overlap_estimate(
            x.features_ND, y.features_ND, self._rng(), x_groups_N=x_groups,
            y_groups_M=y.patients_N, replicates=self.replicates,
        )  # fmt: skip
        return Distances(
            kid, frechet, overlap.precision, overlap.recall, overlap.density, overlap.coverage,
            len(part.features_ND), len(x.features_ND),
        )  # fmt: skip

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)


def _conditions(real: ImageSet) -> Iterator[str]:
    for name in sorted(real.conditions):
        if real.of_conditions([name]).patient_count >= CONDITION_PATIENTS:
            yield name


def _part(images: ImageSet, features_ND: NDArray[np.float32], group: str) -> _Part:
    places = np.array(
        [n for n, name in enumerate(images.conditions_N) if group in (OVERALL, name)], np.int64
    )
    return _Part(features_ND, images.patients_N).chosen(places)
