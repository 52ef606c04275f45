"""Conditional convolutional variational autoencoder.

Kingma and Welling 2014; conditioning as in Sohn et al. 2015, by modulation of every norm.
The decoder is the generator of a study; the encoder serves training only.

Legend of axes: B batch, C channels, S side of the image, Z latent, E embedding.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from fundusgen.errors import ModelError
from fundusgen.models.blocks import (
    ConditionNorm,
    DownBlock,
    Sketch,
    ToImage,
    UpBlock,
    doubled,
    field_of_view_mask,
)

_SMALLEST_PX = 4
_MAX_WIDTH_FACTOR = 8
# Channels that the latent vector draws straight onto the features of a side in pixels.
_SKETCH_CHANNELS = {16: 8}
_FIRST_SPREAD = 0.1
_ENCODED_AT_ONCE = 256
# Mean colour inside the field of view of phantoms: where drawing begins, known without a patient.
_FUNDUS_RGB = (0.60, 0.29, 0.14)


class Encoder(nn.Module):
    """Images and conditions to the mean and log-variance of the latent vector."""

    def __init__(self, image_size: int, conditions: int, width: int, latent: int) -> None:
        """Make the encoder; see `VAE`."""
        super().__init__()
        channels = [3, width, *_channels(image_size, width)[:-1]]
        self.embedding = nn.Embedding(conditions, 2 * width)
        self.blocks = nn.ModuleList(
            DownBlock(before, after, 2 * width) for before, after in itertools.pairwise(channels)
        )
        self.head = nn.Linear(channels[-1] * _SMALLEST_PX**2, 2 * latent)

    def forward(self, images_BCSS: Tensor, conditions_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) in [-1, 1] and (B,) to two (B, Z)."""
        embedding_BE = self.embedding(conditions_B)
        features = images_BCSS
        for block in self.blocks:
            features = block(features, embedding_BE)
        mean_BZ, log_variance_BZ = self.head(features.flatten(1)).chunk(2, dim=1)
        # Bounded, so that one extreme patient cannot overflow the loss of a whole round.
        return mean_BZ, log_variance_BZ.clamp(-10, 10)


