"""Conditional generative adversarial network.

Goodfellow et al. 2014. The discriminator is what a study trains on patients; the generator only
ever learns from the discriminator.

Legend of axes: B batch, C channels, S side of the image, N noise.
"""

from torch import Tensor, nn

from fundusgen.models.discriminator import Discriminator
from fundusgen.models.losses import loss_on_drawn, loss_on_real
from fundusgen.models.synthesis import Decoder
from fundusgen.study import AdversarialLoss


class GAN(nn.Module):
    """Generator and discriminator.

    Neither has a layer that mixes the samples of a batch, and the discriminator has no spectral
    norm, whose power iteration keeps state outside the clipped gradient.

    Args:
        image_size: Side in pixels: 32, 64, 128 or 256.
        conditions: Number of conditions.
        width: Channels of the generator's finest level, a multiple of 4.
        latent: Length of the latent vector.
        discriminator_width: Channels of the discriminator's finest level.
        loss: The game that both play.

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
        discriminator_width: int,
        loss: AdversarialLoss = "logistic",
    ) -> None:
        """Make both networks with torch's own initialisation."""
        super().__init__()
        self.latent = latent
        self.conditions = conditions
        self.loss = loss
        self.generator = Decoder(image_size, conditions, width, latent, grain=True)
        self.discriminator = Discriminator(image_size, conditions, discriminator_width)

    @property
    def noise_length(self) -> int:
        """Standard normal numbers that an image is drawn from: latent vector and grain."""
        return self.latent + self.generator.grain_length

    def draw(self, noise_BN: Tensor, conditions_B: Tensor) -> Tensor:
        """(B, N) standard normal and (B,) to (B, 3, S, S) in [-1, 1]."""
        latent_BZ, grain_BG = noise_BN[:, : self.latent], noise_BN[:, self.latent :]
        latent_BZ = self.generator.placed(latent_BZ, conditions_B)
        return self.generator.decode(latent_BZ, conditions_B, grain_BG)

    def forward(self, images_BCSS: Tensor, conditions_B: Tensor, *, drawn: bool = False) -> Tensor:
        """What the discriminator pays for its votes on real images, or on drawn ones: (B,)."""
        votes_BV = self.discriminator(images_BCSS, conditions_B)
        pays = loss_on_drawn if drawn else loss_on_real
        return pays(votes_BV, self.loss).mean(1)
