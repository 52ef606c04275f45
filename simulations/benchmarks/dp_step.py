"""What patient-level DP costs a training step.

A DP step (`PatientSGD`: per-patient gradients, clipping, secure noise, optimizer) and the plain
PyTorch step of the same network, batch and trained parameters take turns in one process, so that
whatever else the machine does hits both alike. Reported is the median over turns of the ratio.

`run` measures in a process of its own, as the allocator must be told before it starts to keep
freed memory: without, every step pays again for the same page faults.

Axes: P patients, K views, B images of a batch.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn

from fundusgen.data.patients import PatientDataset
from fundusgen.environment import KEEP_MEMORY
from fundusgen.models.gan import GAN
from fundusgen.models.vae import VAE
from fundusgen.privacy.clipping import PatientLoss
from fundusgen.privacy.dpsgd import Addend, DPSGDSettings, PatientSGD
from fundusgen.privacy.hooks import HookedLoss
from fundusgen.privacy.noise import SecureNoise, add_gaussian_noise
from fundusgen.privacy.sampling import PoissonPatients
from fundusgen.site import SiteSettings
from fundusgen.training.learners import loss_of_discriminator
from fundusgen.training.patient_loss import GanLoss, PatientViews, VaeLoss
from simulations.benchmarks.child import Row, row, rows_of_child
from simulations.benchmarks.turns import Step, median_ms, ratio, take_turns

PATIENTS, IMAGE_SIZE_PX, THREADS, TURNS = 64, 64, 2, 9
# As a site has it that sets nothing.
DEFAULT_BATCH = SiteSettings.model_fields["batch_patients"].default


@dataclass(frozen=True)
class Subject:
    """A network to measure.

    Attributes:
        module: The network.
        loss: Makes the loss for a step, as `PatientSGD` takes it.
        plain_loss: Mean loss of a whole batch, as ordinary training takes it.
        batch: The batch's tensors, patients first.
        subset: Pattern over the names of a private subset of the parameters.
        addend: What is added to patients' gradients, if anything.
    """

    module: nn.Module
    loss: Callable[[], PatientLoss | HookedLoss]
    plain_loss: Callable[[tuple[Tensor, ...]], Tensor]
    batch: tuple[Tensor, ...]
    subset: str
    addend: Addend | None = None


def run() -> list[Row]:
    """Measure in a fresh process; rows of `simulations.benchmarks.child.row`."""
    return rows_of_child(__name__, "measure", environment={**os.environ, **KEEP_MEMORY})


def measure() -> list[Row]:
    """Measure in this process."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    every, part = vae_subject("*"), vae_subject("decoder.*modulation*")
    count, share = _count(every), f"{_count(part) / _count(every):.1%}"
    all_dp, all_plain = _compare(every)
    part_dp, part_plain = _compare(part)
    whole_dp, whole_plain = _compare(part, physical_batch=PATIENTS)
    noise_percent, noise_ms = _noise_percent(every)
    judge, votes = gan_subject("discriminator.*"), gan_subject("discriminator.*vote.*")
    judge_dp, judge_plain = _compare(judge, physical_batch=PATIENTS)
    votes_dp, votes_plain = _compare(votes, physical_batch=PATIENTS)
    judges, said = f"discriminator, all of {_count(judge)}", f"batch_patients {PATIENTS}"
    few = f"discriminator, private {_count(votes) / _count(judge):.1%}"
    usual_dp, usual_plain = _compare(judge)
    return [
        row(f"DP step over plain step, all of {count}", ratio(all_dp, all_plain), "x", 2.0),
        row(f"DP step over plain step, private {share}", ratio(part_dp, part_plain), "x", 1.3),
        row(
            f"DP step over plain step, private {share}, {said}",
            ratio(whole_dp, whole_plain), "x", 1.3,
        ),
        row(f"DP step over plain step, {judges}", ratio(usual_dp, usual_plain), "x"),
        row(f"DP step over plain step, {judges}, {said}", ratio(judge_dp, judge_plain), "x", 1.6),
        row(f"DP step over plain step, {few}, {said}", ratio(votes_dp, votes_plain), "x", 1.6),
        row(f"Secure noise in a DP step, {count} parameters", noise_percent, "%", 15.0),
        row(f"DP step, all of {count}", median_ms(all_dp), "ms"),
        row(f"Plain step, all of {count}", median_ms(all_plain), "ms"),
        row(f"DP step, private {share}", median_ms(part_dp), "ms"),
        row(f"Plain step, private {share}", median_ms(part_plain), "ms"),
        row(f"DP step, {judges}", median_ms(judge_dp), "ms"),
        row(f"Plain step, {judges}", median_ms(judge_plain), "ms"),
        row(f"Secure noise, {count} parameters", noise_ms, "ms"),
    ]  # fmt: skip


