"""Makers of the benchmark's rows of the VAE, and of the votes alone.

N images, S side in pixels, C colours.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.postprocess import Postprocess
from simulations.benchmarks.quality_context import Context
from simulations.benchmarks.quality_stages import (
    STUDIED,
    VOTES,
    after_votes,
    drawn,
    finished,
    fitted_on_patients,
    fresh,
    prepared,
    study_of,
    train,
)

# Those of `real-scratch.yaml`: with less to learn and larger steps, DP-SGD gets further.
_SCRATCH_ROUNDS = 200
_SCRATCH_MODEL: Mapping[str, Any] = {"width": 8, "latent": 8, "beta": 30}
_SCRATCH_FEDERATION: Mapping[str, Any] = {"server_learning_rate": 0.002, "ema_decay": 0.97}


def prior_alone(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
    """Draw from the prior, which has seen no patient."""
    study = study_of(context, seed, None, {"votes": None}, prior={"seed": seed})
    run = prepared(context, study, f"prior-{seed}")
    return finished(context, Postprocess(study, run))


def voted(
    context: Context, epsilon: float | None, seed: int, votes: Mapping[str, Any] = VOTES
) -> NDArray[np.uint8]:
    """Draw phantoms like those that won the votes."""
    server = after_votes(context, epsilon, seed, dpsgd=None, refit=False, votes=votes)
    server.finish_run()
    return winners(context, server)


def winners(context: Context, server: Postprocess) -> NDArray[np.uint8]:
    """Draw phantoms like those that won the votes of a study."""
    if server.voting is None:
        raise AssertionError("the study has votes")
    places = np.array([STUDIED.index(label) for label in context.labels_N], dtype=np.int64)
    population = server.voting.population(server.study.votes_rounds)
    return population.images(population.lineages(places, server.study.seed))


def refitted(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
    """Draw from the model, refitted on phantoms like those that won the votes."""
    server = after_votes(context, epsilon, seed, dpsgd=None, refit=True)
    return finished(context, server)


def tuned(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
    """Draw from the model after votes, refit and DP-SGD on its private part."""
    server = after_votes(context, epsilon, seed, dpsgd={}, refit=True)
    train(context, server, epsilon)
    return finished(context, server)


def dpsgd_alone(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
    """Draw from the model after DP-SGD on all of it, begun with random weights."""
    study = study_of(
        context, seed, epsilon, {"votes": None}, prior=None, model=_SCRATCH_MODEL,
        rounds=_SCRATCH_ROUNDS, federation=_SCRATCH_FEDERATION,
    )  # fmt: skip
    server = Postprocess(study, fresh(context, f"dpsgd-{epsilon}-{seed}"))
    train(context, server, epsilon)
    return finished(context, server)


def from_scratch(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
    """Draw from the same model, trained on all patients' images in one place, without privacy."""
    study = study_of(context, seed, None, {"votes": None}, prior={})
    return drawn(context, study, fitted_on_patients(context, study, seed))
