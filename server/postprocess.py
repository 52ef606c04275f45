"""What the server makes of a finished round: weights, moving average, pictures, checkpoint.

All of it is post-processing of mechanism outputs, which costs no privacy (Dwork and Roth 2014,
proposition 2.1). Nothing here can read an image of a patient.
"""

import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fundusgen.errors import RunError
from fundusgen.federation.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from fundusgen.federation.weights import Weights, average, mixed
from fundusgen.models.factory import build_model
from fundusgen.models.generator import Generator, save_generator
from fundusgen.models.vae import VAE
from fundusgen.pixels import to_network
from fundusgen.report.card import write_card
from fundusgen.report.page import write_report
from fundusgen.report.pictures import contact_sheet, draw_sheet, save_png
from fundusgen.run_folder import RunFolder
from fundusgen.study import Study
from fundusgen.training.device import quickest_device
from fundusgen.training.fitting import FitProgress, fit
from fundusgen.training.phantoms import study_phantoms
from fundusgen.training.population import save_population
from fundusgen.training.prior import load_prior
from server.generator import GeneratorServer, Health
from server.optimizer import server_step, variance_of_average
from server.voting import SiteVotes, Voting

log = logging.getLogger("fundusgen.server")

# Begins the names of the arrays with which the generator of a GAN goes on.
_GENERATOR = "generator/"
# Begins the names of its weights.
_GENERATED = "generator."
# Added to a seed: above any that a prior can have, so that nothing is measured on what it learned.
_NEVER_LEARNED = 2**63