class Decoder(nn.Module):
    """Latent vectors and conditions to images: the generator.

    An image at every level, added up from coarse to fine (Karras et al. 2020, "skip"): what the
    coarse levels learn from few and noisy steps does not pass through the fine weights.
    """

    mask: Tensor
    place: Tensor
    spread: Tensor

    def __init__(self, image_size: int, conditions: int, width: int, latent: int) -> None:
        """Make the decoder; see `VAE`."""
        super().__init__()
        channels = _channels(image_size, width)[::-1]
        embedding = 4 * width
        self.embedding = nn.Embedding(conditions, embedding)
        self.from_latent = nn.Linear(latent, embedding)
        self.root = nn.Linear(latent + embedding, channels[0] * _SMALLEST_PX**2)
        self.entry = nn.Conv2d(channels[0], channels[0], 3, padding=1)
        self.entry_norm = ConditionNorm(channels[0], embedding)
        levels = [*channels, width]
        self.blocks = nn.ModuleList(
            UpBlock(before, after, embedding) for before, after in itertools.pairwise(levels)
        )
        self.sketches = nn.ModuleDict(
            {
                str(size): Sketch(
                    latent, levels[(size // _SMALLEST_PX).bit_length() - 1], size, few
                )
                for size, few in _SKETCH_CHANNELS.items()
            }
        )
        first = torch.tensor(_FUNDUS_RGB).mul(2).sub(1).atanh()
        self.to_image = nn.ModuleList(
            ToImage(level, _SMALLEST_PX * 2**step, first if step == 0 else torch.zeros(3))
            for step, level in enumerate(levels)
        )
        self.register_buffer("mask", field_of_view_mask(image_size), persistent=False)
        # Kept with the weights; a standard normal until `settle` says otherwise.
        self.register_buffer("place", torch.zeros(conditions, latent))
        self.register_buffer("spread", torch.eye(latent).repeat(conditions, 1, 1))
        with torch.no_grad():
            # Conditions begin close together: a rare one then starts from what the others learn.
            self.embedding.weight.mul_(_FIRST_SPREAD)

    def forward(self, noise_BZ: Tensor, conditions_B: Tensor) -> Tensor:
        """Draw: standard normal (B, Z) and (B,) to (B, 3, S, S), as of `decode`."""
        return self.decode(self.placed(noise_BZ, conditions_B), conditions_B)

    def placed(self, noise_BZ: Tensor, conditions_B: Tensor) -> Tensor:
        """Standard normal (B, Z) to latent vectors (B, Z) as the encoder gives them.

        Spread as for the public images that `VAE.settle` saw last: a decoder draws well what it
        was trained to decode.
        """
        spread_BZ = torch.einsum("bij,bj->bi", self.spread[conditions_B], noise_BZ)
        return self.place[conditions_B] + spread_BZ

    def decode(self, latent_BZ: Tensor, conditions_B: Tensor) -> Tensor:
        """(B, Z) and (B,) to (B, 3, S, S) in [-1, 1], black outside the field of view."""
        condition_BE = self.embedding(conditions_B)
        style_BE = functional.silu(condition_BE + self.from_latent(latent_BZ))
        root = self.root(torch.cat([latent_BZ, condition_BE], dim=1))
        features = self.entry(root.unflatten(1, (-1, _SMALLEST_PX, _SMALLEST_PX)))
        features = functional.silu(self.entry_norm(features, style_BE))
        image = self.to_image[0](features)
        for block, to_image in zip(self.blocks, self.to_image[1:], strict=True):
            features = block(features, style_BE)
            size = str(features.shape[-1])
            if size in self.sketches:
                features = features + self.sketches[size](latent_BZ)
            image = doubled(image) + to_image(features)
        drawn_BCSS: Tensor = (torch.tanh(image) + 1) * self.mask - 1
        return drawn_BCSS


class VAE(nn.Module):
    """Encoder and decoder with their evidence lower bound, one value a sample.

    Args:
        image_size: Side in pixels: 32, 64, 128 or 256.
        conditions: Number of conditions.
        width: Channels of the finest level, a multiple of 4.
        latent: Length of the latent vector.
        pixel_std: Standard deviation of the pixel likelihood, in units of [-1, 1].
        beta: Weight of the KL term (Higgins et al. 2017); above 1, only what moves many pixels is
            worth a latent dimension, and samples lie nearer to what was learned.

    Raises:
        ModelError: An argument is out of its range.
    """

    def __init__(
        self,
        *,
        image_size: int,
        conditions: int,
        width: int,
        latent: int,
        pixel_std: float = 0.15,
        beta: float = 1.0,
    ) -> None:
        """Make the network with torch's own initialisation."""
        super().__init__()
        if image_size not in (32, 64, 128, 256):
            raise ModelError(f"image_size is {image_size}", expected="32, 64, 128 or 256")
        if width < 4 or width % 4:
            raise ModelError(f"width is {width}", expected="a positive multiple of 4")
        self.latent = latent
        self.image_size = image_size
        self.pixel_std = pixel_std
        self.beta = beta
        self.encoder = Encoder(image_size, conditions, width, latent)
        self.decoder = Decoder(image_size, conditions, width, latent)

    @torch.no_grad()
    def settle(self, images_NCSS: Tensor, conditions_N: Tensor) -> None:
        """Let the decoder draw from where the encoder puts some images. Public images only.

        A Gaussian for each condition (Ghosh et al. 2020, "ex-post density estimation"), which
        leans on that of all conditions the more, the fewer images the condition has.

        Args:
            images_NCSS: (N, 3, S, S) in [-1, 1], N at least 1; never of a patient: their
                mean and covariance would become part of the weights.
            conditions_N: (N,) int64 indices.
        """
        encoded = [
            self.encoder(images, conditions)
            for images, conditions in zip(
                torch.split(images_NCSS, _ENCODED_AT_ONCE),
                torch.split(conditions_N, _ENCODED_AT_ONCE),
                strict=True,
            )
        ]
        # In double precision, so that a thin direction among long ones has a root.
        mean_NZ = torch.cat([mean for mean, _ in encoded]).cpu().double()
        variance_NZ = torch.cat([log_variance for _, log_variance in encoded]).cpu().double().exp()
        conditions_N = conditions_N.cpu()
        for condition in range(len(self.decoder.place)):
            # All images together weigh as much as Z of the condition's own.
            chosen_N = (conditions_N == condition).to(mean_NZ.dtype)
            weight_N = chosen_N + self.latent / len(chosen_N)
            weight_N = weight_N / weight_N.sum()
            place_Z = weight_N @ mean_NZ
            centred_NZ = mean_NZ - place_Z
            covariance_ZZ = (centred_NZ * weight_N[:, None]).T @ centred_NZ
            covariance_ZZ = covariance_ZZ + torch.diag(weight_N @ variance_NZ)
            self.decoder.place[condition] = place_Z
            self.decoder.spread[condition] = torch.linalg.cholesky(covariance_ZZ)

    def forward(
        self, images_BCSS: Tensor, conditions_B: Tensor, noise_BZ: Tensor, kl_weight: float = 1.0
    ) -> Tensor:
        """Negative evidence lower bound in nats a pixel value, up to a constant: (B,).

        Args:
            images_BCSS: (B, 3, S, S) in [-1, 1].
            conditions_B: (B,) int64 indices.
            noise_BZ: (B, Z) standard normal: the reparameterisation noise.
            kl_weight: Weight of the KL term, in [0, 1] during warm-up.
        """
        mean_BZ, log_variance_BZ = self.encoder(images_BCSS, conditions_B)
        latent_BZ = mean_BZ + noise_BZ * torch.exp(0.5 * log_variance_BZ)
        drawn_BCSS = self.decoder.decode(latent_BZ, conditions_B)
        squared_B = ((drawn_BCSS - images_BCSS) ** 2).flatten(1).mean(1)
        divergence_B = self.divergence(mean_BZ, log_variance_BZ)
        losses_B: Tensor = squared_B / (2 * self.pixel_std**2) + kl_weight * divergence_B
        return losses_B

    def divergence(self, mean_BZ: Tensor, log_variance_BZ: Tensor) -> Tensor:
        """KL term of the bound with its weight `beta`, in nats a pixel value: (B,)."""
        kl_BZ = 0.5 * (mean_BZ**2 + log_variance_BZ.exp() - 1 - log_variance_BZ)
        return kl_BZ.sum(1) * (self.beta / (3 * self.image_size**2))


def _channels(image_size: int, width: int) -> list[int]:
    """Channels after each halving, from fine to coarse, down to 4 px."""
    levels = (image_size // _SMALLEST_PX).bit_length() - 1
    return [width * min(2 ** (level + 1), _MAX_WIDTH_FACTOR) for level in range(levels)]
