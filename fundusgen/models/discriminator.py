"""What tells drawn images from others, so that drawing them has to become as good.

Goodfellow et al. 2014, with the loss of a patch at a time of Isola et al. 2017. In a GAN it is
trained on patients too; as the critic of a VAE it sees public images only.

Legend of axes: B batch, C channels, S side of the image, V votes of an image.
"""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fundusgen.models.blocks import field_of_view_mask, position_map

_PATCHES_PX, _MAX_WIDTH_FACTOR = 8, 4
# The vote on the whole picture counts as much as this many of the 64 on its patches.
_WHOLE_VOTES = 16


class Discriminator(nn.Module):
    """Votes on the patches of an image and on the whole, above 0 for a real one.

    Fundus images are aligned, so it is told where each patch lies: a vessel in the wrong place
    is then seen without looking at the whole.
    """

    position: Tensor
    mask: Tensor

    def __init__(self, image_size: int, conditions: int, width: int) -> None:
        """Make a discriminator of images of a side and a number of conditions."""
        super().__init__()
        levels = (image_size // _PATCHES_PX).bit_length() - 1
        channels = [6, *(width * min(2**level, _MAX_WIDTH_FACTOR) for level in range(levels))]
        last = channels[-1]
        self.blocks = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=2, padding=1)
            for before, after in itertools.pairwise(channels)
        )
        self.body = nn.Conv2d(last, last, 3, padding=1)
        self.patch_vote = nn.Conv2d(last, 1, 1)
        self.embedding = nn.Embedding(conditions, last)
        self.coarse = nn.Conv2d(last, last, 4, stride=2, padding=1)
        self.whole_vote = nn.Linear(last * (_PATCHES_PX // 2) ** 2, 1 + conditions)
        self.register_buffer("position", position_map(image_size), persistent=False)
        self.register_buffer("mask", field_of_view_mask(image_size), persistent=False)
        nn.init.zeros_(self.embedding.weight)

    def forward(self, images_BCSS: Tensor, conditions_B: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] and (B,) to votes (B, V)."""
        # Cameras may print marks outside the field of view, where nothing can be drawn.
        inside = (images_BCSS + 1) * self.mask - 1
        features = torch.cat([inside, self.position.expand(len(inside), -1, -1, -1)], dim=1)
        for block in (*self.blocks, self.body):
            features = functional.leaky_relu(block(features), 0.2)
        # Conditions as in the projection discriminator of Miyato and Koyama 2018.
        fitting = features * self.embedding(conditions_B)[:, :, None, None]
        patches = self.patch_vote(features)[:, 0] + fitting.sum(1) / math.sqrt(features.shape[1])
        whole = self.whole_vote(functional.leaky_relu(self.coarse(features), 0.2).flatten(1))
        vote = whole[:, :1] + whole[:, 1:].gather(1, conditions_B[:, None])
        return torch.cat([patches.flatten(1), vote.expand(-1, _WHOLE_VOTES)], dim=1)


def steepness(discriminator: Discriminator, real: Tensor, conditions_B: Tensor) -> Tensor:
    """Mean squared gradient at real images: the R1 penalty of Mescheder et al. 2018."""
    images = real.detach().requires_grad_(True)
    votes = discriminator(images, conditions_B).mean(1).sum()
    (gradient,) = torch.autograd.grad(votes, images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()
