"""DP-SGD on one site's patients for one round: the sum of steps behind one event.

Legend of axes: P patients of a physical batch, K views of a patient, Z latent.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from fundusgen.data.patients import PatientDataset
from fundusgen.federation.weights import Weights
from fundusgen.models.factory import build_model, load_weights, private_names
from fundusgen.models.vae import VAE
from fundusgen.privacy.dpsgd import DPSGDSettings, PatientSGD
from fundusgen.privacy.noise import NoiseSource
from fundusgen.privacy.sampling import PoissonPatients
from fundusgen.study import DPSGDStage, Study


def load_model(study: Study, weights: Weights) -> VAE:
    """Build the study's model with the weights that the server sent.

    Raises:
        ModelError: The weights do not fit the study's model.
    """
    model = build_model(study)
    load_weights(model, {name: torch.from_numpy(array) for name, array in weights.items()})
    return model


def train_round(
    study: Study,
    model: nn.Module,
    patients: PatientDataset,
    *,
    round_number: int,
    noise_multiplier: float,
    declared_patients: int,
    noise: NoiseSource,
    device: torch.device,
) -> Weights:
    """Take a round's DP-SGD steps and return the private part of the weights.

    Guarantee: the result is the output of `steps_per_round` subsampled Gaussian mechanisms on
    patients with the study's sample rate and this noise multiplier, whatever the weights that
    came in, and of nothing else that depends on patients.
    Edge cases: an empty Poisson batch takes its noise step; a gradient that is not finite raises
    before anything is applied.

    Args:
        study: The study.
        model: The study's model as the server sent it, from `load_model`; is changed.
        patients: The site's patients.
        round_number: From 1; sets the KL warm-up.
        noise_multiplier: Noise standard deviation over `max_grad_norm`.
        declared_patients: Public number of patients, the denominator of every step.
        noise: Source of the mechanism's randomness.
        device: Where to compute.

    Raises:
        PrivacyError: A gradient is not finite.
    """
    stage = study.stages.dpsgd
    model.to(device)
    names = private_names(model, study.model.private)
    private = {name: model.get_parameter(name) for name in names}
    sgd = PatientSGD(
        private,
        _optimizer(list(private.values()), stage),
        DPSGDSettings(
            noise_multiplier=noise_multiplier,
            sample_rate=stage.sample_rate,
            max_grad_norm=stage.max_grad_norm,
            patients=declared_patients,
            physical_batch=stage.physical_patients,
        ),
        noise,
        PoissonPatients(len(patients), stage.sample_rate, noise),
    )
    loss = _PatientLoss(model, names, kl_weight(stage, round_number))
    # Which image of a patient is seen is no part of the guarantee, so an ordinary generator does;
    # it is seeded by the operating system all the same.
    views = np.random.default_rng()

    def load(indices_P: NDArray[np.int64]) -> tuple[Tensor, ...]:
        images, conditions = patients.views(indices_P, stage.views_per_patient, views)
        latent = torch.randn(*conditions.shape, study.model.latent)
        return images.to(device), conditions.to(device), latent.to(device)

    for _ in range(stage.steps_per_round):
        sgd.step(loss, load)
    return {name: value.detach().cpu().numpy() for name, value in private.items()}


def kl_weight(stage: DPSGDStage, round_number: int) -> float:
    """Weight of the KL term in a round: grows linearly to 1 over the warm-up."""
    return min(1.0, round_number / (stage.kl_warmup_rounds + 1))


class _PatientLoss:
    """Mean loss over one patient's views, as a function of the private parameters."""

    def __init__(self, model: nn.Module, private: tuple[str, ...], kl: float) -> None:
        self.model = model
        self.kl = kl
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.frozen = {name: value.detach() for name, value in state.items() if name not in private}

    def __call__(self, parameters: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        losses_K: Tensor = functional_call(
            self.model, {**self.frozen, **parameters}, (*batch, self.kl)
        )
        return losses_K.mean()


def _optimizer(parameters: list[nn.Parameter], stage: DPSGDStage) -> torch.optim.Optimizer:
    if stage.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=stage.learning_rate)
    return torch.optim.Adam(parameters, lr=stage.learning_rate)
