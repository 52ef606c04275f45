"""Makers of the benchmark's rows of the GAN.

N images, S side in pixels, C colours.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.postprocess import Postprocess
from simulations.benchmarks.quality_context import Context
from simulations.benchmarks.quality_stages import (
    DPSGD,
    after_votes,
    drawn,
    finished,
    fitted_on_patients,
    fresh,
    prepared,
    study_of,
    train,
)

_GAN: Mapping[str, Any] = {"kind": "gan"}
# Without noise, all of the discriminator can learn.
_WHOLE: Mapping[str, Any] = {**_GAN, "private": ["discriminator.*"]}
# Longer than the default: a game goes on getting better where a bound has been reached.
_PRIOR: Mapping[str, Any] = {"steps": 8000}
_ROUNDS = 60
_FEDERATION: Mapping[str, Any] = {"server_learning_rate": 0.003}


def gan_prior(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
    """Draw from the GAN's prior, which has seen no patient."""
    study = study_of(
        context, seed, None, {"votes": None}, prior={**_PRIOR, "seed": seed}, model=_GAN
    )
    run = prepared(context, study, f"gan-prior-{seed}")
    return finished(context, Postprocess(study, run))


def gan_tuned(
    context: Context, epsilon: float | None, seed: int, **settings: Any
) -> NDArray[np.uint8]:
    """Draw from the GAN after its prior and DP-SGD on a part of its discriminator.

    Args:
        context: Gives the hospitals.
        epsilon: Of the study; None where nothing is to be hidden.
        seed: Of the study.
        **settings: See `tuned_server`.
    """
    server = tuned_server(context, epsilon, seed, **settings)
    return finished(context, server)


def tuned_server(
    context: Context,
    epsilon: float | None,
    seed: int,
    *,
    model: Mapping[str, Any] = {},
    dpsgd: Mapping[str, Any] = {},
    federation: Mapping[str, Any] = {},
    rounds: int = _ROUNDS,
) -> Postprocess:
    """Train a GAN by DP-SGD after its prior.

    Args:
        context: Gives the hospitals.
        epsilon: Of the study; None where nothing is to be hidden.
        seed: Of the study.
        model: Settings of the GAN that are not the default.
        dpsgd: The same of the stage.
        federation: The same of the federation.
        rounds: Of DP-SGD.
    """
    study = study_of(
        context, seed, epsilon, {"votes": None, "dpsgd": {**DPSGD, **dpsgd}},
        prior=_PRIOR, model={**_GAN, **model}, rounds=rounds,
        federation={**_FEDERATION, **federation},
    )  # fmt: skip
    server = Postprocess(study, prepared(context, study, f"gan-{epsilon}-{seed}"))
    train(context, server, epsilon)
    return server


def gan_tuned_often(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
    """As `gan_tuned`, with four steps of DP-SGD in a round instead of one, at the same epsilon."""
    return gan_tuned(context, epsilon, seed, dpsgd={"steps_per_round": 4})


def gan_at_sites(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
    """As `gan_tuned`, with generators that are trained at the sites and averaged."""
    return gan_tuned(context, epsilon, seed, model={"generator": "sites"})


def gan_voted(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
    """Draw from the GAN after votes, refitted on phantoms like those that won."""
    server = after_votes(
        context, epsilon, seed, dpsgd=None, refit=True, label="gan-votes", prior=_PRIOR, model=_GAN
    )
    return finished(context, server)


def gan_voted_and_tuned(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
    """Draw from the GAN after votes, refit and DP-SGD on a part of its discriminator."""
    server = voted_server(context, epsilon, seed)
    train(context, server, epsilon)
    return finished(context, server)


def voted_server(
    context: Context, epsilon: float | None, seed: int, **study_settings: Any
) -> Postprocess:
    """Hold the votes of a GAN that DP-SGD goes on with, and refit it.

    Args:
        context: Gives the hospitals.
        epsilon: Of both stages; None where nothing is to be hidden.
        seed: Of the study.
        **study_settings: See `study_of`.
    """
    return after_votes(
        context, epsilon, seed, dpsgd={}, refit=True, label="gan-votes",
        prior=_PRIOR, model=_GAN, rounds=_ROUNDS, federation=_FEDERATION, **study_settings,
    )  # fmt: skip


def gan_from_scratch(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
    """Draw from the GAN after DP-SGD on all of its discriminator, begun with random weights."""
    study = study_of(
        context, seed, epsilon, {"votes": None}, prior=None,
        model=_WHOLE, rounds=2 * _ROUNDS, federation=_FEDERATION,
    )  # fmt: skip
    server = Postprocess(study, fresh(context, f"gan-scratch-{epsilon}-{seed}"))
    train(context, server, epsilon)
    return finished(context, server)


def gan_without_noise(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
    """As `gan_tuned`, without noise and with all of the discriminator: what federation costs."""
    return gan_tuned(context, None, seed, model=_WHOLE)


def gan_in_one_place(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
    """As `gan_without_noise`, with all patients at one hospital: the same steps, no federation."""
    return gan_without_noise(context.pooled(), epsilon, seed)


def gan_ordinary(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
    """Draw from the prior after ordinary training on all patients' images in one place.

    Without clipping, at the prior's rate, with a step of the discriminator for each of the
    generator: what nobody could do who has to keep patients apart.
    """
    study = study_of(context, seed, None, {"votes": None}, prior=_PRIOR, model=_GAN)
    begin = Postprocess(study, prepared(context, study, "gan-prior")).state.average
    steps = _ROUNDS * study.gan.generator_steps
    return drawn(context, study, fitted_on_patients(context, study, seed, steps, begin=begin))