def vae_subject(subset: str, width: int = 16) -> Subject:
    """Build the project's VAE at 64 px, a million parameters at the usual width."""
    latent, conditions = 32, 6
    module = VAE(image_size=IMAGE_SIZE_PX, conditions=conditions, width=width, latent=latent)
    batch = (
        torch.rand(PATIENTS, 1, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX) * 2 - 1,
        torch.randint(0, conditions, (PATIENTS, 1)),
        torch.randn(PATIENTS, 1, latent),
    )
    task = VaeLoss(module, _private(module, subset), _nobody(), kl_weight=1.0)

    def plain_loss(batch: tuple[Tensor, ...]) -> Tensor:
        losses_B: Tensor = module(*(tensor.flatten(0, 1) for tensor in batch))
        return losses_B.mean()

    return Subject(module, task.loss, plain_loss, batch, subset)


def gan_subject(subset: str, width: int = 27) -> Subject:
    """Build the project's GAN at 64 px, whose discriminator then has 430,000 parameters.

    Both steps draw as many images as there are patients, in the DP step of eight conditions.
    """
    conditions = 8
    module = GAN(
        image_size=IMAGE_SIZE_PX, conditions=conditions, width=16, latent=32,
        discriminator_width=width,
    )  # fmt: skip
    real = torch.rand(PATIENTS, 1, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX) * 2 - 1
    batch = (real, torch.randint(0, conditions, (PATIENTS, 1)))
    private = _private(module, subset)
    task = GanLoss(module, private, _nobody(), drawn=PATIENTS // conditions)

    def plain_loss(batch: tuple[Tensor, ...]) -> Tensor:
        images, conditions_B = (tensor.flatten(0, 1) for tensor in batch)
        with torch.no_grad():
            drawn = module.draw(torch.randn(len(images), module.noise_length), conditions_B)
        return loss_of_discriminator(module.discriminator, images, drawn, conditions_B, module.loss)

    return Subject(module, task.loss, plain_loss, batch, subset, task.addend)


def _private(module: nn.Module, subset: str) -> dict[str, nn.Parameter]:
    return {n: p for n, p in module.named_parameters() if fnmatchcase(n, subset)}


def _nobody() -> PatientViews:
    """Where a task would take its batches from; here they are made beforehand."""
    nobody = PatientDataset(np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0, np.int64), [])
    return PatientViews(nobody, 1, torch.device("cpu"))


def _compare(
    subject: Subject, physical_batch: int = DEFAULT_BATCH
) -> tuple[list[float], list[float]]:
    parameters = _private(subject.module, subject.subset)
    trained = {id(tensor) for tensor in parameters.values()}
    for tensor in subject.module.parameters():
        tensor.requires_grad_(id(tensor) in trained)
    seconds = take_turns(
        {
            "dp": _dp_step(subject, parameters, physical_batch),
            "plain": _plain_step(subject, parameters),
        },
        TURNS,
        rehearsals=2,
    )
    return seconds["dp"], seconds["plain"]


def _dp_step(
    subject: Subject, parameters: Mapping[str, Tensor], physical_batch: int = DEFAULT_BATCH
) -> Step:
    settings = DPSGDSettings(
        noise_multiplier=1.0,
        # Everybody in every step: the batch is the plain step's batch.
        sample_rate=1.0,
        max_grad_norm=1.0,
        patients=PATIENTS,
        physical_batch=physical_batch,
    )
    noise = SecureNoise()
    sampler = PoissonPatients(PATIENTS, settings.sample_rate, noise)
    # Of no length at all: both steps should see the same weights in every turn.
    optimizer = torch.optim.SGD(parameters.values(), lr=0.0, momentum=0.9)
    sgd = PatientSGD(parameters, optimizer, settings, noise, sampler)

    def load(indices: np.ndarray) -> tuple[Tensor, ...]:
        return tuple(tensor[torch.from_numpy(indices)] for tensor in subject.batch)

    return lambda: sgd.step(subject.loss(), load, subject.addend)


def _plain_step(subject: Subject, parameters: Mapping[str, Tensor]) -> Step:
    optimizer = torch.optim.SGD(parameters.values(), lr=0.0, momentum=0.9)
    order = torch.arange(PATIENTS)

    def step() -> None:
        optimizer.zero_grad()
        loss = subject.plain_loss(tuple(tensor[order] for tensor in subject.batch))
        torch.autograd.backward(loss)
        optimizer.step()

    return step


def _noise_percent(subject: Subject) -> tuple[float, float]:
    """Noise for a step's sums, apart, over a step with its noise."""
    parameters = _private(subject.module, subject.subset)
    sums, noise = torch.zeros(_count(subject), dtype=torch.float64), SecureNoise()
    seconds = take_turns(
        {
            "noise": lambda: add_gaussian_noise(sums, 1.0, noise),
            "step": _dp_step(subject, parameters),
        },
        TURNS,
        rehearsals=2,
    )
    noising, steps = seconds["noise"], seconds["step"]
    return round(100 * ratio(noising, steps, digits=4), 2), median_ms(noising)


def _count(subject: Subject) -> int:
    """Number of private parameters."""
    private = _private(subject.module, subject.subset)
    return sum(parameter.numel() for parameter in private.values())
