"""Attacks on membership that see all weights of a model.

Of a GAN the discriminator, of a VAE the encoder: both are trained on patients, both say of any
photograph how well they know it, and server and hospitals have them, though no release. What is
attacked are the weights that the generator was taken from.
Weaker than a white-box attack in the full sense: only outputs are used, neither gradients nor
the weights as they are. `membership` judges the scores.

N images, B batch, C channels, S side of the image, Z latent.
"""

import numpy as np
import torch
from torch import Tensor

from fundusgen.errors import ModelError
from fundusgen.evaluation.images import ImageSet
from fundusgen.evaluation.membership import Attack, OverImages, attack
from fundusgen.evaluation.resampling import REPLICATES, Floats
from fundusgen.models.factory import Model
from fundusgen.models.gan import GAN
from fundusgen.models.vae import VAE
from fundusgen.pixels import to_network
from fundusgen.study import Study

_BATCH = 64
# Reparameterisation noises that a loss is averaged over.
_DRAWS = 8


def model_attack(
    study: Study,
    model: Model,
    member: ImageSet,
    non_member: ImageSet,
    rng: np.random.Generator,
    *,
    over_images: OverImages = "max",
    replicates: int = REPLICATES,
) -> Attack:
    """Attack a model through what it says of photographs.

    Args:
        study: The study that the model is of.
        model: With all of its weights, in evaluation mode.
        member: Photographs that it was trained on.
        non_member: Photographs of other patients, divided from the members at random.
        rng: Resamples patients, and seeds the noise of a VAE's encoder.
        over_images: See `fundusgen.evaluation.membership.attack`.
        replicates: Of the bootstrap.

    Returns:
        Of a GAN the attack `discriminator`, of a VAE the attack `bound`.

    Raises:
        ModelError: A photograph has a condition or a size that the model does not know.
        ValueError: There are too few patients.
    """
    if isinstance(model, GAN):
        name = "discriminator"
        of_members_N = discriminator_scores(study, model, member)
        of_others_M = discriminator_scores(study, model, non_member)
    else:
        name, seed = "bound", int(rng.integers(2**31))
        of_members_N = bound_scores(study, model, member, seed)
        of_others_M = bound_scores(study, model, non_member, seed)
    return attack(
        name,
        of_members_N,
        member.patients_N,
        of_others_M,
        non_member.patients_N,
        rng,
        over_images=over_images,
        replicates=replicates,
    )


@torch.inference_mode()
def discriminator_scores(study: Study, model: GAN, images: ImageSet) -> Floats:
    """Score images by how real the discriminator takes them for: its mean vote, (N,).

    Args:
        study: Gives the order of conditions.
        model: With all of its weights.
        images: Real photographs with their conditions.

    Raises:
        ModelError: A photograph has a condition or a size that the model does not know.

    Source: Hayes et al. 2019, "LOGAN", white-box attack: an overfitted discriminator is surer of
        what it was trained on.
    """
    votes = [
        model.discriminator(batch, conditions).mean(1)
        for batch, conditions in _batches(study, images)
    ]
    return torch.cat(votes).to(torch.float64).numpy()


@torch.inference_mode()
def bound_scores(study: Study, model: VAE, images: ImageSet, seed: int) -> Floats:
    """Score images by their evidence lower bound: the negative loss, in nats a pixel value, (N,).

    Args:
        study: Gives the order of conditions.
        model: With the weights of encoder and decoder.
        images: Real photographs with their conditions.
        seed: Of the noise, the same for every image; the bound is its mean over some draws.

    Raises:
        ModelError: A photograph has a condition or a size that the model does not know.

    Source: the reconstruction attack of Hilprecht et al. 2019, with the KL term added: what the
        model was trained to lower is lowest on what it was trained with.
    """
    draws = torch.Generator().manual_seed(seed)
    noise_KZ = torch.randn(_DRAWS, model.latent, generator=draws)
    scores = []
    for batch, conditions in _batches(study, images):
        losses = [model(batch, conditions, noise.expand(len(batch), -1)) for noise in noise_KZ]
        scores.append(-torch.stack(losses).mean(0))
    return torch.cat(scores).to(torch.float64).numpy()


def _batches(study: Study, images: ImageSet) -> list[tuple[Tensor, Tensor]]:
    """Images (B, C, S, S) in [-1, 1] and places of their conditions (B,)."""
    names = [str(name) for name in study.conditions]
    unknown = sorted(set(images.conditions) - set(names))
    side = images.images_NSSC.shape[1]
    if unknown or side != study.image_size:
        raise ModelError(
            f"photographs of {side} px with the conditions {', '.join(images.conditions)} were "
            "to be shown to the model",
            expected=f"{study.image_size} px and conditions of {', '.join(names)}",
            remedy="Frame them at the study's size, and leave out what it does not generate",
        )
    conditions_N = torch.tensor([names.index(name) for name in images.conditions_N])
    scaled_NCSS = to_network(torch.from_numpy(np.ascontiguousarray(images.images_NSSC)))
    return list(
        zip(torch.split(scaled_NCSS, _BATCH), torch.split(conditions_N, _BATCH), strict=True)
    )
