"""Steps of a GAN's generator against discriminators that are there already.

Post-processing: what is read here are weights that sites released, or a site's own private
weights, and phantoms. No patient has any part in it, so it costs no privacy (Dwork and Roth 2014,
proposition 2.1), however many steps are taken.

Legend of axes: B batch, N noise, S side of the image, V votes of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fundusgen.federation.weights import Weights
from fundusgen.models.discriminator import Discriminator
from fundusgen.models.factory import load_weights
from fundusgen.models.gan import GAN
from fundusgen.models.losses import loss_of_generator
from fundusgen.pixels import to_network
from fundusgen.study import AdversarialLoss, GANSettings
from fundusgen.training.learners import (
    BETAS,
    STEEPNESS_EVERY,
    descend,
    loss_of_discriminator,
    price_of_steepness,
)


@dataclass(frozen=True)
class GeneratorReport:
    """What came of some steps.

    Attributes:
        steps: Steps that were taken.
        accuracy: Share of the images drawn last that the judges together knew for drawn.
    """

    steps: int
    accuracy: float


@dataclass(frozen=True)
class Judge:
    """A discriminator that has seen patients, and how much it has to say.

    Attributes:
        discriminator: Is not changed.
        share: Of the say of all judges together, which is 1.
    """

    discriminator: Discriminator
    share: float


class PublicCritic:
    """A second discriminator that learns from phantoms while a generator learns from it.

    Args:
        discriminator: Is changed.
        images_NSSC: (N, S, S, 3) uint8, phantoms as right eyes; never of a patient.
        conditions_N: (N,) places in the study's conditions.
        loss: The game.
        learning_rate: Of its Adam.
    """

    def __init__(
        self,
        discriminator: Discriminator,
        images_NSSC: NDArray[np.uint8],
        conditions_N: NDArray[np.int64],
        loss: AdversarialLoss,
        learning_rate: float,
    ) -> None:
        """Make the optimizer."""
        self.discriminator, self.loss = discriminator, loss
        self.images_NSSC = torch.from_numpy(images_NSSC)
        self.conditions_N = torch.from_numpy(conditions_N)
        self.optimizer = torch.optim.Adam(discriminator.parameters(), learning_rate, betas=BETAS)
        self.steps = 0

    def batch(self, count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Phantoms (B, 3, S, S) in [-1, 1] and their conditions (B,)."""
        chosen_B = torch.randint(len(self.conditions_N), (count,), generator=draws)
        device = next(self.discriminator.parameters()).device
        images = to_network(self.images_NSSC[chosen_B], device)
        return images, self.conditions_N[chosen_B].to(device)

    def learn(self, phantoms: Tensor, drawn: Tensor, conditions_B: Tensor) -> None:
        """Take a step on phantoms and drawn images of the same conditions."""
        loss = loss_of_discriminator(self.discriminator, phantoms, drawn, conditions_B, self.loss)
        if self.steps % STEEPNESS_EVERY == 0:
            loss = loss + price_of_steepness(self.discriminator, phantoms, conditions_B)
        descend([self.optimizer], loss)
        self.steps += 1

    def state(self) -> Weights:
        """All that it takes to go on: weights and optimizer."""
        weights = {f"weights/{k}": _array(v) for k, v in self.discriminator.state_dict().items()}
        steps = {"steps": np.array(self.steps, np.float32)}
        return {**weights, **_prefixed("adam", adam_state(self.optimizer)), **steps}

    def go_on(self, state: Weights) -> None:
        """Take up a state that `state` gave."""
        weights = {k: torch.from_numpy(v) for k, v in _part(state, "weights").items()}
        load_weights(self.discriminator, weights)
        load_adam_state(self.optimizer, _part(state, "adam"))
        self.steps = int(state["steps"])


