"""How long a study would take on this machine: a few DP-SGD steps on a phantom, timed.

For `fundusgen plan`. The steps go through `prepare_round` and `PatientSGD`, with the site's own
batch size, threads and device, as they will in the study. Instead of patients there is one
phantom, so that nothing of a hospital is read and nothing is spent. What is learned is dropped.
"""

import math
import os
import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binom

from fundusgen.data.patients import PatientDataset
from fundusgen.errors import RunError
from fundusgen.models.encoder import ParameterEncoder
from fundusgen.models.factory import build_model
from fundusgen.phantom.population import phantom_images
from fundusgen.phantom.reading import PARAMETERS
from fundusgen.privacy.noise import FastNoise, SecureNoise
from fundusgen.site import SiteSettings
from fundusgen.study import Study
from fundusgen.training.answering import prepare_device
from fundusgen.training.local import PreparedRound, load_model, prepare_round
from fundusgen.training.places import batch_that_holds
from fundusgen.training.poll import Poll
from fundusgen.training.voting import cast_votes, prepare_vote

# Larger steps are this many batches, and then so many more: their time is batches.
_MOST_BATCHES = 4
# Other work on the machine comes and goes within seconds, and a single step may meet it.
_LEAST_STEPS, _MOST_STEPS, _LONG_ENOUGH_S = 3, 20, 3.0
# Standard deviations beyond which a binomial has nothing that counts.
_TAIL = 10
# Patients of a rehearsed vote.
_VOTERS = 50


@dataclass(frozen=True)
class Rehearsal:
    """What was measured, and on what.

    Attributes:
        seconds_per_step: Expected time of a step over the Poisson samples of the study.
        seconds_per_round_besides: Of a round, besides its steps: load the weights, build the
            mechanism, and what a first step takes longer in a new process. The site's own
            files (manifest, images, ledger, outbox), Flower and the network are not in it.
        batches_per_step: Expected number of batches of `batch_patients` in a step.
        device: Where it was computed.
        threads: Of torch.
        cores: Of this machine.
        load: Processes that waited for them just before, on average over a minute.
    """

    seconds_per_step: float
    seconds_per_round_besides: float
    batches_per_step: float
    device: str
    threads: int
    cores: int
    load: float

    @property
    def disturbed(self) -> bool:
        """Whether other work may have slowed the steps, at times many times over."""
        # Half a process is about what the start of the measurement itself leaves in the average.
        return self.load + self.threads > self.cores + 0.5


def rehearse(study: Study, settings: SiteSettings, *, noise_multiplier: float) -> Rehearsal:
    """Take a few of a study's steps on a phantom, and time them.

    A batch takes as long whatever number of patients is in it, as it is padded to
    `batch_patients`. So a batch is timed in a step of the expected size, of at most four batches,
    and a step takes as many as its Poisson sample needs on average.

    Sets the number of torch's threads for the process, as the client does.

    Args:
        study: The study.
        settings: Of the site: declared patients, batch size, threads and device.
        noise_multiplier: Noise of a step; any positive one takes as long.

    Raises:
        RunError: A step fails on this machine, mostly for want of memory.
        SiteError: The site's device is not there.
        ModelError: The study's model cannot be built, or its private subset matches nothing.
    """
    device = prepare_device(settings)
    rate, declared = study.dpsgd.sample_rate, settings.data.declared_patients
    load, _, _ = os.getloadavg()
    try:
        # As a round does: it may have to take fewer at a time than the site would like.
        size = batch_that_holds(
            study, settings.batch_patients, mode=settings.grad_sample_mode, device=device
        )
        settings = settings.model_copy(update={"batch_patients": size})
        patients = min(max(1, round(rate * declared)), _MOST_BATCHES * size)
        besides_s, step_s = _timed(study, settings, noise_multiplier, patients, device)
    # Torch says in a plain RuntimeError that memory, or an operation of the device, is missing.
    except (RuntimeError, MemoryError) as error:
        raise RunError(
            f"A step of this study fails on this machine: {' '.join(str(error).split())[:200]}",
            expected=f"memory for the gradients of {settings.batch_patients} patients on {device}",
            remedy="Lower `batch_patients` in site.yaml, or choose another `device` there",
        ) from error
    batches = expected_batches(declared, rate, size)
    return Rehearsal(
        seconds_per_step=batches * step_s / math.ceil(patients / size),
        seconds_per_round_besides=besides_s,
        batches_per_step=batches,
        device=str(device),
        threads=torch.get_num_threads(),
        cores=os.cpu_count() or 1,
        load=load,
    )


