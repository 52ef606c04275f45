import pytest
import torch
from torch import nn

from fundusgen.errors import ModelError
from fundusgen.models.blocks import (
    ConditionNorm,
    DownBlock,
    UpBlock,
    field_of_view_mask,
    require_private_layers,
)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(2, 2)
        self.other = nn.Linear(2, 2)
        self.other.weight = self.one.weight


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        (nn.BatchNorm2d(4), "GroupNorm"),
        (nn.InstanceNorm2d(4, track_running_stats=True), "GroupNorm"),
        (nn.ConvTranspose2d(4, 4, 2), "UpBlock"),
        (nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), "equalised"),
        (Shared(), "one tensor"),
    ],
)
def test_a_layer_that_dpsgd_cannot_train_is_refused_with_what_to_use_instead(
    layer: nn.Module, word: str
) -> None:
    with pytest.raises(ModelError, match=word):
        require_private_layers(nn.Sequential(nn.Conv2d(3, 4, 3), layer))


def test_the_old_spectral_norm_is_refused_too() -> None:
    layer = nn.utils.spectral_norm(nn.Conv2d(3, 4, 3))
    with pytest.raises(ModelError, match="spectrally"):
        require_private_layers(layer)


def test_blocks_change_the_resolution_and_pass_the_check() -> None:
    embedding = torch.randn(2, 6)
    down, up = DownBlock(4, 8, 6), UpBlock(8, 4, 6)
    small = down(torch.randn(2, 4, 8, 8), embedding)
    assert small.shape == (2, 8, 4, 4)
    assert up(small, embedding).shape == (2, 4, 8, 8)
    require_private_layers(nn.ModuleList([down, up]))


def test_a_modulated_norm_begins_as_a_plain_group_norm() -> None:
    features = torch.randn(3, 8, 5, 5)
    norm = ConditionNorm(8, 6)
    plain = nn.GroupNorm(2, 8, affine=False)
    torch.testing.assert_close(norm(features, torch.randn(3, 6)), plain(features))


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_the_field_of_view_is_a_centred_circle(size: int) -> None:
    mask = field_of_view_mask(size)[0, 0]
    assert mask[0, 0] == 0
    assert mask[size // 2, size // 2] == 1
    torch.testing.assert_close(mask, mask.flip(0))
    assert mask.mean() == pytest.approx(torch.pi / 4, abs=0.02)
