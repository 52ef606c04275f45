"""Conditional convolutional variational autoencoder.

Kingma and Welling 2014; conditioning as in Sohn et al. 2015, by modulation of every norm.
The decoder is the generator of a study; the encoder serves training only.

Legend of axes: B batch, C channels, S side of the image, Z latent, E embedding.
"""

import itertools

import torch
from torch import Tensor, nn

from fundusgen.models.blocks import DownBlock
from fundusgen.models.synthesis import SMALLEST_PX, Decoder, level_channels

_ENCODED_AT_ONCE = 256


class Encoder(nn.Module):
    """Images and conditions to the mean and log-variance of the latent vector."""

    def __init__(self, image_size: int, conditions: int, width: int, latent: int) -> None:
        """Make the encoder; see `VAE`."""
        super().__init__()
        channels = [3, width, *level_channels(image_size, width)[:-1]]
        self.embedding = nn.Embedding(conditions, 2 * width)
        self.blocks = nn.ModuleList(
            DownBlock(before, after, 2 * width) for before, after in itertools.pairwise(channels)
        )
        self.head = nn.Linear(channels[-1] * SMALLEST_PX**2, 2 * latent)

    def forward(self, images_BCSS: Tensor, conditions_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) in [-1, 1] and (B,) to two (B, Z)."""
        embedding_BE = self.embedding(conditions_B)
        features = images_BCSS
        for block in self.blocks:
            features = block(features, embedding_BE)
        mean_BZ, log_variance_BZ = self.head(features.flatten(1)).chunk(2, dim=1)
        # Bounded, so that one extreme patient cannot overflow the loss of a whole round.
        return mean_BZ, log_variance_BZ.clamp(-10, 10)


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
        self.latent = latent
        self.image_size = image_size
        self.pixel_std = pixel_std
        self.beta = beta
        self.decoder = Decoder(image_size, conditions, width, latent)
        self.encoder = Encoder(image_size, conditions, width, latent)

    @property
    def noise_length(self) -> int:
        """Standard normal numbers that an image is drawn from."""
        return self.latent

    def draw(self, noise_BZ: Tensor, conditions_B: Tensor) -> Tensor:
        """(B, Z) standard normal and (B,) to (B, 3, S, S) in [-1, 1]."""
        drawn_BCSS: Tensor = self.decoder(noise_BZ, conditions_B)
        return drawn_BCSS

    def settle(self, images_NCSS: Tensor, conditions_N: Tensor) -> None:
        """Let the decoder draw from where the encoder puts some images; see `settle`."""
        settle(self.decoder, self.encoder, images_NCSS, conditions_N)

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
        return divergence(mean_BZ, log_variance_BZ) * (self.beta / (3 * self.image_size**2))


def divergence(mean_BZ: Tensor, log_variance_BZ: Tensor) -> Tensor:
    """Kullback-Leibler divergence of Gaussians from a standard normal, in nats: (B,)."""
    kl_BZ = 0.5 * (mean_BZ**2 + log_variance_BZ.exp() - 1 - log_variance_BZ)
    return kl_BZ.sum(1)


@torch.no_grad()
def settle(decoder: Decoder, encoder: Encoder, images_NCSS: Tensor, conditions_N: Tensor) -> None:
    """Let a decoder draw from where an encoder puts some images. Public images only.

    A Gaussian for each condition (Ghosh et al. 2020, "ex-post density estimation"), which leans
    on that of all conditions the more, the fewer images the condition has.

    Args:
        decoder: Gets the Gaussians.
        encoder: Of as many latent dimensions.
        images_NCSS: (N, 3, S, S) in [-1, 1], N at least 1; never of a patient: their mean and
            covariance would become part of the weights.
        conditions_N: (N,) int64 indices.
    """
    encoded = [
        encoder(images, conditions)
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
    for condition in range(len(decoder.place)):
        # All images together weigh as much as Z of the condition's own.
        chosen_N = (conditions_N == condition).to(mean_NZ.dtype)
        weight_N = chosen_N + mean_NZ.shape[1] / len(chosen_N)
        weight_N = weight_N / weight_N.sum()
        place_Z = weight_N @ mean_NZ
        centred_NZ = mean_NZ - place_Z
        covariance_ZZ = (centred_NZ * weight_N[:, None]).T @ centred_NZ
        covariance_ZZ = covariance_ZZ + torch.diag(weight_N @ variance_NZ)
        decoder.place[condition] = place_Z
        decoder.spread[condition] = torch.linalg.cholesky(covariance_ZZ)
