"""Building blocks that every network here is made of.

All are safe for DP-SGD: no layer mixes the samples of a batch and none keeps statistics.
`require_private_layers` holds a finished network to that.

Legend of axes: B batch, C channels, H height, W width, E embedding.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fundusgen.errors import ModelError
from fundusgen.models.activations import silu

# Layers whose output for one sample depends on the others, or which keep running statistics of
# patients outside the clipped gradient. Abadi et al. 2016 needs one gradient a sample.
_MIXING = (nn.modules.batchnorm._BatchNorm, nn.LazyBatchNorm1d)
# Layers that crash on an empty Poisson batch on the functorch path of Opacus 1.6.
_EMPTY_BATCH = (nn.modules.conv._ConvTransposeNd,)


class ConditionNorm(nn.Module):
    """GroupNorm whose scale and shift are a function of an embedding (FiLM).

    Perez et al. 2018. Starts as a plain GroupNorm, since the modulation starts at zero.
    """

    def __init__(self, channels: int, embedding: int) -> None:
        """Make the norm for `channels` (a multiple of 4) and its modulation."""
        super().__init__()
        self.norm = nn.GroupNorm(channels // 4, channels, affine=False)
        self.modulation = nn.Linear(embedding, 2 * channels)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, features_BCHW: Tensor, embedding_BE: Tensor) -> Tensor:
        """Normalise and modulate."""
        scale_BC, shift_BC = self.modulation(embedding_BE).chunk(2, dim=1)
        normed_BCHW = self.norm(features_BCHW)
        return torch.addcmul(
            shift_BC[:, :, None, None], normed_BCHW, 1 + scale_BC[:, :, None, None]
        )


class DownBlock(nn.Module):
    """Halve the resolution: strided convolution, modulated norm, SiLU."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int) -> None:
        """Make the block."""
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1)
        self.norm = ConditionNorm(channels_out, embedding)

    def forward(self, features_BCHW: Tensor, embedding_BE: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H/2, W/2)."""
        return silu(self.norm(self.conv(features_BCHW), embedding_BE))


class UpBlock(nn.Module):
    """Double the resolution: bilinear upsampling, convolution, modulated norm, SiLU.

    Bilinear, since noise in the weights behind nearest upsampling shows as a grid of blocks.
    """

    def __init__(self, channels_in: int, channels_out: int, embedding: int) -> None:
        """Make the block."""
        super().__init__()
        # Mixes channels where there are few pixels, for half the work.
        self.mix = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.conv = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.norm = ConditionNorm(channels_out, embedding)

    def forward(self, features_BCHW: Tensor, embedding_BE: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', 2H, 2W)."""
        finer_BCHW = doubled(self.mix(features_BCHW))
        return silu(self.norm(self.conv(finer_BCHW), embedding_BE))


class Sketch(nn.Module):
    """Features drawn by the latent vector itself, with no layer in between.

    From the coarsest level alone, a network is long in learning to place what is small and lies
    elsewhere in every image, such as vessels.
    """

    def __init__(self, latent: int, channels: int, size: int, few: int) -> None:
        """Draw `few` channels of (`size`, `size`), mixed into `channels`."""
        super().__init__()
        self.shape = (few, size, size)
        self.draw = nn.Linear(latent, few * size**2)
        self.mix = nn.Conv2d(few, channels, 1)

    def forward(self, latent_BZ: Tensor) -> Tensor:
        """(B, Z) to (B, C, S, S)."""
        features_BCSS: Tensor = self.mix(self.draw(latent_BZ).unflatten(1, self.shape))
        return features_BCSS


class Grain(nn.Module):
    """Noise of every pixel added to features, as strong as each channel has learned.

    Karras et al. 2019, "Style-based generator". Starts as nothing.
    """

    def __init__(self, channels: int, size: int) -> None:
        """Make the layer for features of (B, `channels`, `size`, `size`)."""
        super().__init__()
        self.size = size
        self.strength = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, features_BCSS: Tensor, noise_BG: Tensor) -> Tensor:
        """Add (B, S * S) standard normal noise to (B, C, S, S)."""
        noise_B1SS = noise_BG.view(-1, 1, self.size, self.size)
        return features_BCSS + self.strength * noise_B1SS


