"""How each family of models learns from public images, a step at a time.

The VAE learns with a critic (Larsen et al. 2016). The evidence lower bound holds colours and
layout to the image that was encoded, and compares both no finer than a few pixels: what is finer
cannot be foretold from a short latent vector, and the mean of all that it may be is a blur. There
the critic decides alone.

The GAN plays its own game. Both are regularised by the gradient at public images, which is why
nothing here may ever see a photograph of a patient.

Legend of axes: B batch, C channels, S side of the image, Z latent, N noise.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import convert_conv2d_weight_memory_format

from fundusgen.federation.weights import Weights
from fundusgen.models.discriminator import Discriminator, steepness
from fundusgen.models.factory import Model, load_weights
from fundusgen.models.gan import GAN
from fundusgen.models.losses import loss_of_generator, loss_on_drawn, loss_on_real
from fundusgen.models.vae import VAE, Encoder, divergence, settle
from fundusgen.study import AdversarialLoss, Study

# Share of the steps over which the KL term and the critic's say grow to their full weight.
_WARM_UP = 0.1
# Adam's decay of the moments; with 0.9 for the first, two networks chase each other.
BETAS = (0.5, 0.99)
_SAY, _STEEPNESS, STEEPNESS_EVERY = 0.3, 0.05, 8
_CRITIC_WIDTH = 32
# Share of the steps in which a GAN's generator is taught by an encoder, and that VAE's settings.
_TAUGHT, _PIXEL_STD, _BETA = 0.6, 0.15, 4.0
# Images are compared at this side.
_COMPARED_PX = 16


class Learner(ABC):
    """A model that learns from public images.

    Args:
        networks: The networks that learn, each with an optimizer of its own.
        learning_rate: Constant for the first half, then falling to nothing.
    """

    def __init__(self, networks: tuple[nn.Module, ...], learning_rate: float) -> None:
        """Give each network its Adam."""
        for network in networks:
            # On processors, convolutions with channels last take two thirds of the time.
            convert_conv2d_weight_memory_format(network, torch.channels_last)
        self.learning_rate = learning_rate
        self.optimizers = [
            torch.optim.Adam(network.parameters(), learning_rate, betas=BETAS)
            for network in networks
        ]
        self.steps = 0

    @property
    def critic(self) -> nn.Module | None:
        """What judges the model and is no part of it, if anything does."""
        return None

    @abstractmethod
    def settle(self, average: Model, images: Tensor, conditions_B: Tensor) -> None:
        """Let the moving average of the model draw from where images lie in its latent space."""

    def step(
        self, images: Tensor, conditions_B: Tensor, draws: torch.Generator, done: float
    ) -> None:
        """Take a step on a batch, when a share of all steps is done."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * min(1.0, 2 * (1 - done))
        self._take_step(images, conditions_B, draws, done)
        self.steps += 1

    @abstractmethod
    def _take_step(
        self, images: Tensor, conditions_B: Tensor, draws: torch.Generator, done: float
    ) -> None:
        """Change the networks."""


