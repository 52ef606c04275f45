"""Pixels go to networks and come back."""

import pytest
import torch

from fundusgen.pixels import from_network, to_network


def test_all_levels_come_back_from_the_network_as_they_went_in() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(2, 1, 8, 16, 1).repeat(1, 3, 1, 1, 3)
    scaled = to_network(levels)
    assert scaled.shape == (2, 3, 3, 8, 16)
    assert (scaled.min(), scaled.max()) == (-1, 1)
    assert torch.equal(from_network(scaled), levels)


def test_each_colour_stays_its_own() -> None:
    red = torch.tensor([255, 0, 128], dtype=torch.uint8).repeat(1, 4, 4, 1)
    assert to_network(red)[0, :, 0, 0].tolist() == pytest.approx([1, -1, 128 / 127.5 - 1], abs=1e-6)


def test_what_lies_outside_the_range_is_black_or_full() -> None:
    drawn = torch.tensor([-1.5, 0.0, 7.0]).view(3, 1, 1)
    assert from_network(drawn).flatten().tolist() == [0, 128, 255]
