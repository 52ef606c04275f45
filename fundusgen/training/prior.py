"""The public prior: the study's model, pretrained on phantoms before any patient is asked.

First stage of a study, on the server. No patient has any part in it: epsilon 0. A prior takes
minutes to train and depends on public settings only, so it is kept and found again by a digest
of them.
"""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fundusgen.errors import ModelError, StudyError
from fundusgen.models.factory import build_model
from fundusgen.study import PriorSettings, Study
from fundusgen.training.device import quickest_device
from fundusgen.training.fitting import FitProgress, fit, weights_of
from fundusgen.training.phantoms import study_phantoms
from fundusgen.training.prior_file import Prior, load_prior, prior_digest, save_prior

__all__ = [
    "Prior",
    "PriorProgress",
    "cached_prior",
    "default_cache_dir",
    "fit",
    "load_prior",
    "pretrained",
]

# A tenth as many phantoms besides are held out.
_HELD_OUT = 10


@dataclass(frozen=True)
class PriorProgress:
    """How far a prior has come.

    Attributes:
        stage: What is done: drawing phantoms, or training on them.
        done: Phantoms, or steps.
        total: How many there will be at most.
        held_out_distance: Where it was measured after this step.
    """

    stage: Literal["phantoms", "training"]
    done: int
    total: int
    held_out_distance: float | None = None


def pretrained(
    study: Study,
    cache_dir: Path,
    *,
    workers: int = 1,
    device: torch.device | None = None,
    on_progress: Callable[[PriorProgress], None] = lambda progress: None,
) -> Prior:
    """Return the study's prior: from the cache, or drawn and trained now and put there.

    Guarantee: the result depends on the study and the prior's seed in it, and on no patient.
    Edge cases: a damaged file in the cache is trained anew and replaced.

    Args:
        study: A study with `prior` settings.
        cache_dir: Folder of priors by digest; made if absent.
        workers: Processes that draw phantoms.
        device: Where to train; a GPU where there is one, if absent.
        on_progress: Called while phantoms are drawn and after every step.

    Raises:
        StudyError: The study has no prior.
    """
    settings = require_prior(study)
    kept = cached_prior(study, cache_dir)
    if kept is not None:
        return kept
    prior = _trained(study, settings, workers, device or quickest_device(), on_progress)
    save_prior(_file(study, cache_dir), study, prior)
    return prior


def cached_prior(study: Study, cache_dir: Path) -> Prior | None:
    """Return the study's prior if it lies whole in the cache."""
    try:
        prior = load_prior(_file(study, cache_dir), study)
    except ModelError:
        return None
    return prior if prior.digest == prior_digest(study) else None


def require_prior(study: Study) -> PriorSettings:
    """Return the settings of the study's prior.

    Raises:
        StudyError: It has none.
    """
    if study.prior is None:
        raise StudyError(
            f"The study '{study.study_id}' has no prior: it begins with random weights",
            expected="a section `prior:` in the study file",
            remedy="Add `prior: {}` for the defaults",
        )
    return study.prior


def _trained(
    study: Study,
    settings: PriorSettings,
    workers: int,
    device: torch.device,
    on_progress: Callable[[PriorProgress], None],
) -> Prior:
    began = time.monotonic()
    held_out = max(1, settings.phantoms // _HELD_OUT)
    # One collection: its last tenth shares no phantom with the rest.
    images_NSSC, conditions_N = study_phantoms(
        study,
        settings.phantoms + held_out,
        settings.seed,
        workers=workers,
        on_progress=lambda done, total: on_progress(PriorProgress("phantoms", done, total)),
    )
    drawn = time.monotonic()
    curve: list[list[float]] = []

    def note(progress: FitProgress) -> None:
        if progress.held_out_distance is not None:
            curve.append([progress.step, progress.held_out_distance])
        step, steps = progress.step, progress.steps
        on_progress(PriorProgress("training", step, steps, progress.held_out_distance))

    fitted = fit(
        study,
        weights_of(build_model(study.model_copy(update={"seed": settings.seed}))),
        images_NSSC[:-held_out],
        conditions_N[:-held_out],
        steps=settings.steps,
        batch=settings.batch,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
        device=device,
        held_out=(images_NSSC[-held_out:], conditions_N[-held_out:]),
        on_progress=note,
    )
    distance = next(found for step, found in curve if step == fitted.step)
    facts = {
        "phantoms": settings.phantoms,
        "held_out_phantoms": held_out,
        "steps": int(curve[-1][0]),
        "best_step": fitted.step,
        "held_out_distance": distance,
        "held_out_distances": curve,
        "phantom_seconds": round(drawn - began, 1),
        "training_seconds": round(time.monotonic() - drawn, 1),
        "device": device.type,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    return Prior(fitted.weights, prior_digest(study), fitted.critic, facts)


def default_cache_dir() -> Path:
    """Where a user's priors are kept: they are public, and the same for every run."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fundusgen" / "priors"


def _file(study: Study, cache_dir: Path) -> Path:
    return cache_dir / f"prior-{prior_digest(study)[:16]}.safetensors"