class ToImage(nn.Module):
    """Features to the colours of one level, told where each pixel is."""

    position: Tensor

    def __init__(self, channels: int, size: int, first: Tensor) -> None:
        """Make the layer for features of (B, `channels`, `size`, `size`).

        It begins by giving the colour `first`, (3,), whatever the features are: what is drawn
        before the first step would have to be unlearned from noisy gradients.
        """
        super().__init__()
        self.conv = nn.Conv2d(channels + 3, 3, 1)
        self.conv.weight = nn.Parameter(torch.zeros_like(self.conv.weight))
        self.conv.bias = nn.Parameter(first.clone())
        self.register_buffer("position", position_map(size), persistent=False)

    def forward(self, features_BCSS: Tensor) -> Tensor:
        """(B, C, S, S) to (B, 3, S, S), not bounded."""
        position = self.position.expand(features_BCSS.shape[0], -1, -1, -1)
        colours_BCSS: Tensor = self.conv(torch.cat([features_BCSS, position], dim=1))
        return colours_BCSS


def doubled(features_BCHW: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C, 2H, 2W), bilinear."""
    return functional.interpolate(
        features_BCHW, scale_factor=2.0, mode="bilinear", align_corners=False
    )


def field_of_view_mask(image_size: int) -> Tensor:
    """Where a framed image can be other than black: (1, 1, S, S), 1 inside, 0 outside.

    Framing puts the field of view of every camera into the same circle, so this is public.
    """
    axis_S = torch.arange(image_size, dtype=torch.float32) + 0.5 - image_size / 2
    radius_SS = torch.sqrt(axis_S[:, None] ** 2 + axis_S[None, :] ** 2)
    return (image_size / 2 + 0.5 - radius_SS).clamp(0, 1)[None, None]


def position_map(size: int) -> Tensor:
    """Coordinates of a square grid: (1, 3, S, S) with x, y and radius in [-1, 1.42].

    A network that is told where it draws needs no noisy gradients to find out.
    """
    axis_S = torch.linspace(-1, 1, size)
    y_SS, x_SS = torch.meshgrid(axis_S, axis_S, indexing="ij")
    return torch.stack([x_SS, y_SS, torch.sqrt(x_SS**2 + y_SS**2)])[None]


def require_private_layers(model: nn.Module) -> None:
    """Refuse a network that DP-SGD cannot train soundly.

    Raises:
        ModelError: A layer mixes samples, keeps statistics, shares its parameters, is
            spectrally normalised, or fails on an empty Poisson batch.
    """
    owners: dict[int, str] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, _MIXING) or getattr(layer, "track_running_stats", False):
            raise ModelError(
                f"Layer '{name}' is a {type(layer).__name__}: its output for one patient depends "
                "on other patients, so no bound on one patient's gradient holds",
                expected="a norm within one sample",
                remedy="Use GroupNorm, or ConditionNorm of fundusgen.models.blocks",
            )
        if isinstance(layer, _EMPTY_BATCH):
            raise ModelError(
                f"Layer '{name}' is a {type(layer).__name__}, which fails on the empty batches "
                "that Poisson sampling draws",
                expected="upsampling followed by Conv2d",
                remedy="Use UpBlock of fundusgen.models.blocks",
            )
        if _is_spectrally_normalised(layer):
            raise ModelError(
                f"Layer '{name}' is spectrally normalised: its power iteration keeps state "
                "outside the clipped gradient",
                expected="weights that only the optimizer changes",
                remedy="Use weight standardisation or an equalised learning rate",
            )
        for parameter_name, parameter in layer.named_parameters(name, recurse=False):
            if id(parameter) in owners:
                raise ModelError(
                    f"Parameters '{owners[id(parameter)]}' and '{parameter_name}' are one tensor: "
                    "its gradient would be clipped twice, each time in part",
                    expected="every parameter in one layer",
                )
            owners[id(parameter)] = parameter_name


def _is_spectrally_normalised(layer: nn.Module) -> bool:
    hooks = layer._forward_pre_hooks.values()
    parametrizations = getattr(layer, "parametrizations", {})
    return any(type(hook).__name__ == "SpectralNorm" for hook in hooks) or any(
        type(part).__name__ == "_SpectralNorm"
        for parts in parametrizations.values()
        for part in parts
    )
