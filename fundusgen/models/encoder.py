"""The vote space: a network that reads the simulator's parameters off a photograph.

Trained on phantoms alone, whose parameters are known, so it is public. Photographs and phantoms
that it gives like numbers for look alike in what the simulator can vary: colour and illumination,
sharpness, disc, vessels, lesions. What cannot be read off a picture it leaves at its mean, so that
this weighs nothing in a distance. It is another space than those in which quality is scored.

Legend of axes: B batch, C channels, S side of the image, D parameters.
"""

import itertools

from torch import Tensor, nn
from torch.nn import functional

from fundusgen.errors import ModelError
from fundusgen.models.activations import silu

_SMALLEST_PX, _LARGEST_PX = 4, 64
_WIDTH = 16


class ParameterEncoder(nn.Module):
    """Photographs to the simulator's parameters, in units of their spread over phantoms.

    Args:
        image_size: Side in pixels: 32, 64, 128 or 256. Larger pictures are read at 64 px.
        outputs: Number of parameters D.

    Raises:
        ModelError: An argument is out of its range.
    """

    def __init__(self, image_size: int, outputs: int) -> None:
        """Make the network with torch's own initialisation."""
        super().__init__()
        if image_size not in (32, 64, 128, 256) or outputs < 1:
            raise ModelError(
                f"an encoder of {image_size} px to {outputs} parameters was asked for",
                expected="32, 64, 128 or 256 px, and at least 1 parameter",
            )
        self.read_px = min(image_size, _LARGEST_PX)
        levels = (self.read_px // _SMALLEST_PX).bit_length() - 1
        channels = [3, *(_WIDTH * min(2**level, 4) for level in range(levels))]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=2, padding=1)
            for before, after in itertools.pairwise(channels)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(after // 4, after) for after in channels[1:])
        self.hidden = nn.Linear(channels[-1] * _SMALLEST_PX**2, 4 * _WIDTH)
        self.head = nn.Linear(4 * _WIDTH, outputs)

    def forward(self, images_BCSS: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] to (B, D)."""
        features = images_BCSS
        if features.shape[-1] > self.read_px:
            features = functional.avg_pool2d(features, features.shape[-1] // self.read_px)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            features = silu(norm(conv(features)))
        read_BD: Tensor = self.head(silu(self.hidden(features.flatten(1))))
        return read_BD
