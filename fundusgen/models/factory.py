"""From a study to its network, and which of its parameters are trained on patients."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from fundusgen.errors import ModelError
from fundusgen.models.blocks import require_private_layers
from fundusgen.models.vae import VAE
from fundusgen.study import Study


def build_model(study: Study) -> VAE:
    """Build a study's network with the first weights that its seed gives.

    The weights are the same on any machine with the same torch, and the global generator is left
    as it was.

    Raises:
        ModelError: The network has a layer that DP-SGD cannot train.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.seed)
        model = VAE(
            image_size=study.image_size,
            conditions=len(study.conditions),
            width=study.model.width,
            latent=study.model.latent,
            pixel_std=study.model.pixel_std,
            beta=study.model.beta,
        )
    require_private_layers(model)
    return model


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
