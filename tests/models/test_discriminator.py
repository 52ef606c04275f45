"""The discriminator: what it sees, and what it is asked for."""

import pytest
import torch

from fundusgen.models.discriminator import Discriminator, steepness
from fundusgen.training.learners import loss_of_discriminator


def images(count: int, size: int) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_it_votes_on_every_patch_and_on_the_whole(size: int) -> None:
    votes = Discriminator(size, conditions=2, width=4)(images(3, size), torch.tensor([0, 1, 0]))
    assert votes.shape == (3, 8 * 8 + 16)


def test_what_a_camera_prints_outside_the_field_of_view_is_not_seen() -> None:
    discriminator, plain = Discriminator(32, conditions=2, width=4), images(1, 32)
    marked = plain.clone()
    marked[:, :, 0, 0] = 1
    condition = torch.tensor([1])
    torch.testing.assert_close(discriminator(plain, condition), discriminator(marked, condition))


def test_a_trained_one_tells_two_kinds_of_images_apart() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(32, conditions=1, width=4)
    real, drawn, conditions = images(8, 32), images(8, 32) * 0.2, torch.zeros(8, dtype=torch.int64)
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        loss_of_discriminator(discriminator, real, drawn, conditions, "logistic").backward()
        optimizer.step()
    # Of the whole image: patches outside the field of view look alike in both.
    assert (
        discriminator(real, conditions)[:, -1].min() > discriminator(drawn, conditions)[:, -1].max()
    )


def test_its_loss_asks_nothing_of_what_drew() -> None:
    drawn = images(2, 32).requires_grad_(True)
    discriminator = Discriminator(32, conditions=1, width=4)
    loss_of_discriminator(
        discriminator, images(2, 32), drawn, torch.zeros(2, dtype=torch.int64), "hinge"
    ).backward()
    assert drawn.grad is None


def test_steepness_is_the_squared_gradient_written_out() -> None:
    discriminator, real = Discriminator(32, conditions=2, width=4), images(3, 32)
    conditions = torch.tensor([0, 1, 1])
    squares = []
    for image, condition in zip(real, conditions, strict=True):
        one = image[None].requires_grad_(True)
        (gradient,) = torch.autograd.grad(discriminator(one, condition[None]).mean(), one)
        squares.append(gradient.square().sum())
    torch.testing.assert_close(
        steepness(discriminator, real, conditions), torch.stack(squares).mean()
    )
