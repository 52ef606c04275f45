"""The distance that tells when a public fit draws well."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from fundusgen.models.blocks import doubled
from fundusgen.phantom.population import phantom_images
from fundusgen.training.sliced_distance import sliced_distance


def phantoms(seed: int, count: int = 48) -> torch.Tensor:
    images_NSSC, _ = phantom_images(count, 32, seed, ["normal", "dr2"])
    return torch.from_numpy(np.moveaxis(images_NSSC, -1, 1)).float() / 127.5 - 1


def blurred(images: torch.Tensor) -> torch.Tensor:
    return doubled(functional.avg_pool2d(images, 2))


def test_equal_collections_are_at_no_distance() -> None:
    assert sliced_distance(phantoms(1), phantoms(1), 0) == 0


def test_blurred_or_paler_phantoms_are_further_than_other_phantoms() -> None:
    real = phantoms(1)
    near = sliced_distance(phantoms(2), real, 0)
    once = sliced_distance(blurred(phantoms(2)), real, 0)
    twice = sliced_distance(blurred(blurred(phantoms(2))), real, 0)
    assert near < once < twice
    assert near < sliced_distance(phantoms(2) * 0.7, real, 0)


def test_a_seed_gives_the_same_distance_and_another_seed_nearly() -> None:
    one, other = phantoms(1), phantoms(2)
    assert sliced_distance(one, other, 3) == sliced_distance(one, other, 3)
    assert sliced_distance(one, other, 3) == pytest.approx(sliced_distance(one, other, 4), rel=0.5)


def test_images_of_one_colour_are_no_division_by_zero() -> None:
    plain = torch.zeros(4, 3, 32, 32)
    assert sliced_distance(plain, plain, 0) == 0
