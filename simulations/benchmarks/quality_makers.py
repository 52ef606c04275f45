"""Makers of the benchmark's rows: the stages of a study, in one process and without Flower.

The same functions that sites and server run are called here one after the other, with a run
folder of the server's, so that a row is what a study of those hospitals would come to. What is left
out is the ledger, which changes no number, and the network.

N images, S side in pixels, C colours.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fundusgen.data.conditions import CONDITIONS
from fundusgen.data.patients import PatientDataset
from fundusgen.federation.weights import Weights, average
from fundusgen.models.factory import build_model
from fundusgen.models.generator import Generator
from fundusgen.privacy.noise import FastNoise
from fundusgen.run_folder import RunFolder
from fundusgen.study import Study
from fundusgen.training.fitting import fit, weights_of
from fundusgen.training.local import load_model, prepare_round, train_round
from fundusgen.training.mechanisms import noise_for
from fundusgen.training.poll import load_poll
from fundusgen.training.voting import cast_votes, prepare_vote
from server.postprocess import Postprocess
from server.preparation import prepare_public
from simulations.benchmarks.quality_context import Context
from simulations.sites import declared

# Those of the benchmark's hospitals; `unknown` belongs to sites that are too small to be split.
STUDIED = tuple(name for name in CONDITIONS if name != "unknown")
# A study's own defaults.
VOTES: Mapping[str, Any] = {}
_ROUNDS = 40
_SCRATCH_ROUNDS = 120
_PRIVATE = ["decoder.*modulation*"]
_BATCH_PATIENTS = 32


def prior_alone(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
    """Draw from the prior, which has seen no patient."""
    study = _study(context, seed, None, {"votes": None})
    run = _prepared(context, study, "prior")
    return _drawn(context, study, Postprocess(study, run).state.average)


def voted(
    context: Context, epsilon: float | None, seed: int, votes: Mapping[str, Any] = VOTES
) -> NDArray[np.uint8]:
    """Draw phantoms like those that won the votes."""
    server = _after_votes(context, epsilon, seed, dpsgd=False, refit=False, votes=votes)
    if server.voting is None:
        raise AssertionError("the study has votes")
    places = np.array([STUDIED.index(label) for label in context.labels_N], dtype=np.int64)
    population = server.voting.population(server.study.votes_rounds)
    return population.images(population.lineages(places, seed))


def refitted(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
    """Draw from the model, refitted on phantoms like those that won the votes."""
    server = _after_votes(context, epsilon, seed, dpsgd=False, refit=True)
    return _drawn(context, server.study, server.state.average)


def tuned(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
    """Draw from the model after votes, refit and DP-SGD on its private part."""
    server = _after_votes(context, epsilon, seed, dpsgd=True, refit=True)
    _train(context, server, epsilon)
    return _drawn(context, server.study, server.state.average)


def dpsgd_alone(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
    """Draw from the model after DP-SGD on all of it, begun with random weights."""
    study = _study(
        context, seed, epsilon, {"votes": None}, prior=None, private=["*"], rounds=_SCRATCH_ROUNDS
    )
    server = Postprocess(study, _fresh(context, f"dpsgd-{epsilon}-{seed}"))
    _train(context, server, epsilon)
    return _drawn(context, study, server.state.average)


def from_scratch(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
    """Draw from the same model, trained on all patients' images in one place, without privacy."""
    study = _study(context, seed, None, {"votes": None}, prior={})
    images, conditions = [], []
    for patients in _patients(context).values():
        images.append(patients.pixels(np.arange(patients.image_count)))
        conditions.append(patients.conditions_N)
    images_NSSC, conditions_N = np.concatenate(images), np.concatenate(conditions)
    order_N = np.random.default_rng(seed).permutation(len(images_NSSC))
    held_out, rest = order_N[: len(order_N) // 10], order_N[len(order_N) // 10 :]
    if study.prior is None:
        raise AssertionError("the study has a prior")
    fitted = fit(
        study,
        weights_of(build_model(study)),
        images_NSSC[rest],
        conditions_N[rest],
        steps=study.prior.steps,
        batch=study.prior.batch,
        learning_rate=study.prior.learning_rate,
        seed=seed,
        device=torch.device("cpu"),
        held_out=(images_NSSC[held_out], conditions_N[held_out]),
    )
    return _drawn(context, study, fitted.weights)


def _study(
    context: Context,
    seed: int,
    epsilon: float | None,
    stages: Mapping[str, Any],
    *,
    prior: Mapping[str, Any] | None = {},
    private: list[str] = _PRIVATE,
    rounds: int = _ROUNDS,
) -> Study:
    dpsgd = {
        "steps_per_round": 1, "sample_rate": 0.25, "views_per_patient": 1, "optimizer": "sgd",
        "learning_rate": 0.1,
    }  # fmt: skip
    chosen = {"dpsgd": dpsgd, **stages}
    return Study.model_validate(
        {
            "study_id": "quality",
            "seed": seed,
            "conditions": STUDIED,
            "image_size": context.size_px,
            "model": {"private": private},
            "prior": prior,
            "stages": chosen,
            # Where nothing is hidden, the target only has to be one that can be calibrated for.
            "privacy": {"target_epsilon": epsilon or 8},
            "federation": {
                "rounds": rounds if chosen["dpsgd"] else 0,
                "min_sites": 1,
                "server_optimizer": "adam",
                "server_learning_rate": 0.0003,
                "ema_decay": 0.95,
            },
            "evaluation": {"phantoms": 0, "every_rounds": 1000},
        }
    )


def _after_votes(
    context: Context,
    epsilon: float | None,
    seed: int,
    *,
    dpsgd: bool,
    refit: bool,
    votes: Mapping[str, Any] = VOTES,
) -> Postprocess:
    """Hold all votes of a study, as server and sites would."""
    stages: dict[str, Any] = {"votes": dict(votes)}
    if not dpsgd:
        stages["dpsgd"] = None
    if not refit:
        stages["votes"]["refit_steps"] = 0
    # Where nothing is refitted, nobody looks at the prior.
    prior = {} if refit else {"phantoms": 16, "steps": 1}
    study = _study(context, seed, epsilon, stages, prior=prior)
    noise = _noise(study, "votes", epsilon)
    label = f"votes{'-refit' * refit}{'-dpsgd' * dpsgd}-{epsilon}-{seed}"
    server = Postprocess(study, _prepared(context, study, label))
    patients = _patients(context)
    for vote in study.stage_rounds["votes"]:
        asked = server.request(vote)
        replies = []
        for site in patients.values():
            prepared = prepare_vote(
                load_poll(study, asked),
                site,
                noise_multiplier=noise,
                noise=FastNoise(),
                device=torch.device("cpu"),
            )
            replies.append((cast_votes(prepared), noise))
        server.finish_vote(vote, replies, sites=[], seconds=0.0)
    return server


def _train(context: Context, server: Postprocess, epsilon: float | None) -> None:
    """Run all rounds of DP-SGD of a study."""
    study, noise = server.study, _noise(server.study, "dpsgd", epsilon)
    patients = _patients(context)
    for round_number in study.stage_rounds["dpsgd"]:
        replies = []
        for site in patients.values():
            prepared = prepare_round(
                study,
                load_model(study, server.request(round_number)),
                site,
                round_number=round_number,
                noise_multiplier=noise,
                declared_patients=declared(len(site)),
                noise=FastNoise(),
                device=torch.device("cpu"),
                batch_patients=_BATCH_PATIENTS,
            )
            replies.append((float(declared(len(site))), train_round(prepared)))
        server.finish_round(round_number, average(replies), sites=[], seconds=0.0)


def _noise(study: Study, stage: Any, epsilon: float | None) -> float:
    """The noise of a stage; next to none where nothing is to be hidden."""
    return 0.01 if epsilon is None else noise_for(study, stage)


def _patients(context: Context) -> dict[str, PatientDataset]:
    """The training halves, with conditions as places in the study's."""
    place_of = np.array([STUDIED.index(name) if name in STUDIED else -1 for name in CONDITIONS])
    chosen = {}
    for name, site in context.train.items():
        kept = site.subset(np.flatnonzero(place_of[site.conditions_N] >= 0).astype(np.int64))
        kept.conditions_N = place_of[kept.conditions_N].astype(np.int64)
        chosen[name] = kept
    return chosen


def _prepared(context: Context, study: Study, label: str) -> RunFolder:
    """A server's run folder with prior and vote space in it."""
    run = _fresh(context, label)
    prepare_public(study, run, context.work_dir / "public")
    return run


def _fresh(context: Context, label: str) -> RunFolder:
    path: Path = context.work_dir / label
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return RunFolder(path)


def _drawn(context: Context, study: Study, weights: Weights) -> NDArray[np.uint8]:
    """Draw an image for each label, all right eyes."""
    generator = Generator(study, weights)
    size = context.size_px
    images_NSSC = np.empty((len(context.labels_N), size, size, 3), np.uint8)
    labels_N = np.array(context.labels_N)
    for label in dict.fromkeys(context.labels_N):
        places = np.flatnonzero(labels_N == label)
        start = 0
        for drawn in generator.draw(label, len(places), study.seed):
            pixels = drawn.images_NSSC
            left = np.array([eye == "L" for eye in drawn.eyes])
            pixels[left] = pixels[left, :, ::-1]
            images_NSSC[places[start : start + len(pixels)]] = pixels
            start += len(pixels)
    return images_NSSC
