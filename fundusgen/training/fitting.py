"""Training on public images: no patient is behind them, so anything may be looked at.

What the prior is fitted with before the first round, and refitted with on phantoms that were
voted for. Never on photographs: nothing here is bounded or noised.

The model learns as a VAE with a critic (Larsen et al. 2016). The evidence lower bound holds
colours and layout to the image that was encoded, and compares both no finer than a few pixels:
what is finer cannot be foretold from a short latent vector, and the mean of all that it may be
is a blur. There the critic decides alone.

Legend of axes: N images, B batch, C channels, S side of the image, Z latent.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import convert_conv2d_weight_memory_format

from fundusgen.federation.weights import Weights
from fundusgen.models.factory import build_model, load_weights
from fundusgen.models.vae import VAE
from fundusgen.study import Study
from fundusgen.training.critic import Critic, critic_loss, steepness
from fundusgen.training.sliced_distance import sliced_distance

Phantoms = tuple[NDArray[np.uint8], NDArray[np.int64]]

# How often the held-out images are looked at, how many looks without gain end the fit, and how
# many images a look compares.
_LOOKS, _PATIENCE, _COMPARED = 40, 12, 256
# Images whose encodings say where to draw from.
_ENCODED = 2048
# Share of the steps over which the KL term and the critic's say grow to their full weight.
_WARM_UP = 0.1
_EMA_DECAY = 0.998
# Adam's decay of the first moment; with 0.9, a critic and what it judges chase each other.
_BETAS = (0.5, 0.99)
_SAY, _STEEPNESS, _STEEPNESS_EVERY = 0.3, 0.05, 8
_CRITIC_WIDTH = 32
# Images are compared at this side.
_COMPARED_PX = 16


@dataclass(frozen=True)
class FitProgress:
    """How far a fit has come.

    Attributes:
        step: Steps taken.
        steps: Most steps that there will be.
        held_out_distance: From images drawn with the averaged weights to held-out ones, see
            `sliced_distance`; measured a few dozen times, None in between.
    """

    step: int
    steps: int
    held_out_distance: float | None = None


@dataclass(frozen=True)
class Fitted:
    """What a fit came to.

    Attributes:
        weights: Of the model: the moving average where what it draws was nearest to the held-out
            images.
        critic: Of the network that judged it, as it was in the end; a later fit goes on with it.
    """

    weights: Weights
    critic: Weights


def fit(
    study: Study,
    weights: Weights,
    images_NSSC: NDArray[np.uint8],
    conditions_N: NDArray[np.int64],
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    device: torch.device,
    held_out: Phantoms,
    critic: Weights | None = None,
    on_progress: Callable[[FitProgress], None] = lambda progress: None,
) -> Fitted:
    """Train all weights of the study's model on public images.

    The same arguments give the same weights on one machine with one number of torch's threads.

    Args:
        study: Gives the model.
        weights: Where to begin: a state of the study's model.
        images_NSSC: (N, S, S, 3) uint8 RGB of right eyes, none of them of a patient.
        conditions_N: (N,) places in the study's conditions.
        steps: Most steps of Adam; 0 returns the weights as they are.
        batch: Images of a step.
        learning_rate: Constant for the first half, then falling to nothing.
        seed: Of the order of the images and everything else that is random.
        device: Where to compute.
        held_out: Images and conditions that tell when to stop, at least one.
        critic: That of the fit which gave `weights`. Without it a new one has to learn first, and
            a model that draws well already follows its bad advice meanwhile.
        on_progress: Called after every step.

    Raises:
        ModelError: The weights do not fit the study's model, or the critic its size.
    """
    model = build_model(study)
    load_weights(model, {name: torch.from_numpy(array) for name, array in weights.items()})
    if steps == 0:
        return Fitted(dict(weights), dict(critic or {}))
    model.to(device)
    batches = _Batches(images_NSSC, conditions_N, seed, device)
    watch = _Watch(model, batches, _Batches(*held_out, seed, device), seed)
    learner = _Learner(model, study, learning_rate, seed, critic)
    every = max(1, steps // _LOOKS)
    for step in range(1, steps + 1):
        learner.step(*batches.next(batch), batches.draws, (step - 1) / steps)
        watch.follow(model, step)
        seen = watch.look() if step % every == 0 or step == steps else None
        on_progress(FitProgress(step, steps, seen))
        if watch.worse_for >= _PATIENCE:
            break
    return Fitted(watch.best, weights_of(learner.critic))


def weights_of(model: nn.Module) -> Weights:
    """Copy a model's weights to numpy."""
    return {name: value.cpu().numpy().copy() for name, value in model.state_dict().items()}