class Postprocess:
    """Owns the server's state and writes the run folder.

    Args:
        study: The study.
        run: Its run folder; a checkpoint there is resumed.

    Attributes:
        state: The last finished round.
    """

    def __init__(self, study: Study, run: RunFolder) -> None:
        """Resume from the newest checkpoint, or begin with the study's first weights."""
        self.study = study
        self.run = run
        found = latest_checkpoint(run.checkpoints, study.study_hash)
        self.state = found or _first(study, run)
        self.voting = Voting(study, run) if study.stages.votes else None
        self._phantoms = _phantoms(study)
        self.generator = self._generator()

    def finish_round(
        self,
        round_number: int,
        replies: Sequence[tuple[float, Weights]],
        noises: Sequence[tuple[float, float]],
        *,
        sites: list[dict[str, object]],
        seconds: float,
    ) -> Weights:
        """Take in a round's replies and write everything that follows from them.

        Args:
            round_number: The round.
            replies: Share and weights of each site that counts.
            noises: Share of each, and standard deviation of the noise in an entry of its weights.
            sites: An entry for every site that said something.
            seconds: Of the round so far.

        Returns:
            All weights, as the sites will receive them next.
        """
        old = self.state
        # Counted from the first of DP-SGD, as the weights come from a prior or from votes.
        trained = round_number - self.study.votes_rounds
        new = average(replies)
        # The generator of sites comes without noise, and from an optimizer of their own.
        generated = {name: new.pop(name) for name in list(new) if name.startswith(_GENERATED)}
        private, optimizer = server_step(
            self.study.federation,
            old.weights,
            new,
            old.optimizer,
            trained,
            variance_of_average(list(noises)),
        )
        weights = {**old.weights, **private, **generated}
        facts: dict[str, object] = {}
        if self.generator is not None and self.study.gan.generator == "server":
            state = {k.removeprefix(_GENERATOR): v for k, v in old.optimizer.items()
                     if k.startswith(_GENERATOR)}  # fmt: skip
            made = self.generator.train(round_number, old.weights, weights, replies, state)
            weights = {**weights, **made.weights}
            optimizer |= {f"{_GENERATOR}{name}": array for name, array in made.state.items()}
            facts = {"steps": made.report.steps, "accuracy": made.report.accuracy}
        # Small at first, so that the random first weights are soon forgotten.
        decay = min(self.study.federation.ema_decay, trained / (trained + 9))
        self.state = replace(
            old,
            round_number=round_number,
            weights=weights,
            average=mixed(old.average, weights, decay),
            optimizer=optimizer,
        )
        entry: dict[str, object] = {"round": round_number, "stage": "dpsgd"}
        if self.generator is not None:
            called = f"the one of round {old.round_number}"
            entry["generator"] = {**facts, **self._watched(self.generator, old, called)}
        self._append_metrics(entry, sites, seconds)
        self._draw(round_number)
        # Last: a round without its checkpoint is asked for again, and answered from the outboxes.
        save_checkpoint(self.run.checkpoints, self.state)
        return weights

    def finish_vote(
        self,
        round_number: int,
        votes: Sequence[SiteVotes],
        *,
        sites: list[dict[str, object]],
        seconds: float,
    ) -> Weights:
        """Take in a vote, and after the last one refit the model on the phantoms that won.

        Args:
            round_number: The round, which is the number of the vote.
            votes: Of each site that counts.
            sites: An entry for every site that said something.
            seconds: Of the round so far.

        Returns:
            What the sites will be sent next: the next poll, or all weights of the model.

        Raises:
            RunError: The run folder lacks an earlier vote.
        """
        voting = self._votes_there()
        tally = voting.count(round_number, votes)
        if tally.undecided:
            log.warning(
                "vote %d: no candidate stood out of the noise for %s: they take after the others",
                round_number, ", ".join(tally.undecided),
            )  # fmt: skip
        last = round_number == self.study.votes_rounds
        old = self.state
        weights = self._refitted(voting) if last else old.weights
        self.state = replace(
            self.state, round_number=round_number, weights=weights, average=weights
        )
        entry: dict[str, object] = {
            "round": round_number, "stage": "votes", "elected": tally.elected,
            "undecided": list(tally.undecided), "appearance": voting.appearance_noise(round_number),
        }  # fmt: skip
        if self.generator is not None and last and self.study.votes.refit_steps:
            entry["generator"] = self._watched(self.generator, old, "the prior")
        self._append_metrics(entry, sites, seconds)
        self._draw_winners(voting, round_number)
        if last and self.study.votes.refit_steps:
            self._draw_sheet(self.run.refitted)
        save_checkpoint(self.run.checkpoints, self.state)
        return self.request(round_number + 1)

    def request(self, round_number: int) -> Weights:
        """Return the arrays that the sites are asked with in a round.

        Raises:
            RunError: The run folder lacks an earlier vote.
        """
        if self.study.stage_of(round_number) == "votes":
            return self._votes_there().poll(round_number)
        return self.state.weights

    def finish_run(self) -> None:
        """Export the generator with its card, and write the report."""
        metrics = self.run.metrics()
        epsilons = {
            str(site["site"]): float(site["epsilon"])
            for entry in metrics
            for site in entry["sites"]
            if site["state"] == "accepted"
        }
        rounds, privacy = self.state.round_number, self.study.privacy
        facts: dict[str, object] = {
            "rounds": rounds,
            "epsilon_by_site": epsilons,
            "delta": privacy.target_delta,
            "unit": privacy.unit,
        }
        votes = [entry for entry in metrics if entry["stage"] == "votes"]
        undecided: list[str] = votes[-1]["undecided"] if votes else []
        if votes:
            facts["undecided"] = undecided
        save_generator(self.run.generator, self.study, self.state.drawn_from, facts)
        if self.voting is not None:
            last = self.voting.population(self.study.votes_rounds)
            save_population(self.run.generator, last)
        write_card(self.run.generator, self.study, rounds, epsilons, undecided)
        write_report(self.run, self.study)

    def _votes_there(self) -> Voting:
        if self.voting is None:
            raise RunError(f"The study {self.study.study_id} has no votes")
        return self.voting

    def _refitted(self, voting: Voting) -> Weights:
        """Train the model on phantoms like those that won: they are public by now."""
        votes, prior = self.study.votes, self.study.prior
        if votes.refit_steps == 0 or prior is None:
            return self.state.weights
        held_out = max(1, votes.refit_phantoms // 10)
        conditions_N = np.arange(votes.refit_phantoms + held_out) % len(self.study.conditions)
        population = voting.population(votes.rounds)
        images_NSSC = population.images(population.lineages(conditions_N, self.study.seed))
        fitted = fit(
            self.study,
            self.state.weights,
            images_NSSC[held_out:],
            conditions_N[held_out:],
            steps=votes.refit_steps,
            batch=prior.batch,
            learning_rate=prior.learning_rate / 2,
            seed=self.study.seed,
            device=quickest_device(),
            held_out=(images_NSSC[:held_out], conditions_N[:held_out]),
            again=True,
            critic=load_prior(self.run.prior, self.study).critic,
            on_progress=self._tell_refit,
        )
        self.run.write_status("running")
        return fitted.weights

    def _generator(self) -> GeneratorServer | None:
        """What trains and watches the generator, where the study has a GAN."""
        if self.study.model.kind != "gan":
            return None
        phantoms = self._learned_from if self.study.prior is not None else None
        return GeneratorServer(self.study, phantoms, _first(self.study, self.run).weights)

    def _learned_from(self, conditions_N: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Phantoms for the generator: like the winners of the votes, where there were votes."""
        if self.voting is None:
            # In their order, the conditions of a study's phantoms are the same.
            return study_phantoms(self.study, len(conditions_N), self.study.seed)[0]
        population = self.voting.population(self.study.votes_rounds)
        return population.images(population.lineages(conditions_N, self.study.seed))

    def _watched(
        self, generator: GeneratorServer, old: Checkpoint, called: str
    ) -> dict[str, object]:
        """Look at what the new average draws, and keep the last one that drew well.

        Args:
            generator: Looks.
            old: The checkpoint before, from which is drawn what draws well.
            called: What that is.
        """
        health = generator.health(self.state.average)
        if health.collapsed:
            self.state = replace(self.state, kept=old.drawn_from)
            if not old.kept:
                log.warning(
                    "round %d: the generator has collapsed%s: the diversity of its pictures is "
                    "%s, and should be at least %.2f and a quarter of the prior's in each "
                    "condition; %s is kept",
                    self.state.round_number, _where(health), health.diversity, health.floor, called,
                )  # fmt: skip
        elif old.kept:
            self.state = replace(self.state, kept={})
            log.info("round %d: the generator draws well again", self.state.round_number)
        return {
            "diversity": health.diversity, "floor": health.floor, "collapsed": health.collapsed,
            "collapsed_conditions": list(health.collapsed_conditions),
        }  # fmt: skip

    def _tell_refit(self, progress: FitProgress) -> None:
        """Say now and then how far the longest work of a server is."""
        if progress.step % max(1, progress.steps // 4):
            return
        said = f"refit on the winners of the votes: step {progress.step} of {progress.steps}"
        log.info(said)
        self.run.write_status("running", message=said)

    def _append_metrics(
        self, said: dict[str, object], sites: list[dict[str, object]], seconds: float
    ) -> None:
        entry = {
            **said,
            "public_loss": self._public_loss(),
            "seconds": round(seconds, 3),
            "sites": sites,
        }
        with self.run.metrics_file.open("a") as file:
            file.write(json.dumps(entry, sort_keys=True, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _draw(self, round_number: int) -> None:
        evaluation, last = self.study.evaluation, self.study.total_rounds
        if round_number % evaluation.every_rounds and round_number != last:
            return
        self._draw_sheet(self.run.samples / f"round-{round_number:04d}.png")

    def _draw_sheet(self, path: Path) -> None:
        generator = Generator(self.study, self.state.average)
        count = self.study.evaluation.samples_per_condition
        save_png(draw_sheet(generator, count, self.study.seed), path)

    def _draw_winners(self, voting: Voting, vote: int) -> None:
        """Draw phantoms like the winners of a vote, as many as of the model's images."""
        population, count = voting.population(vote), self.study.evaluation.samples_per_condition
        rows = {}
        for place, condition in enumerate(self.study.conditions):
            wanted = np.full(count, place, dtype=np.int64)
            rows[str(condition)] = population.images(population.lineages(wanted, self.study.seed))
        save_png(contact_sheet(rows), self.run.samples / f"round-{vote:04d}.png")

    @torch.inference_mode()
    def _public_loss(self) -> float | None:
        """Loss of the averaged weights on phantoms: no patient is behind it, so it is free."""
        if self._phantoms is None:
            return None
        images, conditions = self._phantoms
        model = build_model(self.study)
        if not isinstance(model, VAE):
            raise AssertionError("phantoms are there for a VAE alone")
        model.load_state_dict({k: torch.from_numpy(v) for k, v in self.state.average.items()})
        latent = torch.zeros(len(images), model.latent)
        loss = float(model(images, conditions, latent).mean())
        return loss if math.isfinite(loss) else None


def _where(health: Health) -> str:
    names = health.collapsed_conditions
    return f" in {', '.join(names)}" if names else ""


def _first(study: Study, run: RunFolder) -> Checkpoint:
    if study.prior is not None:
        weights = load_prior(run.prior, study).weights
    else:
        state = build_model(study).state_dict()
        weights = {name: value.numpy().copy() for name, value in state.items()}
    return Checkpoint(0, study.study_hash, weights, weights, {})


def _phantoms(study: Study) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Phantoms to measure a VAE's public loss on: (N, 3, S, S) in [-1, 1] and their conditions."""
    if not study.evaluation.phantoms or study.model.kind != "vae":
        return None
    images_NSSC, conditions_N = study_phantoms(
        study, study.evaluation.phantoms, _NEVER_LEARNED + study.seed
    )
    images = to_network(torch.from_numpy(images_NSSC)).contiguous()
    return images, torch.from_numpy(conditions_N)
