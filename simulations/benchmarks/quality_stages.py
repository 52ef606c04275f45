"""The stages of a study, in one process and without Flower, for the makers of the benchmark.

The same functions that sites and server run are called here one after the other, with a run
folder of the server's, so that a row is what a study of those hospitals would come to. What is left
out is the ledger, which changes no number, and the network.

N images, S side in pixels, C colours.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from fundusgen.code import code_hash
from fundusgen.data.conditions import CONDITIONS
from fundusgen.data.patients import PatientDataset
from fundusgen.federation.weights import Weights
from fundusgen.models.factory import build_model
from fundusgen.models.generator import Generator
from fundusgen.privacy.noise import FastNoise
from fundusgen.run_folder import RunFolder
from fundusgen.study import Study
from fundusgen.training.fitting import fit, weights_of
from fundusgen.training.local import load_model, prepare_round, train_round
from fundusgen.training.mechanisms import noise_for, noise_of_reply
from fundusgen.training.poll import Poll, load_poll
from fundusgen.training.voting import cast_votes, prepare_vote
from server.postprocess import Postprocess
from server.preparation import prepare_public
from server.voting import SiteVotes
from simulations.benchmarks.quality_context import Context
from simulations.sites import declared

# Those of the benchmark's hospitals; `unknown` belongs to sites that are too small to be split.
STUDIED = tuple(name for name in CONDITIONS if name != "unknown")
# A study's own defaults.
VOTES: Mapping[str, Any] = {}
ROUNDS = 40
# What of the VAE is tuned on patients.
TUNED: Mapping[str, Any] = {"private": ["decoder.*modulation*"]}
_BATCH_PATIENTS = 32
_ASKED = "asked"
DPSGD: Mapping[str, Any] = {
    "steps_per_round": 1, "sample_rate": 0.25, "views_per_patient": 1, "optimizer": "sgd",
    "learning_rate": 0.1,
}  # fmt: skip
_FEDERATION: Mapping[str, Any] = {
    "min_sites": 1, "server_optimizer": "adam", "server_learning_rate": 0.0003, "ema_decay": 0.95,
}  # fmt: skip


def study_of(
    context: Context,
    seed: int,
    epsilon: float | None,
    stages: Mapping[str, Any],
    *,
    prior: Mapping[str, Any] | None = {},
    model: Mapping[str, Any] = TUNED,
    rounds: int = ROUNDS,
    federation: Mapping[str, Any] = {},
    privacy: Mapping[str, Any] = {},
) -> Study:
    """A study of the benchmark's hospitals.

    Args:
        context: Gives the image size.
        seed: Of the study.
        epsilon: Its target; None where nothing is to be hidden.
        stages: What differs from one stage of DP-SGD, with the settings of `real.yaml`.
        prior: Settings of the prior; None for none.
        model: Settings of the model.
        rounds: Of DP-SGD.
        federation: What differs from the settings of `real.yaml`.
        privacy: Settings besides its target.
    """
    chosen = {"dpsgd": DPSGD, **stages}
    return Study.model_validate(
        {
            "study_id": "quality",
            "seed": seed,
            "conditions": STUDIED,
            "image_size": context.size_px,
            "model": dict(model),
            "prior": prior,
            "stages": chosen,
            # Where nothing is hidden, the target only has to be one that can be calibrated for.
            "privacy": {"target_epsilon": epsilon or 8, **privacy},
            "federation": {
                **_FEDERATION, "rounds": rounds if chosen["dpsgd"] else 0, **federation,
            },
            "evaluation": {"phantoms": 0, "every_rounds": 1000},
        }
    )  # fmt: skip


def after_votes(
    context: Context,
    epsilon: float | None,
    seed: int,
    *,
    dpsgd: Mapping[str, Any] | None,
    refit: bool,
    votes: Mapping[str, Any] = VOTES,
    label: str = "votes",
    **study_settings: Any,
) -> Postprocess:
    """Hold all votes of a study, as server and sites would.

    Args:
        context: Gives the hospitals.
        epsilon: Of the whole study; None where nothing is to be hidden.
        seed: Of the study.
        dpsgd: What the stage after the votes has of its own; None where it ends with them.
        refit: Whether the model is refitted on the winners.
        votes: What differs from a study's defaults.
        label: Begins the name of the run folder.
        **study_settings: See `study_of`.
    """
    stages: dict[str, Any] = {"votes": dict(votes)}
    stages["dpsgd"] = None if dpsgd is None else {**DPSGD, **dpsgd}
    if not refit:
        stages["votes"]["refit_steps"] = 0
    # Where nothing is refitted, nobody looks at the prior.
    prior = {} if refit else {"phantoms": 16, "steps": 1}
    study = study_of(context, seed, epsilon, stages, **{"prior": prior, **study_settings})
    noise = noise_of(study, "votes", epsilon)
    label = f"{label}{'-refit' * refit}{'-dpsgd' * (dpsgd is not None)}-{epsilon}-{seed}"
    server = Postprocess(study, prepared(context, study, label))
    ballots = _ballots(context, study, noise)
    known = ballots.is_dir()
    if known:
        # What was asked goes with what was answered.
        shutil.copytree(ballots / _ASKED, server.run.votes, dirs_exist_ok=True)
    answers: list[list[Weights]] = []
    for vote in study.stage_rounds["votes"]:
        if known:
            answers.append([load_file(path) for path in sorted(ballots.glob(f"{vote:04d}-*"))])
        else:
            poll = load_poll(study, server.request(vote))
            answers.append([_votes_of(poll, site, noise) for site in patients_of(context).values()])
        patients = [declared(len(site)) for site in patients_of(context).values()]
        said = [SiteVotes(r, noise, n) for r, n in zip(answers[-1], patients, strict=True)]
        server.finish_vote(vote, said, sites=[], seconds=0.0)
    if not known:
        _keep(ballots, server.run, answers)
    return server


def fitted_on_patients(
    context: Context,
    study: Study,
    seed: int,
    steps: int | None = None,
    *,
    begin: Weights | None = None,
) -> Weights:
    """Train a study's model on all patients' images in one place, without privacy.

    Args:
        context: Gives the hospitals.
        study: A study with the settings of a prior, which are those of the fit.
        seed: Of the fit.
        steps: Most of them; the prior's where absent.
        begin: Weights to go on with; random where absent.
    """
    if study.prior is None:
        raise AssertionError("the study has a prior")
    images, conditions = [], []
    for patients in patients_of(context).values():
        images.append(patients.pixels(np.arange(patients.image_count)))
        conditions.append(patients.conditions_N)
    images_NSSC, conditions_N = np.concatenate(images), np.concatenate(conditions)
    order_N = np.random.default_rng(seed).permutation(len(images_NSSC))
    held_out, rest = order_N[: len(order_N) // 10], order_N[len(order_N) // 10 :]
    return fit(
        study,
        begin or weights_of(build_model(study)),
        images_NSSC[rest],
        conditions_N[rest],
        steps=steps or study.prior.steps,
        batch=study.prior.batch,
        learning_rate=study.prior.learning_rate,
        seed=seed,
        device=torch.device("cpu"),
        held_out=(images_NSSC[held_out], conditions_N[held_out]),
        again=begin is not None,
    ).weights


def train(context: Context, server: Postprocess, epsilon: float | None) -> None:
    """Run all rounds of DP-SGD of a study."""
    study, noise = server.study, noise_of(server.study, "dpsgd", epsilon)
    patients = patients_of(context)
    for round_number in study.stage_rounds["dpsgd"]:
        replies, noises = [], []
        for site in patients.values():
            round_there = prepare_round(
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
            share = float(declared(len(site)))
            replies.append((share, train_round(round_there)))
            noises.append((share, noise_of_reply(study.dpsgd, noise, declared(len(site)))))
        server.finish_round(round_number, replies, noises, sites=[], seconds=0.0)


def _ballots(context: Context, study: Study, noise: float) -> Path:
    """Where votes are kept for rows that would hold the same.

    Votes know nothing of the model, so rows that differ in it alone share them, noise and all. Of
    other patients, or counted by other code, they would not be the same.
    """
    votes = study.votes.model_dump(mode="json", exclude={"refit_steps", "refit_phantoms"})
    said = [
        votes, list(study.conditions), study.image_size, study.seed, noise,
        context.train_digest, code_hash(),
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    return context.work_dir / "ballots" / digest[:20]


def _votes_of(poll: Poll, site: PatientDataset, noise: float) -> Weights:
    return cast_votes(
        prepare_vote(
            poll,
            site,
            noise_multiplier=noise,
            noise=FastNoise(),
            device=torch.device("cpu"),
        )
    )


def _keep(ballots: Path, run: RunFolder, answers: Sequence[Sequence[Weights]]) -> None:
    """Keep all votes of a study, or nothing: half of them would not fit other halves."""
    ballots.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(dir=ballots.parent))
    (half / _ASKED).mkdir()
    for path in run.votes.glob("poll-*"):
        shutil.copyfile(path, half / _ASKED / path.name)
    for vote, replies in enumerate(answers, start=1):
        for number, reply in enumerate(replies):
            save_file(dict(reply), half / f"{vote:04d}-{number:03d}.safetensors")
    try:
        half.rename(ballots)
    except OSError:
        # Another process was first.
        shutil.rmtree(half)


def noise_of(study: Study, stage: Any, epsilon: float | None) -> float:
    """The noise of a stage; next to none where nothing is to be hidden."""
    return 0.01 if epsilon is None else noise_for(study, stage)


def patients_of(context: Context) -> dict[str, PatientDataset]:
    """The training halves, with conditions as places in the study's."""
    place_of = np.array([STUDIED.index(name) if name in STUDIED else -1 for name in CONDITIONS])
    chosen = {}
    for name, site in context.train.items():
        kept = site.subset(np.flatnonzero(place_of[site.conditions_N] >= 0).astype(np.int64))
        kept.conditions_N = place_of[kept.conditions_N].astype(np.int64)
        chosen[name] = kept
    return chosen


def prepared(context: Context, study: Study, label: str) -> RunFolder:
    """A server's run folder with prior and vote space in it."""
    run = fresh(context, label)
    prepare_public(study, run, context.work_dir / "public")
    return run


def fresh(context: Context, label: str) -> RunFolder:
    path: Path = context.work_dir / label
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return RunFolder(path)


def finished(context: Context, server: Postprocess) -> NDArray[np.uint8]:
    """Finish a run, which leaves its generator and report in the run folder, and draw from it."""
    server.finish_run()
    return drawn(context, server.study, server.state.drawn_from)


def drawn(context: Context, study: Study, weights: Weights) -> NDArray[np.uint8]:
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
