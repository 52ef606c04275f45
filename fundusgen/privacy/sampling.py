"""Poisson sampling of patients, the first line of a DP-SGD step.

Abadi et al. 2016 (Algorithm 1, line 3) and every accountant of the subsampled Gaussian assume
that each unit enters a step independently with the same probability. The unit is the patient:
sampling images would let a patient with four images in four times as often, and the accounted
epsilon would no longer be theirs. Shuffled fixed-size batches are not Poisson samples either.
"""

import numpy as np
from numpy.typing import NDArray

from fundusgen.errors import PrivacyError
from fundusgen.privacy.noise import NoiseSource

_WORDS = 1 << 64


class PoissonPatients:
    """Draws a fresh Poisson sample of a site's patients at each step.

    Guarantee: each patient is in a sample with the same probability, at most `sample_rate` and
        below it by less than 2**-64, independently of all other patients and of all other
        samples. The size of a sample depends on the true number of patients: it stays at the
        site.
    Edge cases: no patients give empty samples; a rate of 1 gives all; an empty sample is a
        sample, and its step still takes its noise.

    Args:
        patients: True number of patients of the site, at least 0. Private.
        sample_rate: Probability of each patient, above 0 and at most 1. Public.
        noise: Where the randomness comes from.

    Raises:
        PrivacyError: An argument is out of range.
    """

    def __init__(self, patients: int, sample_rate: float, noise: NoiseSource) -> None:
        """Check the rate and count once, before the first step."""
        if isinstance(patients, bool) or not isinstance(patients, int) or patients < 0:
            raise PrivacyError(
                "the number of patients to sample from is not a count",
                expected="a whole number of 0 or more",
                remedy="Pass the number of patients of the data set",
            )
        self.patients = patients
        self.sample_rate = sample_rate
        self._threshold = inclusion_threshold(sample_rate)
        self._noise = noise

    def draw(self) -> NDArray[np.int64]:
        """Draw one sample.

        Guarantee: as the class; every call is independent of all earlier ones.
        Edge cases: the sample may be empty, and may hold every patient.

        Returns:
            Ascending indices of the sampled patients, each from 0 to patients - 1, none twice.

        Raises:
            PrivacyError: The noise source gave too few words.
        """
        words = self._noise.uniform_uint64(self.patients)
        if words.shape != (self.patients,) or words.dtype != np.uint64:
            raise PrivacyError(
                "the noise source gave the wrong number or kind of words",
                expected="one uint64 word a patient",
                remedy="Use SecureNoise or FastNoise",
            )
        return np.flatnonzero(_below(words, self._threshold)).astype(np.int64)


def inclusion_threshold(sample_rate: float) -> int:
    """Give the number of 64-bit words for which a patient is sampled.

    Guarantee: threshold / 2**64 is the sample rate rounded down to a multiple of 2**-64: exact
        for rates of 2**-11 and above, and never above the rate that is accounted for.
    Edge cases: a rate of 1 gives 2**64; rates of 0, above 1, below 2**-64 or NaN raise.

    Args:
        sample_rate: Probability of each patient.

    Returns:
        Threshold from 1 to 2**64: a patient is in when their word is below it.

    Raises:
        PrivacyError: The rate is out of range.
    """
    # NaN fails the comparison too.
    if not 2.0**-64 <= sample_rate <= 1.0:
        raise PrivacyError(
            f"a sample_rate of {sample_rate}",
            expected="a probability above 0 and at most 1",
            remedy="Set sample_rate to the share of patients that a step should see",
        )
    # Multiplying by a power of two is exact; int() then rounds down.
    return int(sample_rate * _WORDS)


def _below(words: NDArray[np.uint64], threshold: int) -> NDArray[np.bool_]:
    # 2**64 itself does not fit a word.
    return words <= np.uint64(threshold - 1)