def rehearse_votes(study: Study, settings: SiteSettings, *, noise_multiplier: float) -> Rehearsal:
    """Let one phantom vote a few dozen times, and time it: a vote takes a patient after the other.

    Args:
        study: A study with votes.
        settings: Of the site: declared patients, threads and device.
        noise_multiplier: Noise of the votes; any positive one takes as long.

    Returns:
        A vote as a step of a batch a patient, each with one image.

    Raises:
        RunError: A vote fails on this machine, mostly for want of memory.
        SiteError: The site's device is not there.
    """
    device = prepare_device(settings)
    load, _, _ = os.getloadavg()
    poll = Poll(
        study.votes.nearest,
        np.zeros((study.votes.candidates, len(PARAMETERS)), np.float32),
        np.zeros(study.votes.candidates, np.int64),
        ParameterEncoder(study.image_size, len(PARAMETERS)).eval(),
    )
    try:
        first_s, second_s = (_vote_s(study, poll, device, noise_multiplier) for _ in range(2))
    except (RuntimeError, MemoryError) as error:
        raise RunError(
            f"A vote of this study fails on this machine: {' '.join(str(error).split())[:200]}",
            expected=f"memory for {study.votes.candidates:,} candidates on {device}",
            remedy="Choose another `device` in site.yaml",
        ) from error
    declared = settings.data.declared_patients
    return Rehearsal(
        seconds_per_step=declared * second_s / _VOTERS,
        seconds_per_round_besides=max(0.0, first_s - second_s),
        batches_per_step=declared,
        device=str(device),
        threads=torch.get_num_threads(),
        cores=os.cpu_count() or 1,
        load=load,
    )


def _vote_s(study: Study, poll: Poll, device: torch.device, noise_multiplier: float) -> float:
    voters = _phantoms(study, _VOTERS)
    began_s = time.perf_counter()
    cast_votes(
        prepare_vote(
            poll, voters, noise_multiplier=noise_multiplier, noise=FastNoise(), device=device
        )
    )
    return time.perf_counter() - began_s


def expected_batches(patients: int, sample_rate: float, size: int) -> float:
    """Mean number of batches that a Poisson sample of patients is cut into.

    An empty sample, which still takes its noise step, counts as one.

    Args:
        patients: From 1.
        sample_rate: In (0, 1].
        size: Patients of a batch, from 1.
    """
    mean = patients * sample_rate
    reach = _TAIL * math.sqrt(mean * (1 - sample_rate)) + _TAIL
    # Of batch k there are as many as samples of more than k * size; below the window, in all.
    first = max(0, math.floor((mean - reach) / size))
    last = math.ceil((mean + reach) / size)
    more = binom.sf(np.arange(first, last) * size, patients, sample_rate)
    return first + float(more.sum()) + float(binom.pmf(0, patients, sample_rate))


def _timed(
    study: Study,
    settings: SiteSettings,
    noise_multiplier: float,
    patients: int,
    device: torch.device,
) -> tuple[float, float]:
    """Seconds of a round besides its steps, and of a step on everyone of a phantom's patients."""
    weights = {name: value.numpy() for name, value in build_model(study).state_dict().items()}
    phantoms = _phantoms(study, patients)
    began_s = time.perf_counter()
    prepared = prepare_round(
        _everyone_in_every_step(study),
        load_model(study, weights),
        phantoms,
        round_number=study.votes_rounds + 1,
        noise_multiplier=noise_multiplier,
        declared_patients=patients,
        noise=SecureNoise() if study.privacy.noise == "secure" else FastNoise(),
        device=device,
        batch_patients=settings.batch_patients,
        grad_sample_mode=settings.grad_sample_mode,
    )
    prepared_s = time.perf_counter() - began_s
    first_s = _step_s(prepared, device)
    finish_s = -time.perf_counter()
    prepared.finish()
    finish_s += time.perf_counter()
    steps_s: list[float] = []
    while len(steps_s) < _LEAST_STEPS or (
        len(steps_s) < _MOST_STEPS and sum(steps_s) < _LONG_ENOUGH_S
    ):
        steps_s.append(_step_s(prepared, device))
    step_s = statistics.median(steps_s)
    return prepared_s + max(0.0, first_s - step_s) + finish_s, step_s


def _step_s(prepared: PreparedRound, device: torch.device) -> float:
    began_s = time.perf_counter()
    prepared.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began_s


def _phantoms(study: Study, patients: int) -> PatientDataset:
    """A data set of one phantom under many names; its pixels are there once."""
    (image_SSC,), _ = phantom_images(1, study.image_size, 0, ["normal"])
    return PatientDataset(
        np.broadcast_to(image_SSC, (patients, *image_SSC.shape)),
        np.zeros(patients, np.int64),
        [str(number) for number in range(patients)],
    )


def _everyone_in_every_step(study: Study) -> Study:
    """The longest that a round of the study can be for as many patients."""
    stage = study.dpsgd.model_copy(update={"sample_rate": 1.0})
    changed: dict[str, object] = {"stages": study.stages.model_copy(update={"dpsgd": stage})}
    if study.model.kind == "gan":
        # A generator that waits takes no time.
        changed["model"] = study.model.model_copy(update={"accuracy_floor": 0.0})
    return study.model_copy(update=changed)
