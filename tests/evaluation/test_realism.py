"""How real images look: worlds of points in which the answer is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fundusgen.evaluation.images import ImageSet
from fundusgen.evaluation.kid import kid
from fundusgen.evaluation.realism import (
    CONDITION_PATIENTS,
    GENERATED,
    OVERALL,
    PHANTOMS,
    REAL,
    Realism,
    halves,
    realism,
)
from fundusgen.evaluation.remembered_features import RememberedFeatures


class Corners:
    """Mean colour of the four corners: twelve features."""

    name, version, digest, dimensions = "corners", "1", "c" * 64, 12

    def __call__(self, images_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = (
            images_NSSC[:, rows, columns].mean((1, 2), dtype=np.float32)
            for rows in (slice(4), slice(4, 8))
            for columns in (slice(4), slice(4, 8))
        )
        return np.concatenate(list(parts), axis=1) / 64


def world(
    counts: dict[str, int], seed: int, prefix: str, *, shift: float = 0.0, images: int = 1
) -> ImageSet:
    """Grey images around a level of their condition, `images` alike ones of each patient."""
    rng = np.random.default_rng(seed)
    names = [name for name, count in counts.items() for _ in range(count)]
    levels_P = np.array([100 + 15 * (name != "normal") for name in names]) + shift
    corners_P2211 = levels_P[:, None, None, None] + rng.normal(0, 12, (len(names), 2, 2, 1))
    own_PSS1 = np.repeat(np.repeat(corners_P2211, 4, axis=1), 4, axis=2)
    pixels = np.repeat(own_PSS1, images, axis=0)
    pixels = np.repeat(pixels, 3, axis=3) + rng.normal(0, 3, (len(pixels), 8, 8, 3))
    owners = [f"{prefix}/{number}" for number in range(len(names)) for _ in range(images)]
    return ImageSet(
        np.clip(pixels, 0, 255).astype(np.uint8),
        tuple(name for name in names for _ in range(images)),
        tuple(owners),
    )


COUNTS = {"normal": 60, "dr2": CONDITION_PATIENTS, "amd": CONDITION_PATIENTS - 1}
GENERATED_COUNTS = {"normal": 120, "dr2": 60, "amd": 60}


def measured(other_real: ImageSet | None, *, seed: int = 0) -> Realism:
    return realism(
        Corners(),
        world(GENERATED_COUNTS, 1, "drawn", shift=15),
        world(GENERATED_COUNTS, 2, "phantom", shift=40),
        world(COUNTS, 3, "test", images=2),
        other_real,
        seed,
        replicates=60,
    )


@pytest.fixture(scope="module")
def beside_training() -> Realism:
    return measured(world(COUNTS, 4, "train", images=2))


@pytest.fixture(scope="module")
def beside_itself() -> Realism:
    return measured(None)


def test_the_floor_lies_below_what_is_generated_and_that_below_phantoms(
    beside_training: Realism, beside_itself: Realism
) -> None:
    for found in (beside_training, beside_itself):
        rows = found.rows[OVERALL]
        assert list(rows) == [GENERATED, PHANTOMS, REAL]
        for distance in ("kid", "frechet"):
            real, drawn, phantoms = (
                getattr(rows[of], distance).interval for of in (REAL, GENERATED, PHANTOMS)
            )
            assert real[1] < drawn[0]
            assert drawn[1] < phantoms[0]
        assert rows[REAL].kid.interval[0] < 0 < rows[REAL].kid.interval[1]
        assert rows[REAL].coverage.value > rows[GENERATED].coverage.value
        assert rows[GENERATED].coverage.value > rows[PHANTOMS].coverage.value


def test_only_conditions_of_thirty_patients_have_rows(
    beside_training: Realism, beside_itself: Realism
) -> None:
    # amd has one patient less, and twice as many photographs.
    for found in (beside_training, beside_itself):
        assert list(found.rows) == [OVERALL, "dr2", "normal"]


def test_a_condition_is_compared_with_its_own_photographs(beside_training: Realism) -> None:
    drawn, test = world(GENERATED_COUNTS, 1, "drawn", shift=15), world(COUNTS, 3, "test", images=2)
    of_drawn, of_test = (images.of_conditions(["dr2"]) for images in (drawn, test))
    expected = kid(
        Corners()(of_drawn.images_NSSC),
        Corners()(of_test.images_NSSC),
        y_groups_M=of_test.patients_N,
    )
    assert beside_training.rows["dr2"][GENERATED].kid.value == pytest.approx(expected)


def test_numbers_are_equal_where_figures_depend_on_them(beside_training: Realism) -> None:
    rows = beside_training.rows
    # 238 photographs of 119 patients, against 240 images that were drawn.
    assert (rows[OVERALL][GENERATED].images, rows[OVERALL][GENERATED].compared) == (240, 238)
    assert (rows["dr2"][GENERATED].images, rows["dr2"][GENERATED].compared) == (60, 60)
    assert (rows["normal"][REAL].images, rows["normal"][REAL].compared) == (120, 120)


def test_one_half_of_the_test_patients_is_the_floor_where_there_are_no_others(
    beside_itself: Realism,
) -> None:
    floor = beside_itself.rows[OVERALL][REAL]
    assert floor.images == 2 * (sum(COUNTS.values()) // 2)
    assert floor.compared == floor.images


@pytest.mark.parametrize("few", [9, 19])
def test_too_few_photographs_of_others_leave_no_floor(few: int) -> None:
    # 19 photographs of as many patients are compared with 19 of ten, and 18 with those of nine.
    found = measured(world({"normal": 30, "dr2": few}, 4, "train"))
    assert REAL in found.rows[OVERALL]
    assert (REAL in found.rows["dr2"]) is (few == 19)
    assert {GENERATED, PHANTOMS} <= set(found.rows["dr2"])


def test_too_few_generated_images_leave_no_row() -> None:
    for few in (1, 9, 18, 19):
        drawn = world({"normal": 30, "dr2": few}, 1, "drawn")
        phantoms, real = world(COUNTS, 2, "phantom"), world(COUNTS, 3, "test", images=2)
        found = realism(Corners(), drawn, phantoms, real, None, 0, replicates=20)
        # 18 photographs are of nine patients.
        assert (GENERATED in found.rows["dr2"]) is (few == 19)


def test_the_same_seed_gives_the_same_figures_and_says_what_measured() -> None:
    one, two, other = measured(None), measured(None), measured(None, seed=1)
    assert one.rows[OVERALL][GENERATED].kid.value == two.rows[OVERALL][GENERATED].kid.value
    for of in (GENERATED, REAL):
        first, second, third = (found.rows[OVERALL][of].kid for found in (one, two, other))
        np.testing.assert_array_equal(first.replicates_B, second.replicates_B)
        assert not np.array_equal(first.replicates_B, third.replicates_B)
    assert (one.extractor, one.version, one.digest) == ("corners", "1", "c" * 64)


def test_progress_ends_with_all_groups() -> None:
    steps: list[tuple[int, int]] = []
    realism(
        Corners(), world(COUNTS, 1, "a"), world(COUNTS, 2, "b"), world(COUNTS, 3, "c"), None, 0,
        replicates=20, on_progress=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_halves_share_no_patient_and_are_equally_large() -> None:
    patients = [f"p{number % 21}" for number in range(63)]
    one, two = (
        [patients[place] for place in places.tolist()] for places in halves(patients, seed=3)
    )
    assert set(one) & set(two) == set()
    assert sorted(one + two) == sorted(patients)
    assert (len(set(one)), len(set(two))) == (10, 11)
    again, other = halves(patients, 3)[0], halves(patients, 4)[0]
    assert [patients[place] for place in again.tolist()] == one
    assert not np.array_equal(again, other)


class Counting(Corners):
    """Remembers how many images it was given."""

    def __init__(self) -> None:
        self.given: list[int] = []

    def __call__(self, images_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.given.append(len(images_NSSC))
        return super().__call__(images_NSSC)


def test_an_image_that_is_in_several_sets_is_looked_at_once() -> None:
    images_NSSC = world(COUNTS, 1, "a").images_NSSC[:40]
    counting = Counting()
    remembered = RememberedFeatures(counting)
    expected_ND = Corners()(images_NSSC)
    np.testing.assert_array_equal(remembered(images_NSSC[10:20]), expected_ND[10:20])
    np.testing.assert_array_equal(remembered(images_NSSC), expected_ND)
    mixed = [3, 3, 39, 12]
    np.testing.assert_array_equal(remembered(images_NSSC[mixed]), expected_ND[mixed])
    assert counting.given == [10, 30]
    assert remembered(images_NSSC[:0]).shape == (0, 12)
    twice = RememberedFeatures(Counting())
    np.testing.assert_array_equal(twice(images_NSSC[[5, 5]]), expected_ND[[5, 5]])
    assert (remembered.name, remembered.digest, remembered.dimensions) == (
        "corners",
        "c" * 64,
        12,
    )
