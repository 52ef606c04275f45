"""A vote at one site: every patient for the phantoms most like their photographs.

With it, patients say how their photographs look, where the study asks for that.

Axis letters: N candidates, D features, M images of one patient, K choices of an image.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fundusgen.data.patients import PatientDataset
from fundusgen.federation.weights import Weights
from fundusgen.pixels import to_network
from fundusgen.privacy.moments import joint, statement
from fundusgen.privacy.noise import NoiseSource
from fundusgen.privacy.votes import NOBODY, VoteSettings, ballot, noisy_tally
from fundusgen.training.appearance import NUMBERS, appearance_of
from fundusgen.training.poll import APPEARANCE, VOTES, Poll

# Of one patient's images at a time; someone with hundreds of them should not fill the memory.
_IMAGES = 16


@dataclass(frozen=True, eq=False)
class PreparedVote:
    """A vote with all its settings found to be right, and no photograph looked at yet.

    Attributes:
        poll: What is asked.
        patients: Who is.
        settings: Of ballots.
        whole: Of ballots together with statements: all entries that leave.
        noise: Source of the noise.
        device: Where to compute.
    """

    poll: Poll
    patients: PatientDataset
    settings: VoteSettings
    whole: VoteSettings
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
    multiplier, for whatever poll came in, and nothing else that depends on patients: of a patient
    there is one vector of L2 norm 1 at most, ballot and statement together. No image is
    read here; whether this raises depends on public settings only.
    Edge cases: no patients at all are allowed: the tally is noise.

    Args:
        poll: What the server sent, from `load_poll`.
        patients: The site's patients, with conditions as places in the study's list.
        noise_multiplier: Standard deviation of the noise on every entry of the tally.
        noise: Source of the mechanism's randomness.
        device: Where to compute.

    Raises:
        PrivacyError: A setting is out of range.
    """
    poll.encoder.to(device)
    candidates, said = len(poll.conditions_N), 2 * NUMBERS if poll.units else 0
    settings = VoteSettings(noise_multiplier, candidates)
    whole = VoteSettings(noise_multiplier, candidates + said)
    return PreparedVote(poll, patients, settings, whole, noise, device)


def cast_votes(vote: PreparedVote) -> Weights:
    """Let every patient vote, and return the noisy tally.

    Guarantee: as `prepare_vote` says. A patient's vector is a function of that patient's images
    and conditions and of the poll: they are read in batches of nobody else's, so that not even
    the rounding of a convolution depends on who else is there.
    Edge cases: an image whose features are not finite, or whose condition no candidate has,
    votes for nobody.

    Raises:
        PrivacyError: Something failed; nothing may be sent.
    """
    said = (contribution(vote, patient) for patient in range(len(vote.patients)))
    released = noisy_tally(said, vote.whole, vote.noise)
    candidates = vote.settings.candidates
    reply = {VOTES: released[:candidates]}
    if vote.poll.units:
        reply[APPEARANCE] = released[candidates:]
    return reply


def contribution(vote: PreparedVote, patient: int) -> NDArray[np.float64]:
    """Ballot and statement of a patient in one vector of L2 norm 1 at most.

    NOT private: it stays at the site, but for what `noisy_tally` makes of it.
    """
    poll = vote.poll
    one = ballot(choices(vote, patient), vote.settings)
    if poll.units is None:
        return one
    parts = [
        poll.units.of(appearance_of(pixels))
        for pixels in _pixels(vote, vote.patients.images_of(patient))
    ]
    return joint(one, statement(np.concatenate(parts)), poll.share)


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
    for pixels in _pixels(vote, images_M):
        images = to_network(torch.from_numpy(pixels), vote.device).contiguous()
        parts.append(vote.poll.encoder(images).double().cpu().numpy())
    return np.concatenate(parts)


def _pixels(vote: PreparedVote, images_M: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    """Read one patient's images, some at a time."""
    for start in range(0, len(images_M), _IMAGES):
        yield vote.patients.pixels(images_M[start : start + _IMAGES])