class VaeLearner(Learner):
    """VAE and critic: a step of both.

    Args:
        model: The VAE.
        study: Gives image size and conditions.
        learning_rate: See `Learner`.
        seed: Of a new critic's first weights.
        begin: Those of a critic that has judged before.
    """

    def __init__(
        self, model: VAE, study: Study, learning_rate: float, seed: int, begin: Weights | None
    ) -> None:
        """Make the critic, or go on with one."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            critic = Discriminator(study.image_size, len(study.conditions), _CRITIC_WIDTH)
        if begin:
            load_weights(critic, {name: torch.from_numpy(array) for name, array in begin.items()})
        # One that has judged before is listened to at once.
        self.warm_up = 0.0 if begin else _WARM_UP
        self.model = model
        self.device = next(model.parameters()).device
        self._critic = critic.to(self.device)
        super().__init__((model, self._critic), learning_rate)

    @property
    def critic(self) -> nn.Module:
        """The network that tells phantoms from what the model draws."""
        return self._critic

    def settle(self, average: Model, images: Tensor, conditions_B: Tensor) -> None:
        """Let the average draw from where its own encoder puts images."""
        if not isinstance(average, VAE):
            raise TypeError("the average of a VAE is a VAE")
        average.settle(images, conditions_B)

    def _take_step(
        self, images: Tensor, conditions_B: Tensor, draws: torch.Generator, done: float
    ) -> None:
        own, critics = self.optimizers
        weight = min(1.0, done / self.warm_up) if self.warm_up else 1.0
        mean_BZ, log_variance_BZ = self.model.encoder(images, conditions_B)
        noise_BZ = torch.randn(mean_BZ.shape, generator=draws).to(self.device)
        latent_BZ = mean_BZ + noise_BZ * torch.exp(0.5 * log_variance_BZ)
        drawn = self.model.decoder.decode(latent_BZ, conditions_B)

        loss = loss_of_discriminator(self._critic, images, drawn, conditions_B, "logistic")
        if self.steps % STEEPNESS_EVERY == 0:
            loss = loss + price_of_steepness(self._critic, images, conditions_B)
        descend([critics], loss)

        self._critic.requires_grad_(False)
        kl_B = self.model.divergence(mean_BZ, log_variance_BZ)
        bound = (_far(drawn, images, self.model.pixel_std) + weight * kl_B).mean()
        say = loss_of_generator(self._critic(drawn, conditions_B), "logistic").mean()
        descend([own], bound + _SAY * weight * say)
        self._critic.requires_grad_(True)


class GanLearner(Learner):
    """Generator and discriminator: a step of both.

    A new generator first learns as the decoder of a VAE whose critic is the discriminator: a
    game alone is long in finding out where vessels run. Then its encoder is forgotten, latent
    vectors are drawn from where it put the images, and the game decides alone.

    Args:
        model: The GAN.
        study: Gives image size and conditions.
        learning_rate: See `Learner`.
        seed: Of the encoder's first weights.
        again: Whether the generator has learned from such images before, and needs no encoder.
    """

    def __init__(
        self, model: GAN, study: Study, learning_rate: float, seed: int, *, again: bool
    ) -> None:
        """Make the encoder, unless it is past that."""
        self.model = model
        self.device = next(model.parameters()).device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = Encoder(
                study.image_size, len(study.conditions), study.model.width, model.latent
            )
        self.encoder = encoder.to(self.device)
        self.taught = 0.0 if again else _TAUGHT
        super().__init__((model.generator, model.discriminator, self.encoder), learning_rate)

    def settle(self, average: Model, images: Tensor, conditions_B: Tensor) -> None:
        """Draw from where the encoder puts images as long as it teaches, and then no more."""
        if not isinstance(average, GAN):
            raise TypeError("the average of a GAN is a GAN")
        own = self.model.generator
        if self.taught:
            settle(own, self.encoder, images, conditions_B)
        average.generator.place.copy_(own.place)
        average.generator.spread.copy_(own.spread)

    def _take_step(
        self, images: Tensor, conditions_B: Tensor, draws: torch.Generator, done: float
    ) -> None:
        generators, discriminators, encoders = self.optimizers
        model = self.model
        self.taught = self.taught if done < self.taught else 0.0
        noise_BN = torch.randn(len(images), model.noise_length, generator=draws).to(self.device)
        bound: Tensor | float = 0.0
        say = 1.0
        if self.taught:
            weight = min(1.0, done / (_WARM_UP * self.taught))
            noise_BZ, grain_BG = noise_BN[:, : model.latent], noise_BN[:, model.latent :]
            mean_BZ, log_variance_BZ = self.encoder(images, conditions_B)
            latent_BZ = mean_BZ + noise_BZ * torch.exp(0.5 * log_variance_BZ)
            drawn = model.generator.decode(latent_BZ, conditions_B, grain_BG)
            kl_B = _BETA * divergence(mean_BZ, log_variance_BZ) / images[0].numel()
            bound = (_far(drawn, images, _PIXEL_STD) + weight * kl_B).mean()
            say = _SAY * weight
        else:
            drawn = model.draw(noise_BN, conditions_B)

        loss = loss_of_discriminator(model.discriminator, images, drawn, conditions_B, model.loss)
        if self.steps % STEEPNESS_EVERY == 0:
            loss = loss + price_of_steepness(model.discriminator, images, conditions_B)
        descend([discriminators], loss)

        model.discriminator.requires_grad_(False)
        votes = model.discriminator(drawn, conditions_B)
        taught = [encoders] if self.taught else []
        descend([generators, *taught], bound + say * loss_of_generator(votes, model.loss).mean())
        model.discriminator.requires_grad_(True)


def learner_for(
    model: Model,
    study: Study,
    learning_rate: float,
    seed: int,
    *,
    again: bool,
    critic: Weights | None,
) -> Learner:
    """Make the learner of a model's family; for the arguments, see there."""
    if isinstance(model, GAN):
        return GanLearner(model, study, learning_rate, seed, again=again)
    return VaeLearner(model, study, learning_rate, seed, critic)


def descend(optimizers: Sequence[torch.optim.Optimizer], loss: Tensor) -> None:
    """Take one step down a loss."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    for optimizer in optimizers:
        optimizer.step()


def price_of_steepness(
    discriminator: Discriminator, images: Tensor, conditions_B: Tensor
) -> Tensor:
    """R1 penalty on half a batch of public images, for a step out of `STEEPNESS_EVERY`.

    Seldom, and as much stronger (Karras et al. 2020): it costs as much as a step.
    """
    half = -(-len(images) // 2)
    penalty = steepness(discriminator, images[:half], conditions_B[:half])
    return STEEPNESS_EVERY * _STEEPNESS / 2 * penalty


def loss_of_discriminator(
    discriminator: Discriminator,
    real: Tensor,
    drawn: Tensor,
    conditions_B: Tensor,
    kind: AdversarialLoss,
) -> Tensor:
    """What a discriminator pays: it should vote for the real images and against the drawn."""
    votes = discriminator(
        torch.cat([real, drawn.detach()]), torch.cat([conditions_B, conditions_B])
    )
    on_real, on_drawn = votes.chunk(2)
    return loss_on_real(on_real, kind).mean() + loss_on_drawn(on_drawn, kind).mean()


def _far(drawn: Tensor, images: Tensor, pixel_std: float) -> Tensor:
    """How far drawings are from the images that were encoded, with what is fine left out: (B,)."""
    squared_B = (_coarse(drawn) - _coarse(images)).square().flatten(1).mean(1)
    return squared_B / (2 * pixel_std**2)


def _coarse(images: Tensor) -> Tensor:
    """Average what is finer than the bound compares."""
    return functional.avg_pool2d(images, max(1, images.shape[-1] // _COMPARED_PX))
