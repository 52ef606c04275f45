"""The generator of a GAN, which learns at the server between the rounds.

The sites' discriminators come from DP-SGD, and all that is made of them is post-processing.
Beside it, a public discriminator holds the generator to phantoms, those that won the votes where
there were any: what patients teach through noise is little, and must not cost what is known.

Legend of axes: N images, S side of the image.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fundusgen.federation.weights import Weights, average
from fundusgen.models.discriminator import Discriminator
from fundusgen.models.factory import build_model, load_weights
from fundusgen.models.gan import GAN
from fundusgen.study import Study
from fundusgen.training.device import quickest_device
from fundusgen.training.generator_steps import (
    GeneratorReport,
    GeneratorTraining,
    Judge,
    PublicCritic,
)

log = logging.getLogger("fundusgen.server")

# Most phantoms for the public discriminator; fewer where the prior has fewer.
_PHANTOMS = 2048
# Pictures of a condition whose differences are measured, and the side at which they are.
_COMPARED, _COMPARED_PX = 8, 16
# Below this share of the prior's diversity, a generator has collapsed: on average, and in any one
# condition, whose patients may all have been seen by one camera. Checkpoints of two healthy runs on
# photographs were above 0.85 in every condition.
_FLOOR, _FLOOR_OF_ONE = 0.5, 0.25

# Draws as many phantoms as it is told of the conditions whose places it is given.
Phantoms = Callable[[NDArray[np.int64]], NDArray[np.uint8]]


@dataclass(frozen=True)
class Health:
    """Whether a generator still draws pictures that differ.

    Attributes:
        diversity: Standard deviation of a pixel over pictures of one condition, in levels of 255,
            at 16 px, averaged over pixels, colours and conditions. None if a picture is not finite.
        floor: Below it, the generator has collapsed.
        collapsed_conditions: Those whose pictures have become more or less the same, while the
            prior's differ.
    """

    diversity: float | None
    floor: float
    collapsed_conditions: tuple[str, ...] = ()

    @property
    def collapsed(self) -> bool:
        """Whether pictures of a condition have become more or less one, or no picture at all."""
        return (
            self.diversity is None or self.diversity < self.floor or bool(self.collapsed_conditions)
        )


@dataclass(frozen=True)
class Trained:
    """What a round made of a generator.

    Attributes:
        weights: Of the generator.
        state: What the next round goes on with.
        report: How it went.
    """

    weights: Weights
    state: Weights
    report: GeneratorReport


class GeneratorServer:
    """Trains a study's generator between its rounds, and watches over it.

    Args:
        study: A study whose model is a GAN.
        phantoms: Where phantoms come from; None where the study has no prior.
        first: Weights before the first round, whose diversity sets the floors.
    """

    def __init__(self, study: Study, phantoms: Phantoms | None, first: Weights) -> None:
        """Measure where the generator begins."""
        self.study, self.phantoms = study, phantoms
        self._first = first
        # Random weights draw everything alike: they set no floor.
        self._at_first = (0.0,) * len(study.conditions)
        if study.prior:
            self._at_first = tuple(spread or 0.0 for spread in self._diversities(first))
        self.floor = _FLOOR * sum(self._at_first) / len(self._at_first)

    def train(
        self,
        round_number: int,
        before: Weights,
        now: Weights,
        replies: Sequence[tuple[float, Weights]],
        state: Weights,
    ) -> Trained:
        """Let the generator learn from the discriminators of a round.

        Args:
            round_number: Of the study; decides, with its seed, all that is random.
            before: All weights that the sites were sent.
            now: The same after the round; the generator's are still those of `before`.
            replies: Share and reply of each site that counts, for an ensemble.
            state: What the last round left; empty before the first.
        """
        settings = self.study.gan
        model = self._model(now)
        judges = self._judges(now, replies) if settings.ensemble else []
        # The public discriminator begins as one that no patient has trained: what the sites were
        # sent first, or, where it has to begin anew, the prior's.
        public = before if round_number == self.study.votes_rounds + 1 else self._first
        training = GeneratorTraining(model, settings, judges, self._critic(public))
        training.go_on(state)
        seed = np.random.SeedSequence([self.study.seed, round_number]).generate_state(1)[0]
        report = training.run(torch.Generator().manual_seed(int(seed)))
        weights = {
            name: value.cpu().numpy()
            for name, value in model.state_dict().items()
            if name.startswith("generator.")
        }
        state = training.state()
        if not all(np.isfinite(array).all() for array in (*weights.values(), *state.values())):
            log.warning("round %d: the generator diverged; its steps are taken back", round_number)
            kept = {name: before[name] for name in weights}
            return Trained(kept, {}, GeneratorReport(0, report.accuracy))
        return Trained(weights, state, report)

    def health(self, weights: Weights) -> Health:
        """Look at what a generator draws."""
        found = self._diversities(weights)
        finite = [spread for spread in found if spread is not None]
        alike = tuple(
            name
            for name, spread, prior in zip(
                self.study.conditions, found, self._at_first, strict=True
            )
            if spread is None or spread < _FLOOR_OF_ONE * prior
        )
        mean = sum(finite) / len(finite) if len(finite) == len(found) else None
        return Health(mean, self.floor, alike)

    def _model(self, weights: Weights) -> GAN:
        model = build_model(self.study)
        if not isinstance(model, GAN):
            raise AssertionError("a study with a GAN builds one")
        load_weights(model, {name: torch.from_numpy(value) for name, value in weights.items()})
        return model.to(quickest_device())

    def _judges(self, now: Weights, replies: Sequence[tuple[float, Weights]]) -> list[Judge]:
        """The sites' discriminators as an ensemble around that of the server.

        Each differs from the server's as a reply from the average of them. A reply by itself would
        lack what the server's optimizer has made of this round and all before.
        """
        whole = sum(share for share, _ in replies)
        middle = average(replies)
        return [
            Judge(
                self._model(
                    {**now, **{name: now[name] + reply[name] - middle[name] for name in reply}}
                ).discriminator,
                share / whole,
            )
            for share, reply in replies
        ]

    def _critic(self, public: Weights) -> PublicCritic | None:
        if self._learned_from is None:
            return None
        settings, images_NSSC, conditions_N = self.study.gan, *self._learned_from
        discriminator: Discriminator = self._model(public).discriminator
        rate = settings.generator_learning_rate
        return PublicCritic(discriminator, images_NSSC, conditions_N, settings.loss, rate)

    @cached_property
    def _learned_from(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        if self.phantoms is None or self.study.gan.phantoms_say == 0:
            return None
        count = min(_PHANTOMS, self.study.prior.phantoms if self.study.prior else 0)
        conditions_N = np.arange(count) % len(self.study.conditions)
        return self.phantoms(conditions_N), conditions_N

    @torch.inference_mode()
    def _diversities(self, weights: Weights) -> tuple[float | None, ...]:
        """Of each condition; None where a picture is not finite."""
        model, device = self._model(weights), quickest_device()
        draws = torch.Generator().manual_seed(self.study.seed)
        spreads = []
        for condition in range(model.conditions):
            noise = torch.randn(_COMPARED, model.noise_length, generator=draws).to(device)
            conditions_N = torch.full((_COMPARED,), condition, device=device)
            drawn = functional.adaptive_avg_pool2d(model.draw(noise, conditions_N), _COMPARED_PX)
            spreads.append(127.5 * float(drawn.std(0).mean()))
        return tuple(spread if np.isfinite(spread) else None for spread in spreads)
