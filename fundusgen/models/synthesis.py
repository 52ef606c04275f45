"""From a latent vector and a condition to an image: the network that draws, of every family.

Legend of axes: B batch, C channels, S side of the image, Z latent, E embedding, G grain.
"""

import itertools

import torch
from torch import Tensor, nn

from fundusgen.errors import ModelError
from fundusgen.models.activations import silu
from fundusgen.models.blocks import (
    ConditionNorm,
    Grain,
    Sketch,
    ToImage,
    UpBlock,
    doubled,
    field_of_view_mask,
)

SMALLEST_PX = 4
_MAX_WIDTH_FACTOR = 8
# Channels that the latent vector draws straight onto the features of a side in pixels.
_SKETCH_CHANNELS = {16: 8}
_FIRST_SPREAD = 0.1
# Mean colour inside the field of view of phantoms: where drawing begins, known without a patient.
_FUNDUS_RGB = (0.60, 0.29, 0.14)


class Synthesis(nn.Module):
    """Latent vectors and conditions to images.

    An image at every level, added up from coarse to fine (Karras et al. 2020, "skip"): what the
    coarse levels learn from few and noisy steps does not pass through the fine weights.

    Args:
        image_size: Side in pixels: 32, 64, 128 or 256.
        conditions: Number of conditions.
        width: Channels of the finest level, a multiple of 4.
        latent: Length of the latent vector.
        grain: Whether every level takes noise of its own for each pixel (Karras et al. 2019), for
            what differs between pictures and means nothing: grain and the texture of the choroid.

    Raises:
        ModelError: An argument is out of its range.
    """

    mask: Tensor

    def __init__(
        self, image_size: int, conditions: int, width: int, latent: int, *, grain: bool = False
    ) -> None:
        """Make the network with torch's own initialisation."""
        super().__init__()
        if image_size not in (32, 64, 128, 256):
            raise ModelError(f"image_size is {image_size}", expected="32, 64, 128 or 256")
        if width < 4 or width % 4:
            raise ModelError(f"width is {width}", expected="a positive multiple of 4")
        channels = level_channels(image_size, width)[::-1]
        embedding = 4 * width
        self.embedding = nn.Embedding(conditions, embedding)
        self.from_latent = nn.Linear(latent, embedding)
        self.root = nn.Linear(latent + embedding, channels[0] * SMALLEST_PX**2)
        self.entry = nn.Conv2d(channels[0], channels[0], 3, padding=1)
        self.entry_norm = ConditionNorm(channels[0], embedding)
        levels = [*channels, width]
        self.blocks = nn.ModuleList(
            UpBlock(before, after, embedding) for before, after in itertools.pairwise(levels)
        )
        self.sketches = nn.ModuleDict(
            {
                str(size): Sketch(latent, levels[(size // SMALLEST_PX).bit_length() - 1], size, few)
                for size, few in _SKETCH_CHANNELS.items()
            }
        )
        first = torch.tensor(_FUNDUS_RGB).mul(2).sub(1).atanh()
        self.to_image = nn.ModuleList(
            ToImage(level, SMALLEST_PX * 2**step, first if step == 0 else torch.zeros(3))
            for step, level in enumerate(levels)
        )
        self.grains = nn.ModuleList(
            Grain(level, SMALLEST_PX * 2**step) for step, level in enumerate(levels[1:], 1) if grain
        )
        self.register_buffer("mask", field_of_view_mask(image_size), persistent=False)
        with torch.no_grad():
            # Conditions begin close together: a rare one then starts from what the others learn.
            self.embedding.weight.mul_(_FIRST_SPREAD)

    @property
    def grain_length(self) -> int:
        """Numbers of pixel noise for an image."""
        return sum(grain.size**2 for grain in self._grains())

    def decode(
        self, latent_BZ: Tensor, conditions_B: Tensor, grain_BG: Tensor | None = None
    ) -> Tensor:
        """(B, Z), (B,) and (B, G) to (B, 3, S, S) in [-1, 1], black outside the field of view.

        `grain_BG` is standard normal, `grain_length` for each image; without it, or in a network
        without grain, the picture has none.
        """
        condition_BE = self.embedding(conditions_B)
        style_BE = silu(condition_BE + self.from_latent(latent_BZ))
        root = self.root(torch.cat([latent_BZ, condition_BE], dim=1))
        features = self.entry(root.unflatten(1, (-1, SMALLEST_PX, SMALLEST_PX)))
        features = silu(self.entry_norm(features, style_BE))
        image = self.to_image[0](features)
        grains = self._grains() if grain_BG is not None else []
        start = 0
        for level, (block, to_image) in enumerate(zip(self.blocks, self.to_image[1:], strict=True)):
            features = block(features, style_BE)
            if grains and grain_BG is not None:
                grain = grains[level]
                features = grain(features, grain_BG[:, start : start + grain.size**2])
                start += grain.size**2
            size = str(features.shape[-1])
            if size in self.sketches:
                features = features + self.sketches[size](latent_BZ)
            image = doubled(image) + to_image(features)
        drawn_BCSS: Tensor = (torch.tanh(image) + 1) * self.mask - 1
        return drawn_BCSS

    def _grains(self) -> list[Grain]:
        return [layer for layer in self.grains if isinstance(layer, Grain)]


class Decoder(Synthesis):
    """The generator of a study: a network that draws, and knows where to draw from.

    Arguments and errors as of `Synthesis`.
    """

    place: Tensor
    spread: Tensor

    def __init__(
        self, image_size: int, conditions: int, width: int, latent: int, *, grain: bool = False
    ) -> None:
        """Make the network; latent vectors are standard normal at first."""
        super().__init__(image_size, conditions, width, latent, grain=grain)
        # Kept with the weights; a standard normal until `settle` of `vae` says otherwise.
        self.register_buffer("place", torch.zeros(conditions, latent))
        self.register_buffer("spread", torch.eye(latent).repeat(conditions, 1, 1))

    def forward(self, noise_BZ: Tensor, conditions_B: Tensor) -> Tensor:
        """Draw: standard normal (B, Z) and (B,) to (B, 3, S, S), as of `decode`."""
        return self.decode(self.placed(noise_BZ, conditions_B), conditions_B)

    def placed(self, noise_BZ: Tensor, conditions_B: Tensor) -> Tensor:
        """Standard normal (B, Z) to latent vectors (B, Z) as the encoder gives them.

        Spread as for the public images that `settle` of `vae` saw last: what draws well is what
        was learned to be decoded.
        """
        spread_BZ = torch.einsum("bij,bj->bi", self.spread[conditions_B], noise_BZ)
        return self.place[conditions_B] + spread_BZ


def level_channels(image_size: int, width: int) -> list[int]:
    """Channels after each halving, from fine to coarse, down to 4 px."""
    levels = (image_size // SMALLEST_PX).bit_length() - 1
    return [width * min(2 ** (level + 1), _MAX_WIDTH_FACTOR) for level in range(levels)]
