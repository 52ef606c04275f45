"""DP-SGD on one site's patients for one round: the sum of steps behind one event.

What a patient's loss is, is the model family's business: `patient_loss`.
"""

import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fundusgen.data.patients import PatientDataset
from fundusgen.errors import ModelError
from fundusgen.federation.weights import Weights
from fundusgen.models.factory import (
    Model,
    build_model,
    load_weights,
    private_names,
    trains_generator_at_sites,
)
from fundusgen.models.gan import GAN
from fundusgen.privacy.dpsgd import DPSGDSettings, PatientSGD, StepReport
from fundusgen.privacy.noise import NoiseSource
from fundusgen.privacy.sampling import PoissonPatients
from fundusgen.site import GradSampleMode
from fundusgen.study import DPSGDStage, Study
from fundusgen.training.generator_steps import GeneratorTraining
from fundusgen.training.patient_loss import GanLoss, PatientTask, PatientViews, VaeLoss

# Of the site: it goes to a file there and nowhere else.
log = logging.getLogger("fundusgen.client")


def load_model(study: Study, weights: Weights) -> Model:
    """Build the study's model with the weights that the server sent.

    Raises:
        ModelError: The weights do not fit the study's model, or are not finite.
    """
    model = build_model(study)
    if not all(np.isfinite(array).all() for array in weights.values()):
        raise ModelError(
            "The weights that came in hold a value that is not finite",
            expected="finite weights, from which something can be learned",
            remedy="Tell the study lead: the server's model has diverged",
        )
    load_weights(model, {name: torch.from_numpy(array) for name, array in weights.items()})
    return model


@dataclass(frozen=True)
class PreparedRound:
    """A round with all its settings found to be right, and none of its steps taken.

    Attributes:
        released: By name, the parameters that leave afterwards: the private ones, which the
            steps change, and those that `finish` changes.
        steps: How many steps the round takes.
        step: Takes one of them.
        finish: What is made of the private parameters after the last step, without any patient.
    """

    released: Mapping[str, nn.Parameter]
    steps: int
    step: Callable[[], StepReport]
    finish: Callable[[], None] = lambda: None


def prepare_round(
    study: Study,
    model: Model,
    patients: PatientDataset,
    *,
    round_number: int,
    noise_multiplier: float,
    declared_patients: int,
    noise: NoiseSource,
    device: torch.device,
    batch_patients: int,
    grad_sample_mode: GradSampleMode = "auto",
) -> PreparedRound:
    """Build a round's mechanism, so that what is wrong with its settings costs no privacy.

    Guarantee: `train_round` of the result is `steps_per_round` subsampled Gaussian mechanisms
    on patients with the study's sample rate and this noise multiplier, for whatever weights
    came in, and nothing else that depends on patients. No image is read here; whether this raises
    depends on public settings only.
    Edge cases: no patients at all are allowed: every step is noise.

    Args:
        study: The study.
        model: The study's model as the server sent it, from `load_model`; is changed.
        patients: The site's patients.
        round_number: From 1, votes included; sets the KL warm-up.
        noise_multiplier: Noise standard deviation over `max_grad_norm`.
        declared_patients: Public number of patients, the denominator of every step.
        noise: Source of the mechanism's randomness.
        device: Where to compute.
        batch_patients: Patients whose gradients are held in memory at once.
        grad_sample_mode: How their gradients are taken.

    Raises:
        ModelError: `model.private` names no parameter.
        PrivacyError: A setting is out of range, or the mode does not reach what is private.
    """
    stage = study.dpsgd
    model.to(device)
    names = private_names(model, study.model.private)
    if not names:
        raise ModelError(
            "The study's model.private names no parameter",
            expected="at least one pattern, such as '*'",
            remedy="Tell the study lead: without private parameters there is nothing to train",
        )
    private = {name: model.get_parameter(name) for name in names}
    sgd = PatientSGD(
        private,
        _optimizer(list(private.values()), stage),
        DPSGDSettings(
            noise_multiplier=noise_multiplier,
            sample_rate=stage.sample_rate,
            max_grad_norm=stage.max_grad_norm,
            patients=declared_patients,
            physical_batch=batch_patients,
        ),
        noise,
        PoissonPatients(len(patients), stage.sample_rate, noise),
    )
    views = PatientViews(patients, stage.views_per_patient, device)
    task: PatientTask
    if isinstance(model, GAN):
        task = GanLoss(model, private, views, drawn=study.gan.drawn, mode=grad_sample_mode)
        _require_finite(task)
    else:
        weight = kl_weight(stage, round_number - study.votes_rounds)
        task = VaeLoss(model, private, views, weight, mode=grad_sample_mode)

    def step() -> StepReport:
        return sgd.step(task.loss(), task.load, task.addend)

    if isinstance(model, GAN) and trains_generator_at_sites(study):
        generator = dict(model.generator.named_parameters(prefix="generator"))
        # No patient is asked here: the generator learns from the private discriminator alone.
        training = GeneratorTraining(model, study.gan)
        return PreparedRound(
            {**private, **generator},
            stage.steps_per_round,
            step,
            lambda: _take(training, generator),
        )
    return PreparedRound(private, stage.steps_per_round, step)


def train_round(prepared: PreparedRound) -> Weights:
    """Take a round's DP-SGD steps and return the weights that are released.

    Guarantee: as `prepare_round` says. What the steps report stays in the site's log.
    Edge cases: an empty Poisson batch takes its noise step. A patient whose gradient is not
    finite adds nothing. Weights that the noise made infinite are returned as they are: that
    depends on the mechanism's output only.

    Raises:
        PrivacyError: A step failed; nothing of the round may be sent.
    """
    for number in range(1, prepared.steps + 1):
        report = prepared.step()
        if report.not_finite:
            log.warning(
                "step %d: the gradients of %d of %d patients were not finite and added nothing",
                number, report.not_finite, report.patients,
            )  # fmt: skip
    prepared.finish()
    return {name: value.detach().cpu().numpy() for name, value in prepared.released.items()}


def kl_weight(stage: DPSGDStage, round_number: int) -> float:
    """Weight of the KL term in a round of DP-SGD, from 1: grows linearly to 1 over the warm-up."""
    return min(1.0, round_number / (stage.kl_warmup_rounds + 1))


def _optimizer(parameters: list[nn.Parameter], stage: DPSGDStage) -> torch.optim.Optimizer:
    if stage.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=stage.learning_rate)
    return torch.optim.Adam(parameters, lr=stage.learning_rate)


def _require_finite(task: GanLoss) -> None:
    """Refuse a round whose drawn images say nothing, before it is paid for. No patient is asked.

    Raises:
        ModelError: The generator draws images that are not finite, or the loss on them is not.
    """
    if not task.usable():
        raise ModelError(
            "The generator that came in draws images on which the loss is not finite",
            expected="a generator from which something can be learned",
            remedy="Tell the study lead: the server's model has diverged",
        )


def _take(training: GeneratorTraining, generator: Mapping[str, nn.Parameter]) -> None:
    """Let the generator learn, or leave it as it was sent where it diverges."""
    before = {name: value.detach().clone() for name, value in generator.items()}
    report = training.run(torch.Generator().manual_seed(secrets.randbits(63)))
    log.info(
        "generator: %d steps; %.0f%% of what it drew last was known for drawn",
        report.steps, 100 * report.accuracy,
    )  # fmt: skip
    if not all(bool(torch.isfinite(value).all()) for value in generator.values()):
        log.warning("the generator diverged; its steps are taken back")
        with torch.no_grad():
            for name, value in generator.items():
                value.copy_(before[name])
