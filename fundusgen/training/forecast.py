"""Whether a study can learn anything: noise over signal of a step, from public numbers alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fundusgen.models.factory import build_model, private_names
from fundusgen.study import Study
from fundusgen.training.mechanisms import noise_for

# Above this a step moves the weights mostly at random; the pictures stay noise.
WARN_NOISE_OVER_SIGNAL = 3.0
# Votes are averaged over dozens of like candidates before anything is made of them.
WARN_NOISE_OVER_VOTES = 10.0
LEARN_MORE = (
    "Train fewer parameters (model.width, model.private), sample more patients a step "
    "(sample_rate), or pool more sites"
)


@dataclass(frozen=True)
class Forecast:
    """Public numbers of a study.

    Attributes:
        noise_multiplier: With which all its rounds cost the target epsilon.
        private_parameters: Number of parameters trained on patients.
        noise_over_signal: Norm of the averaged noise of a step over the largest signal it can
            carry, all sites pooled.
    """

    noise_multiplier: float
    private_parameters: int
    noise_over_signal: float


def forecast(study: Study, declared_patients: Sequence[int]) -> Forecast:
    """Forecast a study over sites that declare these numbers of patients.

    Raises:
        AccountingError: No noise multiplier meets the study's target.
        ModelError: The study's private subset matches nothing.
    """
    parameters, noise_multiplier = private_parameters(study), noise_for(study, "dpsgd")
    ratio = noise_over_signal(study, declared_patients, noise_multiplier, parameters)
    return Forecast(noise_multiplier, parameters, ratio)


def noise_over_signal(
    study: Study, declared_patients: Sequence[int], noise_multiplier: float, parameters: int
) -> float:
    """Norm of the averaged noise of a step over the largest signal that it can carry.

    Each site adds noise of norm `noise_multiplier * sqrt(parameters) / (sample_rate * patients)`
    to a mean gradient of norm 1 at most (both over `max_grad_norm`). The server averages both
    with the sites' shares; the signals may all agree, the noises are independent. With shares by
    declared patients that is `noise_multiplier * sqrt(parameters * sites) / (sample_rate * all
    patients)`.

    Args:
        study: The study; its sample rate and the sites' shares count.
        declared_patients: Of each site, from 1; at least one site.
        noise_multiplier: Of the study.
        parameters: Number of parameters trained on patients.
    """
    shares = [
        patients if study.federation.weights == "declared" else 1 for patients in declared_patients
    ]
    # A share over the site's patients; all of them equal where shares are the patients.
    pooled = math.hypot(
        *(share / patients for share, patients in zip(shares, declared_patients, strict=True))
    ) / sum(shares)
    return noise_multiplier * math.sqrt(parameters) * pooled / study.dpsgd.sample_rate


def noise_over_votes(
    study: Study, declared_patients: Sequence[int], noise_multiplier: float
) -> float:
    """Standard deviation of the noise on a candidate's votes over the votes it gets on average.

    A patient with one image gives `1 / sqrt(nearest)` to each of `nearest` candidates, so
    `sqrt(nearest)` in all; the noises of the sites add up as they are independent.

    Args:
        study: A study with votes.
        declared_patients: Of each site, from 1; at least one site.
        noise_multiplier: Of the votes.
    """
    votes = study.votes
    nearest = min(votes.nearest, votes.candidates)
    mean = sum(declared_patients) * math.sqrt(nearest) / votes.candidates
    return noise_multiplier * math.sqrt(len(declared_patients)) / mean


def private_parameters(study: Study) -> int:
    """Count the parameters of a study that are trained on patients.

    Raises:
        ModelError: The study's private subset matches nothing.
    """
    model = build_model(study)
    names = private_names(model, study.model.private)
    return sum(model.get_parameter(name).numel() for name in names)


def verdict(alone: float, pooled: float | None) -> str:
    """Say in plain words whether a study can learn anything.

    Args:
        alone: `noise_over_signal` of this site by itself.
        pooled: Of all sites, or None where they are not known.
    """
    limit = f"{WARN_NOISE_OVER_SIGNAL:g}"
    if pooled is None:
        said = f"At this site alone the noise of a step is {alone:.2f} times its largest signal"
        if alone <= WARN_NOISE_OVER_SIGNAL:
            return f"{said}, not above {limit}: it can learn something even by itself."
        # Of equal sites, noise and signal are averaged alike but for the root of their number.
        wanted = math.ceil((alone / WARN_NOISE_OVER_SIGNAL) ** 2)
        return (
            f"{said}, above {limit}: by itself it would learn little or nothing. It takes "
            f"{wanted:,} sites of its size to come down to {limit}."
        )
    said = (
        f"Averaged over all sites the noise of a step is {pooled:.2f} times its largest signal "
        f"({alone:.2f} at this site alone)"
    )
    if pooled <= WARN_NOISE_OVER_SIGNAL:
        return f"{said}, not above {limit}: the study can learn something."
    return f"{said}, above {limit}: the study will learn little or nothing. {LEARN_MORE}."


def votes_verdict(alone: float, pooled: float | None) -> str:
    """Say in plain words whether votes can tell anything.

    Args:
        alone: `noise_over_votes` of this site by itself.
        pooled: Of all sites, or None where they are not known.
    """
    ratio, whose = (alone, "At this site alone") if pooled is None else (pooled, "Over all sites")
    said = (
        f"{whose} the noise on a candidate is {ratio:.2f} times the votes that it gets on average"
    )
    if ratio <= WARN_NOISE_OVER_VOTES:
        return f"{said}: averaged over like candidates, they tell which phantoms are like patients."
    return (
        f"{said}, above {WARN_NOISE_OVER_VOTES:g}: little will be learned from them. Offer fewer "
        "candidates (stages.votes.candidates), hold fewer rounds of votes, or pool more sites."
    )
