"""What a study will cost and whether it can learn, before anything is spent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fundusgen.models.factory import build_model, private_names
from fundusgen.study import Study
from fundusgen.training.answering import noise_for

# Above this a step moves the weights mostly at random; the pictures stay noise.
WARN_NOISE_OVER_SIGNAL = 3.0


@dataclass(frozen=True)
class Forecast:
    """Public numbers of a study.

    Attributes:
        noise_multiplier: With which all its rounds cost the target epsilon.
        private_parameters: Number of parameters trained on patients.
        noise_over_signal: Norm of the averaged noise of a step over the largest signal it can
            carry, all sites pooled by their declared patients.
    """

    noise_multiplier: float
    private_parameters: int
    noise_over_signal: float


def forecast(study: Study, declared_patients: Sequence[int]) -> Forecast:
    """Forecast a study over sites that declare these numbers of patients.

    Averaged by declared patients, each site adds noise of norm
    `noise_multiplier * sqrt(parameters) / (sample_rate * all patients)`, independently.

    Raises:
        AccountingError: No noise multiplier meets the study's target.
        ModelError: The study's private subset matches nothing.
    """
    model = build_model(study)
    names = private_names(model, study.model.private)
    parameters = sum(model.get_parameter(name).numel() for name in names)
    noise_multiplier = noise_for(study)
    sampled = study.stages.dpsgd.sample_rate * sum(declared_patients)
    return Forecast(
        noise_multiplier,
        parameters,
        noise_multiplier * math.sqrt(parameters * len(declared_patients)) / sampled,
    )
