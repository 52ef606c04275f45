"""A prior as a file: weights in safetensors, and in its header what they were learned from."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from fundusgen import phantom, pixels
from fundusgen.errors import ModelError
from fundusgen.federation.weights import Weights, digest
from fundusgen.models import (
    activations,
    blocks,
    discriminator,
    factory,
    gan,
    losses,
    synthesis,
    vae,
)
from fundusgen.models.factory import build_model, load_weights
from fundusgen.storage import write_atomically
from fundusgen.study import Study
from fundusgen.training import fitting, learners, phantoms, sliced_distance

FORMAT = 1
_KEY, _CRITIC = "fundusgen.prior", "critic."
# Settings of a model that matter only when patients are asked.
_LATER = {
    "private", "drawn", "generator", "ensemble", "generator_steps", "generator_batch",
    "generator_learning_rate", "accuracy_floor", "phantoms_say",
}  # fmt: skip
# What decides how the weights come out, beside the settings.
_SOURCES = (
    activations, blocks, discriminator, factory, gan, losses, synthesis, vae,
    fitting, learners, phantoms, pixels, sliced_distance,
)  # fmt: skip


@dataclass(frozen=True)
class Prior:
    """What was learned from phantoms alone: epsilon 0.

    Attributes:
        weights: All weights of the study's model.
        digest: Names what it was learned from: see `prior_digest`.
        critic: Of the network that judged its drawings, for a later refit.
        facts: How it was learned: steps, seconds, held-out losses; plain JSON.
    """

    weights: Weights
    digest: str
    critic: Weights = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def prior_digest(study: Study) -> str:
    """SHA-256 over everything that a study's prior is made from, in hex.

    The simulator's version, the model, image size, conditions, settings of the prior with its
    seed, and the source of the modules that train. The stages, the private part of the weights,
    the budget and the study's own seed are not in it: studies that differ in those alone share a
    prior.
    """
    sources = {
        module.__name__: hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()
        for module in _SOURCES
    }
    parts = {
        **_shape(study),
        "prior": study.prior.model_dump(mode="json", exclude={"seed"}) if study.prior else None,
        "seed": study.prior.seed if study.prior else None,
        "simulator": phantom.SIMULATOR_VERSION,
        "sources": sources,
    }
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def save_prior(path: Path, study: Study, prior: Prior) -> None:
    """Write a prior of a study, whole or not at all."""
    arrays = {
        **prior.weights,
        **{f"{_CRITIC}{name}": array for name, array in prior.critic.items()},
    }
    header = {
        "format": FORMAT,
        "digest": prior.digest,
        "weights": digest(arrays),
        "study": _shape(study),
        "facts": prior.facts,
    }
    metadata = {_KEY: json.dumps(header, sort_keys=True, allow_nan=False)}
    write_atomically(path, save(arrays, metadata=metadata))


def load_prior(path: Path, study: Study) -> Prior:
    """Read a prior for a study.

    Raises:
        ModelError: There is no whole prior, or it is of another model than the study's.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads(file.metadata()[_KEY])
        arrays: Weights = load(path.read_bytes())
        version, learned_for = header["format"], dict(header["study"])
        critic = {k.removeprefix(_CRITIC): v for k, v in arrays.items() if k.startswith(_CRITIC)}
        weights = {k: v for k, v in arrays.items() if not k.startswith(_CRITIC)}
        prior = Prior(weights, str(header["digest"]), critic, dict(header["facts"]))
        whole = version != FORMAT or header["weights"] == digest(arrays)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"There is no whole prior in {path}: {' '.join(str(error).split())}",
            expected="a file that `fundusgen prior` wrote",
            remedy="Make it anew: fundusgen prior STUDY.yaml --out FILE",
        ) from error
    if version != FORMAT:
        raise ModelError(
            f"The prior in {path} has format {version}",
            expected=f"format {FORMAT}",
            remedy="Use the version of fundusgen that wrote it, or make it anew",
        )
    if not whole:
        raise ModelError(
            f"The weights in {path} are not those that its header tells of",
            expected="a file as `fundusgen prior` wrote it",
            remedy="Make it anew: fundusgen prior STUDY.yaml --out FILE",
        )
    _require_same_model(path, learned_for, study)
    # Of the same settings, and yet another network where the code has changed since.
    load_weights(build_model(study), {k: torch.from_numpy(v) for k, v in weights.items()})
    return prior


def _require_same_model(path: Path, found: dict[str, Any], study: Study) -> None:
    wanted = _shape(study)
    differing = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
    if differing:
        raise ModelError(
            f"The prior in {path} is of another model: "
            + ", ".join(f"{name} {_said(found.get(name))}" for name in differing),
            expected=", ".join(f"{name} {_said(wanted.get(name))}" for name in differing),
            remedy="Give the study that it was made for, or make one for this study: "
            "fundusgen prior STUDY.yaml --out FILE",
        )


def _shape(study: Study) -> dict[str, Any]:
    """Return what two studies must have in common to share weights."""
    return {
        "image_size": study.image_size,
        "conditions": list(study.conditions),
        **study.model.model_dump(mode="json", exclude=_LATER),
    }


def _said(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
