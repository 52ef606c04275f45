"""How photographs look is measured and given to phantoms.

N images, A numbers of an appearance.
"""

import numpy as np
import pytest
from PIL import Image

from fundusgen.phantom.population import phantom_images
from fundusgen.privacy.moments import Moments
from fundusgen.training.appearance import (
    NUMBERS,
    Development,
    appearance_of,
    development,
    units_of,
)


@pytest.fixture(scope="module")
def phantoms() -> np.ndarray:
    return phantom_images(48, 64, 3, ["normal", "amd", "dr4"])[0]


def wanted(mean_A: np.ndarray, variance_A: np.ndarray, noise: float = 0.0) -> Moments:
    return Moments(mean_A, variance_A, noise, noise)


def test_what_is_measured_of_an_image_depends_on_it_alone(phantoms) -> None:
    together = appearance_of(phantoms)
    assert together.shape == (48, NUMBERS)
    for number in (0, 17, 47):
        alone = appearance_of(phantoms[number : number + 1])
        np.testing.assert_allclose(alone[0], together[number], rtol=1e-9, atol=1e-9)


def test_an_image_that_is_black_or_white_all_over_can_be_measured_and_developed() -> None:
    flat = np.stack([np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)])
    assert np.isfinite(appearance_of(flat)).all()
    strong = Development(np.full(NUMBERS, 4.0), np.full(NUMBERS, 3.0))
    developed = strong.developed(flat)
    assert (developed[0] == 0).all()


def test_each_number_says_what_it_is_said_to(phantoms) -> None:
    """Brightness of a colour, vignetting, tilts, and fine or coarse texture."""
    image = phantoms[:1]
    plain = appearance_of(image)[0]
    light, texture = plain[:12].reshape(4, 3), plain[12:].reshape(4, 3)

    def changed(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inside = image.max(axis=3, keepdims=True) > 12
        new = np.where(inside, levels.clip(13, 255), image).astype(np.uint8)
        row = appearance_of(new)[0]
        return row[:12].reshape(4, 3) - light, row[12:].reshape(4, 3) - texture

    axis = np.linspace(-1, 1, 64)
    bright, _ = changed(image * np.array([1.2, 1.0, 1.0]))
    assert bright[0, 0] > 0.1
    assert abs(bright[0, 1:]).max() < 0.04
    to_the_right, _ = changed(image * (1 + 0.3 * axis)[None, None, :, None])
    assert (to_the_right[2] > 0.1).all()
    down, _ = changed(image * (1 + 0.3 * axis)[None, :, None, None])
    assert (down[3] > 0.1).all()
    vignetted, _ = changed(image * (1 - 0.3 * (axis**2 + axis[:, None] ** 2))[None, :, :, None])
    assert (vignetted[1] < -0.05).all()
    grain = np.random.default_rng(0).normal(0, 12, image.shape)
    _, fine = changed(image + grain)
    assert (fine[0] > fine[3] + 0.2).all()


def test_nothing_changes_where_phantoms_look_as_wanted_already(phantoms) -> None:
    numbers = appearance_of(phantoms)
    units = units_of(numbers)
    scaled = units.of(numbers)
    same = development(numbers, wanted(scaled.mean(axis=0), scaled.var(axis=0)), units)
    apart = np.abs(same.developed(phantoms).astype(int) - phantoms)
    assert apart.max() <= 1


def test_developed_phantoms_have_the_mean_and_the_spread_that_was_wanted(phantoms) -> None:
    numbers = appearance_of(phantoms)
    units = units_of(numbers)
    rng = np.random.default_rng(5)
    mean_A, variance_A = rng.normal(0, 0.7, NUMBERS), rng.uniform(0.5, 1.6, NUMBERS)
    made = development(numbers, wanted(mean_A, variance_A), units)
    found = units.of(appearance_of(made.developed(phantoms)))
    # Light is given exactly, up to rounding and the ends of the range.
    np.testing.assert_allclose(found[:, :12].mean(axis=0), mean_A[:12], atol=0.1)
    np.testing.assert_allclose(found[:, :12].std(axis=0), np.sqrt(variance_A[:12]), atol=0.05)
    # Texture goes half the way, more or less: neighbouring widths reach into each other.
    way = mean_A[12:] - units.of(numbers)[:, 12:].mean(axis=0)
    went = found[:, 12:].mean(axis=0) - units.of(numbers)[:, 12:].mean(axis=0)
    assert 0.3 < went @ way / (way @ way) < 0.7


def test_the_more_noise_there_is_the_less_is_believed(phantoms) -> None:
    numbers = appearance_of(phantoms)
    units = units_of(numbers)
    changes = [
        np.abs(
            development(numbers, wanted(np.full(NUMBERS, 2.0), np.full(NUMBERS, 3.0), noise), units)
            .developed(phantoms)
            .astype(int)
            - phantoms
        ).mean()
        for noise in (0.0, 0.5, 2.0, 50.0)
    ]
    assert changes == sorted(changes, reverse=True)
    assert changes[-1] < 0.5 < changes[0]


def test_what_is_black_around_a_picture_stays(phantoms) -> None:
    outside = phantoms.max(axis=3) <= 12
    assert outside.any()
    strong = Development(np.ones(NUMBERS), np.full(NUMBERS, 0.8))
    assert (strong.developed(phantoms)[outside] == phantoms[outside]).all()


def test_a_larger_picture_is_developed_as_its_small_one(phantoms) -> None:
    small = phantoms[:6]
    large = np.stack(
        [np.asarray(Image.fromarray(image).resize((256, 256), Image.Resampling.BICUBIC))
         for image in small]
    )  # fmt: skip
    made = Development(np.full(NUMBERS, 0.9), np.full(NUMBERS, 0.3))
    developed = made.developed(large, small)
    shrunk = developed.reshape(6, 64, 4, 64, 4, 3).mean(axis=(2, 4))
    inside = small.max(axis=3) > 12
    apart = np.abs(shrunk - made.developed(small))[inside]
    assert apart.mean() < 4