class _Learner:
    """Model and critic, each with its optimizer: a step of both."""

    def __init__(
        self, model: VAE, study: Study, learning_rate: float, seed: int, begin: Weights | None
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            critic = Critic(study.image_size, len(study.conditions), _CRITIC_WIDTH)
        if begin:
            load_weights(critic, {name: torch.from_numpy(array) for name, array in begin.items()})
        # One that has judged before is listened to at once.
        self.warm_up = 0.0 if begin else _WARM_UP
        self.model = model
        self.device = next(model.parameters()).device
        self.critic = critic.to(self.device)
        for network in (self.model, self.critic):
            # On processors, convolutions with channels last take two thirds of the time.
            convert_conv2d_weight_memory_format(network, torch.channels_last)
        self.learning_rate = learning_rate
        self.optimizers = [
            torch.optim.Adam(network.parameters(), learning_rate, betas=_BETAS)
            for network in (model, self.critic)
        ]
        self.steps = 0

    def step(
        self, images: Tensor, conditions_B: Tensor, draws: torch.Generator, done: float
    ) -> None:
        """Take a step on a batch, when a share of all steps is done."""
        own, critics = self.optimizers
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * min(1.0, 2 * (1 - done))
        weight = min(1.0, done / self.warm_up) if self.warm_up else 1.0
        mean_BZ, log_variance_BZ = self.model.encoder(images, conditions_B)
        noise_BZ = torch.randn(mean_BZ.shape, generator=draws).to(self.device)
        latent_BZ = mean_BZ + noise_BZ * torch.exp(0.5 * log_variance_BZ)
        drawn = self.model.decoder.decode(latent_BZ, conditions_B)

        loss = critic_loss(self.critic, images, drawn, conditions_B)
        if self.steps % _STEEPNESS_EVERY == 0:
            # Seldom, and as much stronger (Karras et al. 2020): it costs as much as a step.
            half = -(-len(images) // 2)
            penalty = steepness(self.critic, images[:half], conditions_B[:half])
            loss = loss + _STEEPNESS_EVERY * _STEEPNESS / 2 * penalty
        _descend(critics, loss)

        self.critic.requires_grad_(False)
        kl_B = self.model.divergence(mean_BZ, log_variance_BZ)
        far_B = (_coarse(drawn) - _coarse(images)).square().flatten(1).mean(1)
        bound = (far_B / (2 * self.model.pixel_std**2) + weight * kl_B).mean()
        say = functional.softplus(-self.critic(drawn, conditions_B)).mean()
        _descend(own, bound + _SAY * weight * say)
        self.critic.requires_grad_(True)
        self.steps += 1


class _Batches:
    """Batches in an order that only the seed decides, drawn anew when less than one is left."""

    def __init__(
        self,
        images_NSSC: NDArray[np.uint8],
        conditions_N: NDArray[np.int64],
        seed: int,
        device: torch.device,
    ) -> None:
        self.images_NSSC = torch.from_numpy(images_NSSC)
        self.conditions_N = torch.from_numpy(conditions_N)
        self.device = device
        self.draws = torch.Generator().manual_seed(seed)
        self.waiting_N = torch.empty(0, dtype=torch.int64)

    def next(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, S, S) in [-1, 1] and their conditions (B,)."""
        count = len(self.conditions_N)
        if len(self.waiting_N) < min(batch, count):
            self.waiting_N = torch.randperm(count, generator=self.draws)
        chosen_B, self.waiting_N = self.waiting_N[:batch], self.waiting_N[batch:]
        return self._chosen(chosen_B)

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the first images and their conditions, as `next` does."""
        return self._chosen(torch.arange(min(count, len(self.conditions_N))))

    def _chosen(self, chosen_B: Tensor) -> tuple[Tensor, Tensor]:
        images = self.images_NSSC[chosen_B].permute(0, 3, 1, 2).to(self.device, torch.float32)
        return images.div_(127.5).sub_(1), self.conditions_N[chosen_B].to(self.device)


class _Watch:
    """The moving average of the weights, and the state in which it drew best."""

    def __init__(self, model: VAE, seen: _Batches, held_out: _Batches, seed: int) -> None:
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        self.seen, self.seed = seen, seed
        self.held_out, self.conditions_N = held_out.first(_COMPARED)
        shape = (len(self.conditions_N), model.latent)
        self.noise_NZ = torch.randn(shape, generator=held_out.draws).to(held_out.device)
        self.best_distance, self.worse_for = math.inf, 0
        self.best = weights_of(model)

    @torch.no_grad()
    def follow(self, model: VAE, step: int) -> None:
        """Take in the weights after a step; small decays at first forget where it began."""
        decay = min(_EMA_DECAY, step / (step + 10))
        for mean, now in zip(self.average.parameters(), model.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)

    @torch.no_grad()
    def look(self) -> float:
        """Draw with the average, compare, and keep it if it was never nearer."""
        self.average.settle(*self.seen.first(_ENCODED))
        drawn = self.average.decoder(self.noise_NZ, self.conditions_N)
        distance = sliced_distance(drawn, self.held_out, self.seed)
        self.worse_for += 1
        if distance < self.best_distance:
            self.best_distance, self.worse_for = distance, 0
            self.best = weights_of(self.average)
        return distance


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _coarse(images: Tensor) -> Tensor:
    """Average what is finer than the bound compares."""
    return functional.avg_pool2d(images, max(1, images.shape[-1] // _COMPARED_PX))
