"""From a study to its network, and which of its parameters are trained on patients."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from fundusgen.errors import ModelError
from fundusgen.models.blocks import require_private_layers
from fundusgen.models.gan import GAN
from fundusgen.models.vae import VAE
from fundusgen.study import GANSettings, Study

# What every family can do: `draw`, from as much noise as `noise_length` says.
Model = VAE | GAN


def build_model(study: Study) -> Model:
    """Build a study's network with the first weights that its seed gives.

    The weights are the same on any machine with the same torch, and the global generator is left
    as it was.

    Raises:
        ModelError: The network has a layer that DP-SGD cannot train.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.seed)
        model = _built(study)
    require_private_layers(model)
    return model


def _built(study: Study) -> Model:
    settings, size, conditions = study.model, study.image_size, len(study.conditions)
    if isinstance(settings, GANSettings):
        return GAN(
            image_size=size,
            conditions=conditions,
            width=settings.width,
            latent=settings.latent,
            discriminator_width=settings.discriminator_width,
            loss=settings.loss,
        )
    return VAE(
        image_size=size,
        conditions=conditions,
        width=settings.width,
        latent=settings.latent,
        pixel_std=settings.pixel_std,
        beta=settings.beta,
    )


def drawing_prefix(study: Study) -> str:
    """What the names of the weights that images are drawn with begin with.

    The others, a GAN's discriminator or a VAE's encoder, serve training alone.
    """
    return "generator." if isinstance(study.model, GANSettings) else "decoder."


def private_names(model: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Names of the parameters that any of the glob patterns matches, in the model's order.

    Raises:
        ModelError: A pattern matches nothing: a mistyped subset would train less than it says.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ModelError(
                f"model.private has '{pattern}', which matches no parameter",
                expected=f"patterns over names such as {', '.join(names[:3])}, ..., {names[-1]}",
                remedy="Correct the pattern in the study",
            )
    return tuple(name for name in names if any(fnmatchcase(name, p) for p in patterns))


def trains_generator_at_sites(study: Study) -> bool:
    """Whether sites send a generator of their own besides what they train on patients."""
    return isinstance(study.model, GANSettings) and study.model.generator == "sites"


def reply_names(study: Study) -> tuple[str, ...]:
    """Names of the weights that a site sends after a round of DP-SGD.

    The private ones; and with `generator: sites` the generator's, which learned from those.

    Raises:
        ModelError: `model.private` has a pattern that matches nothing.
    """
    model = build_model(study)
    names = private_names(model, study.model.private)
    if not trains_generator_at_sites(study):
        return names
    return (*names, *(n for n, _ in model.named_parameters() if n.startswith("generator.")))


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a model.

    Raises:
        ModelError: Names or shapes are not the model's.
    """
    try:
        model.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        raise ModelError(
            f"The weights do not fit the model: {' '.join(str(error).split())}",
            expected="the weights of this study's model",
            remedy="Check that study and weights belong together",
        ) from error
