"""A vote at one site: every patient for the phantoms most like their photographs.

Axis letters: N candidates, D features, M images of one patient, K choices of an image.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fundusgen.data.patients import PatientDataset
from fundusgen.federation.weights import Weights
from fundusgen.pixels import to_network
from fundusgen.privacy.noise import NoiseSource
from fundusgen.privacy.votes import NOBODY, VoteSettings, ballot, noisy_tally
from fundusgen.training.poll import VOTES, Poll

# Of one patient's images at a time; someone with hundreds of them should not fill the memory.
_IMAGES = 16


@dataclass(frozen=True, eq=False)
class PreparedVote:
    """A vote with all its settings found to be right, and no photograph looked at yet."""

    poll: Poll
    patients: PatientDataset
    settings: VoteSettings
    noise: NoiseSource
    device: torch.device


def prepare_vote(
    poll: Poll,
    patients: PatientDataset,
    *,
    noise_multiplier: float,
    noise: NoiseSource,
    device: torch.device,
) -> PreparedVote:
    """Build a vote, so that what is wrong with its settings costs no privacy.

    Guarantee: `cast_votes` of the result is one Gaussian mechanism on patients with this noise
    multiplier, for whatever poll came in, and nothing else that depends on patients. No image is
    read here; whether this raises depends on public settings only.
    Edge cases: no patients at all are allowed: the tally is noise.

    Args:
        poll: What the server sent, from `load_poll`.
        patients: The site's patients, with conditions as places in the study's list.
        noise_multiplier: Standard deviation of the noise on every candidate's votes.
        noise: Source of the mechanism's randomness.
        device: Where to compute.

    Raises:
        PrivacyError: A setting is out of range.
    """
    poll.encoder.to(device)
    settings = VoteSettings(noise_multiplier, len(poll.conditions_N))
    return PreparedVote(poll, patients, settings, noise, device)


def cast_votes(vote: PreparedVote) -> Weights:
    """Let every patient vote, and return the noisy tally.

    Guarantee: as `prepare_vote` says. A patient's ballot is a function of that patient's images
    and conditions and of the poll: they are read in batches of nobody else's, so that not even
    the rounding of a convolution depends on who else is there.
    Edge cases: an image whose features are not finite, or whose condition no candidate has,
    votes for nobody.

    Raises:
        PrivacyError: Something failed; nothing may be sent.
    """
    ballots = (
        ballot(choices(vote, patient), vote.settings) for patient in range(len(vote.patients))
    )
    return {VOTES: noisy_tally(ballots, vote.settings, vote.noise)}


def choices(vote: PreparedVote, patient: int) -> NDArray[np.int64]:
    """Find the candidates nearest to each image of a patient, among those of its condition.

    NOT private: it stays at the site, but for what `noisy_tally` makes of it.

    Args:
        vote: The vote.
        patient: Index of the patient.

    Returns:
        (M, K) candidates; `NOBODY` where there are not as many to choose from.
    """
    poll, images_M = vote.poll, vote.patients.images_of(patient)
    chosen_MK = np.full((len(images_M), poll.nearest), NOBODY, dtype=np.int64)
    features_MD = _features(vote, images_M)
    for row, (image, features_D) in enumerate(zip(images_M, features_MD, strict=True)):
        # All candidates are put in order, and only then those of the condition are looked for:
        # else the time that it takes would tell conditions apart, by as much as a server likes
        # that puts up nearly all its candidates for one of them.
        apart_N = np.square(poll.features_ND.astype(np.float64) - features_D).sum(axis=1)
        order_N = np.argsort(apart_N, kind="stable")
        may_be_N = poll.conditions_N[order_N] == vote.patients.conditions_N[image]
        nearest = order_N[may_be_N & np.isfinite(apart_N[order_N])][: poll.nearest]
        chosen_MK[row, : len(nearest)] = nearest
    return chosen_MK


@torch.inference_mode()
def _features(vote: PreparedVote, images_M: NDArray[np.int64]) -> NDArray[np.float64]:
    """Encode one patient's images: (M, D)."""
    parts = []
    for start in range(0, len(images_M), _IMAGES):
        pixels = torch.from_numpy(vote.patients.pixels(images_M[start : start + _IMAGES]))
        images = to_network(pixels, vote.device).contiguous()
        parts.append(vote.poll.encoder(images).double().cpu().numpy())
    return np.concatenate(parts)
