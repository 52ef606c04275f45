"""Training on public images: no patient is behind them, so anything may be looked at.

What the prior is fitted with before the first round, and refitted with on phantoms that were
voted for. Never on photographs: nothing here is bounded or noised.

How a model takes a step is its learner's business (`learners`); here is what learners have in
common: batches, the moving average, and when to stop.

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

from fundusgen.federation.weights import Weights
from fundusgen.models.factory import Model, build_model, load_weights
from fundusgen.models.gan import GAN
from fundusgen.pixels import to_network
from fundusgen.study import Study
from fundusgen.training.learners import learner_for
from fundusgen.training.sliced_distance import sliced_distance

Phantoms = tuple[NDArray[np.uint8], NDArray[np.int64]]

# How often the held-out images are looked at, how many looks without gain end the fit, and how
# many images a look compares.
_LOOKS, _PATIENCE, _COMPARED = 40, 12, 256
# Images whose encodings say where to draw from.
_ENCODED = 2048
_EMA_DECAY = 0.998


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
        weights: Of the model: the moving average, where what it draws was nearest to the held-out
            images, or for a GAN the last.
        step: At which they were so.
        critic: Of the network that judged it and is no part of it, as it was in the end; a later
            fit goes on with it. Empty for a GAN.
    """

    weights: Weights
    step: int
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
    again: bool = False,
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
        again: Whether the weights come from a fit to such images.
        critic: That of the fit which gave `weights`. Without it a new one has to learn first, and
            a model that draws well already follows its bad advice meanwhile. A GAN has its own.
        on_progress: Called after every step.

    Raises:
        ModelError: The weights do not fit the study's model, or the critic its size.
    """
    model = build_model(study)
    load_weights(model, {name: torch.from_numpy(array) for name, array in weights.items()})
    if steps == 0:
        return Fitted(dict(weights), 0, dict(critic or {}))
    model.to(device)
    batches = _Batches(images_NSSC, conditions_N, seed, device)
    # A GAN is at war with what the distance does not see: it gets no nearer by it, only better.
    watch = _Watch(model, _Batches(*held_out, seed, device), seed, last=isinstance(model, GAN))
    learner = learner_for(model, study, learning_rate, seed, again=again, critic=critic)
    every = max(1, steps // _LOOKS)
    for step in range(1, steps + 1):
        learner.step(*batches.next(batch), batches.draws, (step - 1) / steps)
        watch.follow(model, step)
        seen = None
        if step % every == 0 or step == steps:
            with torch.no_grad():
                learner.settle(watch.average, *batches.first(_ENCODED))
            seen = watch.look(step)
        on_progress(FitProgress(step, steps, seen))
        if watch.worse_for >= _PATIENCE:
            break
    critic = weights_of(learner.critic) if learner.critic else {}
    return Fitted(watch.best, watch.best_step, critic)


def weights_of(model: nn.Module) -> Weights:
    """Copy a model's weights to numpy."""
    return {name: value.cpu().numpy().copy() for name, value in model.state_dict().items()}


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
        images = to_network(self.images_NSSC[chosen_B], self.device)
        return images, self.conditions_N[chosen_B].to(self.device)


class _Watch:
    """The moving average of the weights, and the state in which it is wanted."""

    def __init__(self, model: Model, held_out: _Batches, seed: int, *, last: bool) -> None:
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        self.seed = seed
        self.held_out, self.conditions_N = held_out.first(_COMPARED)
        shape = (len(self.conditions_N), model.noise_length)
        self.noise_NZ = torch.randn(shape, generator=held_out.draws).to(held_out.device)
        self.best_distance, self.worse_for, self.last = math.inf, 0, last
        self.best, self.best_step = weights_of(model), 0

    @torch.no_grad()
    def follow(self, model: Model, step: int) -> None:
        """Take in the weights after a step; small decays at first forget where it began."""
        decay = min(_EMA_DECAY, step / (step + 10))
        for mean, now in zip(self.average.parameters(), model.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)

    @torch.no_grad()
    def look(self, step: int) -> float:
        """Draw with the average, compare, and keep it if it is the one that is wanted."""
        drawn = self.average.draw(self.noise_NZ, self.conditions_N)
        distance = sliced_distance(drawn, self.held_out, self.seed)
        self.worse_for += 1
        if distance < self.best_distance or (self.last and math.isfinite(distance)):
            self.best_distance, self.worse_for = distance, 0
            self.best, self.best_step = weights_of(self.average), step
        return distance