class GeneratorTraining:
    """Trains a GAN's generator.

    Args:
        model: The GAN; its generator is changed, its discriminator is not.
        settings: Steps, batch, learning rate, and when to wait.
        judges: What the generator learns from; the model's own discriminator where absent.
        critic: What it learns from besides, with the weight `phantoms_say`.
    """

    def __init__(
        self,
        model: GAN,
        settings: GANSettings,
        judges: Sequence[Judge] = (),
        critic: PublicCritic | None = None,
    ) -> None:
        """Make the optimizer."""
        self.model, self.settings, self.critic = model, settings, critic
        self.judges = tuple(judges) or (Judge(model.discriminator, 1.0),)
        self.optimizer = torch.optim.Adam(
            model.generator.parameters(), settings.generator_learning_rate, betas=BETAS
        )

    def run(self, draws: torch.Generator) -> GeneratorReport:
        """Take steps until there were enough, or until the judges are no longer worth hearing.

        Judges that know few of the drawn images for drawn push the generator at random; then they
        are left to learn for another round. Bie et al. 2023 ("Private GANs, Revisited", section
        4.2) raise the number of discriminator steps by the same sign.

        Args:
            draws: Decides everything that is random.
        """
        accuracy, steps = 0.0, 0
        judged = [judge.discriminator for judge in self.judges]
        watched = [*judged, self.critic.discriminator] if self.critic else judged
        for discriminator in watched:
            discriminator.requires_grad_(False)
        try:
            for _ in range(self.settings.generator_steps):
                phantoms, conditions_B = self._asked(draws)
                drawn = self._drawn(conditions_B, draws)
                votes = [(judge, judge.discriminator(drawn, conditions_B)) for judge in self.judges]
                together_B = sum(judge.share * vote.detach().mean(1) for judge, vote in votes)
                accuracy = float((torch.as_tensor(together_B) < 0).float().mean())
                if accuracy < self.settings.accuracy_floor:
                    break
                self._step(drawn, conditions_B, votes)
                if self.critic is not None and phantoms is not None:
                    self.critic.discriminator.requires_grad_(True)
                    self.critic.learn(phantoms, drawn, conditions_B)
                    self.critic.discriminator.requires_grad_(False)
                steps += 1
        finally:
            for discriminator in watched:
                discriminator.requires_grad_(True)
        return GeneratorReport(steps, accuracy)

    def state(self) -> Weights:
        """All that it takes to go on besides the model's weights."""
        critic = self.critic.state() if self.critic else {}
        return {**_prefixed("adam", adam_state(self.optimizer)), **_prefixed("critic", critic)}

    def go_on(self, state: Weights) -> None:
        """Take up a state that `state` gave; an empty one begins anew."""
        load_adam_state(self.optimizer, _part(state, "adam"))
        if self.critic is not None and (critic := _part(state, "critic")):
            self.critic.go_on(critic)

    def _asked(self, draws: torch.Generator) -> tuple[Tensor | None, Tensor]:
        """Phantoms, if there are any, and the conditions of the next batch."""
        count = self.settings.generator_batch
        if self.critic is not None:
            return self.critic.batch(count, draws)
        conditions_B = torch.randint(self.model.conditions, (count,), generator=draws)
        return None, conditions_B.to(next(self.model.generator.parameters()).device)

    def _drawn(self, conditions_B: Tensor, draws: torch.Generator) -> Tensor:
        noise_BN = torch.randn(len(conditions_B), self.model.noise_length, generator=draws)
        return self.model.draw(noise_BN.to(conditions_B.device), conditions_B)

    def _step(
        self, drawn: Tensor, conditions_B: Tensor, votes: Sequence[tuple[Judge, Tensor]]
    ) -> None:
        kind = self.settings.loss
        loss = torch.stack([j.share * loss_of_generator(vote, kind).mean() for j, vote in votes])
        total = loss.sum()
        if self.critic is not None:
            said = loss_of_generator(self.critic.discriminator(drawn, conditions_B), kind)
            total = total + self.settings.phantoms_say * said.mean()
        descend([self.optimizer], total)


def adam_state(optimizer: torch.optim.Optimizer) -> Weights:
    """Moments of an Adam as arrays, by the place of the parameter."""
    return {
        f"{place}/{name}": _array(value)
        for place, moments in optimizer.state_dict()["state"].items()
        for name, value in moments.items()
    }


def load_adam_state(optimizer: torch.optim.Optimizer, arrays: Weights) -> None:
    """Take up what `adam_state` gave; nothing where it is empty."""
    moments: dict[int, dict[str, Tensor]] = {}
    for key, array in arrays.items():
        place, _, name = key.partition("/")
        moments.setdefault(int(place), {})[name] = torch.from_numpy(array.copy())
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def _array(value: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = value.detach().cpu().numpy().copy()
    return array


def _prefixed(prefix: str, arrays: Weights) -> Weights:
    return {f"{prefix}/{name}": array for name, array in arrays.items()}


def _part(arrays: Weights, prefix: str) -> Weights:
    start = f"{prefix}/"
    return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
