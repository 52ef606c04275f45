"""Measures against phantoms, whose eyes are known, against drawings, and against scipy."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import spearmanr, wasserstein_distance

from fundusgen.data.preparation import prepare_image
from fundusgen.evaluation.fundus_measures import (
    MEASURES,
    QUANTILES_PERCENT,
    Measured,
    findings,
    measure_distances,
    measure_set,
    wasserstein,
)
from fundusgen.evaluation.images import ImageSet
from fundusgen.evaluation.landmarks import field_mask, field_shape, find_disc
from fundusgen.evaluation.lesion_counts import find_spots
from fundusgen.evaluation.vessels import find_vessels, flat_light
from fundusgen.phantom.ink import pour_vessels
from fundusgen.phantom.lesions import PHANTOM_CONDITIONS
from fundusgen.phantom.population import collection_phantom, phantom_images
from fundusgen.phantom.render import render
from fundusgen.phantom.view import View

Floats = NDArray[np.float64]
SIDE = 64
COLUMN = {measure.name: column for column, measure in enumerate(MEASURES)}


@dataclass(frozen=True)
class Truth:
    """What is known of a phantom, as right eye; shares of the side."""

    disc_x: float
    disc_y: float
    disc_diameter: float
    vessel_cover: float
    bleedings: float


def offsets(side: int) -> tuple[Floats, Floats]:
    place = (np.arange(side) + 0.5) / side
    return place[:, None], place[None, :]


def drawn(side: int = SIDE) -> NDArray[np.uint8]:
    """An even brown field that fills the circle."""
    y, x = offsets(side)
    image_SSC = np.zeros((side, side, 3), np.uint8)
    image_SSC[np.hypot(x - 0.5, y - 0.5) <= 0.5] = (150, 80, 40)
    return image_SSC


def dotted(image_SSC: NDArray[np.uint8], x: float, y: float, size: float, colour: int) -> None:
    """Draw a soft round spot."""
    down, across = offsets(len(image_SSC))
    cover = np.clip((size / 2 - np.hypot(across - x, down - y)) * len(image_SSC) + 0.5, 0, 1)
    image_SSC[:] = image_SSC + ((colour - image_SSC.astype(float)) * cover[..., None])


@pytest.fixture(scope="module")
def phantoms() -> tuple[Floats, list[Truth]]:
    """Measures (N, K) of phantoms of all conditions, and what is true of them."""
    values, truths = [], []
    for number in range(150):
        phantom = collection_phantom(number, 6, PHANTOM_CONDITIONS)
        image_SSC = render(phantom, SIDE)
        values.append(
            findings(image_SSC[:, ::-1] if phantom.anatomy.eye == "L" else image_SSC).values_K
        )
        camera, disc = phantom.camera, phantom.anatomy.disc
        view = View(SIDE, SIDE * camera.field_radius / camera.field_deg, 1.0, camera.centre_deg)
        x, y = view.to_px(np.array([disc.x_deg, disc.y_deg]))
        poured = [
            sum(pour_vessels(level, view, np.ones_like(level.radius_VK)))
            for level in phantom.anatomy.vessels
        ]
        blood = [phantom.lesions.spots.get(kind) for kind in ("haemorrhage", "microaneurysm")]
        truths.append(
            Truth(
                float(x) / SIDE,
                float(y) / SIDE,
                2 * np.sqrt(disc.radius_x_deg * disc.radius_y_deg) * view.px_per_deg / SIDE,
                float(np.minimum(sum(poured), 1)[field_mask(image_SSC)].mean()),
                sum(len(spots.strength_N) for spots in blood if spots is not None),
            )
        )
    return np.array(values), truths


def test_discs_of_phantoms_are_found_where_they_are(
    phantoms: tuple[Floats, list[Truth]],
) -> None:
    values_NK, truths = phantoms
    true_N2 = np.array([(truth.disc_x, truth.disc_y) for truth in truths])
    found_N2 = values_NK[:, [COLUMN["disc x"], COLUMN["disc y"]]]
    near_N = np.hypot(*(found_N2 - true_N2).T) < 0.05
    assert near_N.mean() > 0.8
    assert values_NK[:, COLUMN["disc found"]].mean() > 0.85
    true_size_N = np.array([truth.disc_diameter for truth in truths])[near_N]
    found_size_N = values_NK[near_N, COLUMN["disc diameter"]]
    assert np.median(found_size_N / true_size_N) == pytest.approx(1, abs=0.1)
    assert spearmanr(found_size_N, true_size_N)[0] > 0.5


def test_vessels_and_bleedings_of_phantoms_are_ranked(
    phantoms: tuple[Floats, list[Truth]],
) -> None:
    """All conditions and cameras, cataract and poor exposures among them."""
    values_NK, truths = phantoms
    cover_N = [truth.vessel_cover for truth in truths]
    assert spearmanr(values_NK[:, COLUMN["vessel density"]], cover_N)[0] > 0.35
    bleedings_N = [truth.bleedings for truth in truths]
    assert spearmanr(values_NK[:, COLUMN["dark spots"]], bleedings_N)[0] > 0.4


@pytest.mark.parametrize("side", [32, 64, 100, 128])
@pytest.mark.parametrize(("x", "y", "size"), [(0.8, 0.45, 0.14), (0.3, 0.7, 0.11)])
def test_a_drawn_disc_is_found_anywhere_at_any_size(
    side: int, x: float, y: float, size: float
) -> None:
    image_SSC = drawn(side)
    dotted(image_SSC, x, y, size, 230)
    disc = findings(image_SSC).disc
    assert disc is not None
    assert (disc.x, disc.y) == pytest.approx((x, y), abs=0.02)
    assert disc.diameter == pytest.approx(size, rel=0.15)
    assert disc.is_in_place == (x > 0.5)


def test_an_even_field_has_no_disc() -> None:
    assert findings(drawn()).disc is None
    with pytest.raises(ValueError, match="64 px"):
        find_disc(drawn(32), np.ones((32, 32), bool), np.zeros((32, 32), bool))


def test_a_disc_is_found_beside_brighter_glare_at_the_rim() -> None:
    y, x = offsets(SIDE)
    image_SSC = drawn()
    image_SSC[(np.hypot(x - 0.5, y - 0.5) < 0.49) & (np.hypot(x - 0.47, y - 0.44) > 0.5)] = 250
    dotted(image_SSC, 0.7, 0.45, 0.13, 200)
    disc = findings(image_SSC).disc
    assert disc is not None
    assert (disc.x, disc.y) == pytest.approx((0.7, 0.45), abs=0.03)


def test_of_an_exudate_and_a_disc_the_one_with_vessels_is_the_disc() -> None:
    image_SSC = drawn()
    dotted(image_SSC, 0.3, 0.5, 0.13, 240)
    dotted(image_SSC, 0.75, 0.5, 0.13, 220)
    image_SSC[8:56, 47] = image_SSC[8:56, 47] * 0.6
    disc = findings(image_SSC).disc
    assert disc is not None
    assert disc.x == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("side", [64, 128])
def test_drawn_vessels_have_their_density_and_width(side: int) -> None:
    """Bars of 1/64 of the side, three from left to right."""
    image_SSC = drawn(side)
    wide = side // 64
    lit_SS = field_mask(image_SSC)
    truth_SS = np.zeros((side, side), bool)
    for start in (side // 4, side // 2, 3 * side // 4):
        truth_SS[start : start + wide] = True
    image_SSC[truth_SS & lit_SS] = (120, 50, 30)
    field_SS = field_mask(image_SSC)
    vessels = find_vessels(flat_light(image_SSC, field_SS), field_SS)
    assert vessels.density == pytest.approx(truth_SS[field_SS].mean(), rel=0.1)
    assert vessels.width == pytest.approx(1 / 64, rel=0.1)
    assert vessels.mask_SS[truth_SS & field_SS].mean() > 0.9
    none = find_vessels(flat_light(drawn(side), field_SS), field_SS)
    assert none.density == 0
    assert np.isnan(none.width)


def test_exposure_and_vignetting_change_no_vessel() -> None:
    image_SSC = phantom_images(1, 128, 8, ["normal"])[0][0]
    y, x = offsets(128)
    fall = 1 - 0.5 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    dim_SSC = (image_SSC * (0.8 * fall[..., None])).astype(np.uint8)
    one, other = findings(image_SSC).vessels, findings(dim_SSC).vessels
    assert one is not None
    assert other is not None
    both = (one.mask_SS & other.mask_SS).sum() / (one.mask_SS | other.mask_SS).sum()
    assert both > 0.7


@pytest.mark.parametrize("bright", [True, False])
def test_spots_are_counted_and_lines_are_not(bright: bool) -> None:
    flat_SS = np.zeros((SIDE, SIDE))
    towards = 0.5 if bright else -0.5
    for row, column in ((20, 20), (20, 44), (44, 30)):
        flat_SS[row : row + 2, column : column + 2] = towards
    flat_SS[32:34, 8:56] = towards
    flat_SS[8, 8] = -towards
    count, spots_SS = find_spots(flat_SS, np.ones((SIDE, SIDE), bool), bright=bright)
    assert count == 3
    assert spots_SS[20, 20]
    assert not spots_SS[32, 20]
    left_SS = np.indices((SIDE, SIDE))[1] < 32
    assert find_spots(flat_SS, left_SS, bright=bright)[0] == 2


def test_the_field_is_measured_against_its_circle() -> None:
    whole_SSC = drawn()
    cut_SSC, ragged_SSC = whole_SSC.copy(), whole_SSC.copy()
    cut_SSC[:6] = cut_SSC[-6:] = 0
    ragged_SSC[10:30, :20] = 0
    whole, cut, ragged = (
        field_shape(field_mask(image_SSC)) for image_SSC in (whole_SSC, cut_SSC, ragged_SSC)
    )
    assert whole.area == pytest.approx(1, abs=0.02)
    assert whole.cut == pytest.approx(0, abs=0.02)
    assert whole.fit > 0.98
    assert cut.cut == pytest.approx(12 / 64, abs=0.04)
    assert cut.fit > 0.97
    assert ragged.cut == pytest.approx(0, abs=0.02)
    assert ragged.fit < 0.93


def test_what_is_black_has_no_measures_but_its_shape() -> None:
    values_K = findings(np.zeros((SIDE, SIDE, 3), np.uint8)).values_K
    known = {"field area": 0, "field cut": 1, "field fit": 0, "disc found": 0, "disc in place": 0}
    for name, column in COLUMN.items():
        if name in known:
            assert values_K[column] == known[name]
        else:
            assert np.isnan(values_K[column])


def test_noise_and_specks_break_nothing() -> None:
    rng = np.random.default_rng(9)
    noise_SSC = rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    speck_SSC = np.zeros((SIDE, SIDE, 3), np.uint8)
    speck_SSC[30:34, 30:34] = 200
    for image_SSC in (noise_SSC, speck_SSC, np.full((SIDE, SIDE, 3), 255, np.uint8)):
        assert findings(image_SSC).values_K.shape == (len(MEASURES),)
    for side in (16, 520):
        with pytest.raises(ValueError, match="are measured"):
            findings(np.zeros((side, side, 3), np.uint8))


def test_sets_are_measured_image_by_image() -> None:
    images_NSSC, _ = phantom_images(3, SIDE, 10, ["normal", "dr2"])
    found = measure_set(ImageSet(images_NSSC, ("normal", "dr2", "normal"), ("a", "b", "a")))
    assert found.patients_N == ("a", "b", "a")
    for image_SSC, values_K in zip(images_NSSC, found.values_NK, strict=True):
        np.testing.assert_array_equal(findings(image_SSC).values_K, values_K)
    none = measure_set(ImageSet(images_NSSC[:0], (), ()))
    assert none.values_NK.shape == (0, len(MEASURES))
    some = found.subset(np.array([2, 1]))
    assert some.patients_N == ("a", "b")
    np.testing.assert_array_equal(some.values_NK, found.values_NK[[2, 1]])


def test_what_is_measured_is_the_same_with_any_number_of_workers() -> None:
    images_NSSC, _ = phantom_images(70, 32, 11, ["normal", "dr2"])
    images = ImageSet(images_NSSC, ("normal",) * 70, tuple(map(str, range(70))))
    steps: list[tuple[int, int]] = []
    one = measure_set(images, on_progress=lambda done, total: steps.append((done, total)))
    two = measure_set(images, workers=2)
    np.testing.assert_array_equal(one.values_NK, two.values_NK)
    assert one.patients_N == two.patients_N
    assert steps == [(64, 70), (70, 70)]


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_the_distance_is_that_of_scipy(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    # Whole numbers, so that some are equal.
    x_N, y_M = rng.integers(0, 6, n).astype(float), rng.integers(0, 6, m).astype(float)
    x_weights, y_weights = rng.integers(0, 3, (4, n)) + 0.0, rng.integers(0, 3, (4, m)) + 0.0
    x_weights[:, 0] += 1
    y_weights[:, 0] += 1
    found_B = wasserstein(x_N, y_M, x_weights, y_weights)
    for found, x_weight, y_weight in zip(found_B, x_weights, y_weights, strict=True):
        assert found == pytest.approx(wasserstein_distance(x_N, y_M, x_weight, y_weight))


def measured(values_N: Floats, column: int, patients: int) -> Measured:
    values_NK = np.full((len(values_N), len(MEASURES)), np.nan)
    values_NK[:, column] = values_N
    return Measured(values_NK, tuple(str(number % patients) for number in range(len(values_N))))


def test_distances_are_in_spreads_of_the_real_ones_with_intervals() -> None:
    rng = np.random.default_rng(11)
    column = COLUMN["vessel density"]
    real = measured(rng.normal(0.1, 0.02, 400), column, 200)
    shifted = measured(rng.normal(0.13, 0.02, 500), column, 500)
    alike = measured(rng.normal(0.1, 0.02, 500), column, 500)
    far, near = (
        measure_distances(generated, real, 12, replicates=200)[column]
        for generated in (shifted, alike)
    )
    assert far.distance is not None
    assert near.distance is not None
    assert far.spread == pytest.approx(0.02, rel=0.1)
    assert far.distance.value == pytest.approx(1.5, rel=0.1)
    assert far.distance.interval[0] < 1.5 < far.distance.interval[1]
    assert near.distance.value < 0.15
    assert len(far.real_quantiles) == len(QUANTILES_PERCENT)
    assert far.real_quantiles[2] == pytest.approx(0.1, abs=0.005)
    assert far.generated_quantiles[2] == pytest.approx(0.13, abs=0.005)


def test_a_measure_that_few_images_have_is_not_compared() -> None:
    column = COLUMN["disc x"]
    values_N = np.full(50, np.nan)
    values_N[:9] = 0.8
    few, many = measured(values_N, column, 50), measured(np.full(50, 0.8), column, 50)
    found = measure_distances(few, many, 13, replicates=10)
    assert all(entry.distance is None for entry in found)
    assert found[column].generated_quantiles == pytest.approx(0.8)
    assert np.isnan(found[0].real_quantiles).all()
    with pytest.raises(ValueError, match="empty set"):
        measure_distances(measured(values_N[:0], column, 1), many, 13)


def test_a_measure_that_does_not_vary_is_divided_by_its_resolution() -> None:
    column = COLUMN["field area"]
    real, other = (measured(np.full(40, value), column, 40) for value in (0.93, 0.97))
    found = measure_distances(other, real, 14, replicates=10)[column]
    assert found.distance is not None
    assert found.distance.value == pytest.approx(0.04 / MEASURES[column].resolution)


def test_patients_with_two_eyes_make_intervals_no_narrower() -> None:
    rng = np.random.default_rng(15)
    column = COLUMN["red mean"]
    once_N, other = rng.normal(0.5, 0.1, 60), measured(rng.normal(0.6, 0.1, 300), column, 300)
    twice = measured(np.concatenate([once_N, once_N]), column, 60)
    one, two = (
        measure_distances(other, real, 16, replicates=300)[column].distance
        for real in (measured(once_N, column, 60), twice)
    )
    assert one is not None
    assert two is not None
    np.testing.assert_allclose(one.replicates_B, two.replicates_B)


@pytest.mark.real_data
def test_real_discs_are_mostly_found_in_place(real_data: Path) -> None:
    """Of a collection whose eyes are known; a few photographs show no disc."""
    with (real_data / "srahim" / "manifest.csv").open() as manifest:
        rows = [row for row in csv.DictReader(manifest) if row["eye"]][:60]
    in_place = []
    for row in rows:
        image_SSC = prepare_image((real_data / "srahim" / row["file"]).read_bytes(), SIDE)
        values_K = findings(image_SSC[:, ::-1] if row["eye"] == "L" else image_SSC).values_K
        in_place.append(values_K[COLUMN["disc in place"]])
    assert np.mean(in_place) > 0.8
