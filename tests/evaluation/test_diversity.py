"""Diversity against obvious versions, and of sets whose diversity is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from fundusgen.evaluation.diversity import (
    diversity,
    ms_ssim,
    nearest_distances,
    one_image_a_patient,
    paired_diversity,
    vendi_score,
)
from fundusgen.evaluation.images import ImageSet
from fundusgen.phantom.population import phantom_images

Floats = NDArray[np.float64]
CONDITIONS = ("normal", "dr3", "cataract")


def slow_ms_ssim(one_SSC: Floats, other_SSC: Floats, weights: list[float]) -> float:
    """Wang et al. 2003, equation 7, colour by colour with a window of 11 px.

    As in torchmetrics, contrast is averaged where the window fits, and the coarsest scale over all.
    """
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def smooth(values: Floats) -> Floats:
        across = correlate1d(
            correlate1d(values, window, 0, mode="mirror"), window, 1, mode="mirror"
        )
        return np.asarray(across)

    similarity = 1.0
    for scale, weight in enumerate(weights):
        mean_x, mean_y = smooth(one_SSC), smooth(other_SSC)
        var_x = np.maximum(smooth(one_SSC**2) - mean_x**2, 0)
        var_y = np.maximum(smooth(other_SSC**2) - mean_y**2, 0)
        both = smooth(one_SSC * other_SSC) - mean_x * mean_y
        contrast = (2 * both + 0.03**2) / (var_x + var_y + 0.03**2)
        light = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
        if scale < len(weights) - 1:
            value = contrast[5:-5, 5:-5].mean()
        else:
            value = (light * contrast).mean()
        similarity *= max(value, 0) ** weight
        one_SSC, other_SSC = (
            values.reshape(len(values) // 2, 2, len(values) // 2, 2, 3).mean((1, 3))
            for values in (one_SSC, other_SSC)
        )
    return similarity


def image_set(
    images_NSSC: NDArray[np.uint8], conditions: list[str], patients: list[str] | None = None
) -> ImageSet:
    owners = patients or [str(number) for number in range(len(images_NSSC))]
    return ImageSet(images_NSSC, tuple(conditions), tuple(owners))


@pytest.fixture(scope="module")
def phantoms() -> ImageSet:
    images_NSSC, places_N = phantom_images(90, 64, 1, CONDITIONS)
    return image_set(images_NSSC, [CONDITIONS[place] for place in places_N])


@pytest.fixture(scope="module")
def features_ND(phantoms: ImageSet) -> Floats:
    """Colours of nine parts: enough for a test."""
    parts = phantoms.images_NSSC[:, 8:56, 8:56].reshape(-1, 3, 16, 3, 16, 3).mean((2, 4))
    return np.asarray(parts.reshape(len(phantoms), -1))


@pytest.mark.parametrize(("side", "scales"), [(32, 2), (64, 3), (128, 4)])
def test_ms_ssim_is_that_of_the_paper_with_fewer_scales(side: int, scales: int) -> None:
    images_NSSC, _ = phantom_images(4, side, 2, CONDITIONS)
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363])[:scales]
    found_N = ms_ssim(images_NSSC[:2], images_NSSC[2:])
    for found, one, other in zip(found_N, images_NSSC[:2], images_NSSC[2:], strict=True):
        expected = slow_ms_ssim(one / 255, other / 255, list(weights / weights.sum()))
        assert found == pytest.approx(expected, abs=2e-3)


def test_ms_ssim_is_one_for_equal_images_and_falls_with_noise() -> None:
    images_NSSC, _ = phantom_images(3, 64, 3, CONDITIONS)
    rng = np.random.default_rng(0)
    last_N = ms_ssim(images_NSSC, images_NSSC)
    np.testing.assert_allclose(last_N, 1, atol=1e-5)
    for sd in (5, 20, 60):
        noisy = images_NSSC + rng.normal(0, sd, images_NSSC.shape)
        found_N = ms_ssim(images_NSSC, np.clip(noisy, 0, 255).astype(np.uint8))
        assert (found_N < last_N).all()
        last_N = found_N
    with pytest.raises(ValueError, match="16 px"):
        ms_ssim(images_NSSC[:, ::4, ::4], images_NSSC[:, ::4, ::4])


def test_vendi_counts_what_has_nothing_in_common() -> None:
    eye = np.eye(6)
    assert vendi_score(eye) == pytest.approx(6)
    assert vendi_score(np.ones((6, 4))) == pytest.approx(1)
    # Two kinds, four of one and two of the other, of any length: exp of the entropy of 2/3, 1/3.
    kinds = np.repeat(eye[:2], [4, 2], axis=0) * np.arange(1, 7)[:, None]
    assert vendi_score(kinds) == pytest.approx(3 / 2 ** (2 / 3))
    with pytest.raises(ValueError, match="without features"):
        vendi_score(np.zeros((3, 2)))


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_vendi_is_that_of_the_matrix_of_cosines(seed: int, n: int, d: int) -> None:
    x_ND = np.random.default_rng(seed).standard_normal((n, d))
    unit_ND = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    values = np.clip(np.linalg.eigvalsh(unit_ND @ unit_ND.T / n), 1e-300, None)
    found = vendi_score(x_ND)
    assert found == pytest.approx(np.exp(-(values * np.log(values)).sum()))
    assert 1 - 1e-9 <= found <= min(n, d) + 1e-9


@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_weights_of_vendi_are_repetitions(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    x_ND, counts_N = rng.standard_normal((n, 4)), rng.integers(0, 4, n)
    counts_N[0] = 1
    repeated = vendi_score(np.repeat(x_ND, counts_N, axis=0))
    assert vendi_score(x_ND, counts_N.astype(float)) == pytest.approx(repeated)


@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_nearest_is_the_least_over_all_others(seed: int, n: int) -> None:
    x_ND = np.random.default_rng(seed).standard_normal((n, 3)) + 1000
    slow = [
        min(float(np.linalg.norm(one - other)) for j, other in enumerate(x_ND) if i != j)
        for i, one in enumerate(x_ND)
    ]
    np.testing.assert_allclose(nearest_distances(x_ND), slow, rtol=1e-6)


def test_a_generator_with_few_pictures_is_less_diverse_by_all_three(
    phantoms: ImageSet, features_ND: Floats
) -> None:
    # Six pictures again and again, each time with a little noise.
    rng = np.random.default_rng(4)
    places = np.arange(90) % 6
    noise = rng.integers(-4, 5, phantoms.images_NSSC.shape)
    few_NSSC = np.clip(phantoms.images_NSSC[places].astype(np.int64) + noise, 0, 255)
    few = image_set(few_NSSC.astype(np.uint8), [phantoms.conditions_N[p] for p in places])
    few_ND = features_ND[places] + rng.normal(0, 0.5, features_ND.shape)
    poor, rich = paired_diversity(few, few_ND, phantoms, features_ND, 5, replicates=40)
    assert poor.images == rich.images == 90
    assert poor.ms_ssim.interval[0] > rich.ms_ssim.interval[1]
    assert poor.nearest.interval[1] < rich.nearest.interval[0]
    assert poor.vendi.value < rich.vendi.value
    for found in (poor, rich):
        for estimate in (found.ms_ssim, found.nearest, found.vendi):
            assert estimate.interval[0] <= estimate.value <= estimate.interval[1]


def test_one_population_is_as_diverse_as_itself(phantoms: ImageSet, features_ND: Floats) -> None:
    half = np.arange(90) % 6 < 3
    one, other = (np.flatnonzero(side) for side in (half, ~half))
    first, second = paired_diversity(
        phantoms.subset(one),
        features_ND[one],
        phantoms.subset(other),
        features_ND[other],
        6,
        replicates=60,
    )
    for a, b in ((first.ms_ssim, second.ms_ssim), (first.nearest, second.nearest)):
        assert a.interval[0] < b.interval[1]
        assert b.interval[0] < a.interval[1]


def test_fellow_eyes_are_no_duplicates(phantoms: ImageSet, features_ND: Floats) -> None:
    """Each image twice, both of one patient: as diverse as each once."""
    twice = np.repeat(np.arange(90), 2)
    patients = [str(place) for place in twice]
    doubled = image_set(
        phantoms.images_NSSC[twice], [phantoms.conditions_N[p] for p in twice], patients
    )
    once = diversity(phantoms, features_ND, np.random.default_rng(7), replicates=20)
    both = diversity(doubled, features_ND[twice], np.random.default_rng(7), replicates=20)
    assert both.images == once.images == 90
    assert both.nearest.value == pytest.approx(once.nearest.value)
    assert both.vendi.value == pytest.approx(once.vendi.value)


def test_sets_are_compared_at_equal_numbers_of_each_condition(
    phantoms: ImageSet, features_ND: Floats
) -> None:
    """Real images with 10, 5 and 0 patients of the conditions: 15 generated ones are taken."""
    normal, dr3 = (
        [place for place, name in enumerate(phantoms.conditions_N) if name == wanted]
        for wanted in CONDITIONS[:2]
    )
    few = [*normal[:10], *dr3[:5]]
    generated, real = paired_diversity(
        phantoms, features_ND, phantoms.subset(few), features_ND[few], 8, replicates=10
    )
    assert generated.images == real.images == 15
    again, _ = paired_diversity(
        phantoms, features_ND, phantoms.subset(few), features_ND[few], 8, replicates=10
    )
    np.testing.assert_array_equal(again.ms_ssim.replicates_B, generated.ms_ssim.replicates_B)


def test_one_image_of_each_patient_is_chosen_at_random() -> None:
    patients = ["a", "a", "b", "c", "c", "c"]
    seen = {tuple(one_image_a_patient(patients, np.random.default_rng(seed))) for seed in range(60)}
    assert all([patients[place] for place in places] == ["a", "b", "c"] for places in seen)
    assert len(seen) == 6


def test_what_says_nothing_of_diversity_is_refused(phantoms: ImageSet, features_ND: Floats) -> None:
    rng = np.random.default_rng(9)
    with pytest.raises(ValueError, match="features"):
        diversity(phantoms, features_ND[:3], rng)
    with pytest.raises(ValueError, match="not finite"):
        diversity(phantoms, features_ND * np.nan, rng)
    with pytest.raises(ValueError, match="interval"):
        diversity(phantoms.subset(range(5)), features_ND[:5], rng)
    alone = image_set(phantoms.images_NSSC[:12], [f"condition {n}" for n in range(12)])
    with pytest.raises(ValueError, match="no two images"):
        diversity(alone, features_ND[:12], rng)
