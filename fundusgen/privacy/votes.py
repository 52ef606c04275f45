"""Private votes: which of many public candidates are most like the patients of a site.

Private Evolution (Lin et al. 2024, arXiv 2305.15560, Algorithm 2) with the patient as its unit:
every patient has one ballot, a vector over the candidates of L2 norm 1 at most, whatever the
number of their images. A site adds up its ballots and adds Gaussian noise once. That is a plain
Gaussian mechanism: one event of kind `gaussian` in the ledger, reserved before it runs.

The candidates, their features and the space in which nearness is measured are public. What they
are may have been chosen by the server with any intent: it changes whom a patient votes for, and
never how much.

Axis letters: N candidates, M images of one patient, K choices of an image.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fundusgen.errors import PrivacyError
from fundusgen.privacy.noise import NoiseSource, add_gaussian_noise, lattice_spacing

# An L2 norm of a million squares is off by at most this share in float64; NumPy adds pairwise.
_MARGIN = 1e-9
# Its lattice holds sums up to 2**24: so many patients who all vote for the same candidate.
_LEAST_NOISE = 0.01
NOBODY = -1


@dataclass(frozen=True)
class VoteSettings:
    """The public numbers of one vote. None of them may be computed from patients' data.

    Guarantee: with these, `noisy_tally` is the Gaussian mechanism with `noise_multiplier` and an
        L2 sensitivity of 1 to adding or removing one patient with all their images.
    Edge cases: a noise multiplier of 0 is refused, as it protects nobody; so are NaN, infinity
        and numbers out of range. So little noise that its lattice could not hold the ballots of
        ten million patients is out of range too: whether a sum fits would depend on them.

    Attributes:
        noise_multiplier: Standard deviation of the noise on every candidate's votes, 0.01 to 1e6.
        candidates: N, from 1 to 2**31.

    Raises:
        PrivacyError: A number is out of range.
    """

    noise_multiplier: float
    candidates: int

    def __post_init__(self) -> None:
        """Refuse what would weaken the guarantee; comparisons are false for NaN."""
        if not _LEAST_NOISE <= self.noise_multiplier <= 1e6:
            raise PrivacyError(
                f"the noise multiplier of a vote is {self.noise_multiplier}",
                expected=f"a number from {_LEAST_NOISE:g} to 1e6",
            )
        if type(self.candidates) is not int or not 1 <= self.candidates <= 2**31:
            raise PrivacyError(
                f"a vote on {self.candidates!r} candidates was asked for",
                expected="a whole number from 1 to 2**31",
            )


def ballot(choices_MK: NDArray[np.int64], settings: VoteSettings) -> NDArray[np.float64]:
    """Make the ballot of one patient.

    Guarantee: a function of this patient's choices alone, and of L2 norm 1 at most whatever they
        are: a patient with more images, or more choices an image, spreads the same mass thinner.
    Edge cases: a patient without images, or whose images found nobody to vote for, hands in a
        blank ballot of zeros. A candidate chosen by several images gets more of the mass.

    Args:
        choices_MK: For each image the candidates it chose, 0 to N - 1, or `NOBODY`.
        settings: Of the vote.

    Returns:
        (N,) float64, none below zero, of norm 1 or all zero.

    Raises:
        PrivacyError: A choice is no candidate.
    """
    chosen = np.asarray(choices_MK, dtype=np.int64).reshape(-1)
    chosen = chosen[chosen != NOBODY]
    if chosen.size and not (chosen.min() >= 0 and chosen.max() < settings.candidates):
        raise PrivacyError(
            "a vote was cast for a candidate who does not stand",
            expected=f"places from 0 to {settings.candidates - 1}",
        )
    votes_N = np.bincount(chosen, minlength=settings.candidates).astype(np.float64)
    norm = math.sqrt(float(votes_N @ votes_N))
    return votes_N / norm if norm else votes_N


def noisy_tally(
    ballots: Iterable[NDArray[np.float64]], settings: VoteSettings, noise: NoiseSource
) -> NDArray[np.float32]:
    """Add up the ballots of all patients, one each, and hide the sum in Gaussian noise.

    Guarantee: (for one ballot a patient, each a function of that patient alone) the Gaussian
        mechanism with `noise_multiplier` and L2 sensitivity 1: see `counted`, whose values lie on
        the lattice of the noise, so that adding them up and adding the noise rounds nothing.
        The cast to float32 is post-processing.
    Edge cases: no ballots at all give noise, of the same distribution as any other tally. A
        ballot that is not finite is blank.

    Args:
        ballots: (N,) each, from `ballot`.
        settings: Of the vote.
        noise: Where the noise comes from.

    Returns:
        (N,) float32; negative where the noise is.

    Raises:
        PrivacyError: A ballot has another length, or there are more than sixteen million.
    """
    total_N = np.zeros(settings.candidates)
    for one in ballots:
        total_N += counted(one, settings)
    released = add_gaussian_noise(torch.from_numpy(total_N), settings.noise_multiplier, noise)
    return released.numpy().astype(np.float32)


def counted(ballot_N: NDArray[np.float64], settings: VoteSettings) -> NDArray[np.float64]:
    """Bound a ballot, and round it towards zero to the lattice of the noise.

    Guarantee: the result's entries are multiples of the noise's `lattice_spacing` and its L2
        norm is at most 1, in exact arithmetic: a ballot longer than 1 is shortened, and rounding
        towards zero lengthens nothing. Sums of sixteen million such ballots are exact in float64,
        in any order.
    Edge cases: a ballot with NaN or infinity in it counts as blank.

    Args:
        ballot_N: (N,) float64.
        settings: Of the vote.

    Raises:
        PrivacyError: The ballot has another length than there are candidates.
    """
    if ballot_N.shape != (settings.candidates,):
        raise PrivacyError(
            f"a ballot of shape {ballot_N.shape} was handed in",
            expected=f"({settings.candidates},)",
        )
    norm = float(np.sqrt(np.sum(ballot_N.astype(np.float64) ** 2)))
    if not math.isfinite(norm):
        return np.zeros(settings.candidates)
    bounded = ballot_N * ((1 - _MARGIN) / max(1.0, norm))
    spacing = lattice_spacing(settings.noise_multiplier)
    return np.asarray(np.trunc(bounded / spacing) * spacing)
