"""Poisson sampling: probabilities, independence and edges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from fundusgen.errors import PrivacyError
from fundusgen.privacy.noise import FastNoise, NoiseSource, SecureNoise
from fundusgen.privacy.sampling import PoissonPatients, inclusion_threshold

IMPROBABLE = 1e-9
SOURCES = pytest.mark.parametrize("source", [SecureNoise(), FastNoise()], ids=lambda s: s.kind)


class FixedWords:
    """Gives the words it was told to give."""

    kind = "test"

    def __init__(self, words: NDArray[np.uint64]) -> None:
        self.words = words

    def gaussian(self, shape: tuple[int, ...], standard_deviation: float) -> None:
        raise NotImplementedError

    def uniform_uint64(self, count: int) -> NDArray[np.uint64]:
        return self.words


def _masks(sampler: PoissonPatients, draws: int) -> NDArray[np.bool_]:
    masks = np.zeros((draws, sampler.patients), dtype=bool)
    for mask in masks:
        mask[sampler.draw()] = True
    return masks


@SOURCES
@pytest.mark.parametrize("rate", [0.01, 0.3, 0.97])
def test_every_patient_is_sampled_at_the_rate(source: NoiseSource, rate: float) -> None:
    draws, patients = 2_000, 50
    counts = _masks(PoissonPatients(patients, rate, source), draws).sum(axis=0)
    assert stats.binomtest(int(counts.sum()), draws * patients, rate).pvalue > IMPROBABLE
    assert all(stats.binomtest(int(n), draws, rate).pvalue > IMPROBABLE / 50 for n in counts)


@SOURCES
def test_sample_sizes_vary_as_a_binomial_does(source: NoiseSource) -> None:
    draws, patients, rate = 3_000, 40, 0.25
    sizes = _masks(PoissonPatients(patients, rate, source), draws).sum(axis=1)
    statistic = (sizes.var() / (patients * rate * (1 - rate)) - 1) * math.sqrt(draws / 2)
    assert abs(statistic) < 7


@SOURCES
def test_patients_and_steps_are_sampled_independently(source: NoiseSource) -> None:
    draws, rate = 20_000, 0.5
    masks = _masks(PoissonPatients(2, rate, source), draws)
    both = int((masks[:, 0] & masks[:, 1]).sum())
    again = int((masks[1:, 0] & masks[:-1, 0]).sum())
    assert stats.binomtest(both, draws, rate**2).pvalue > IMPROBABLE
    assert abs(again - (draws - 1) * rate**2) < 8 * math.sqrt(draws * rate**2)


def test_indices_are_ascending_unique_and_in_range() -> None:
    sample = PoissonPatients(1_000, 0.5, SecureNoise()).draw()
    assert (np.diff(sample) > 0).all()
    assert sample.min() >= 0
    assert sample.max() < 1_000
    assert sample.dtype == np.int64


def test_a_rate_of_one_takes_every_patient() -> None:
    top = FixedWords(np.array([0, 2**64 - 1], dtype=np.uint64))
    assert PoissonPatients(2, 1.0, top).draw().tolist() == [0, 1]
    assert len(PoissonPatients(500, 1.0, SecureNoise()).draw()) == 500


def test_no_patients_give_an_empty_sample() -> None:
    assert len(PoissonPatients(0, 0.5, SecureNoise()).draw()) == 0


def test_a_patient_is_in_exactly_below_the_threshold() -> None:
    words = np.array([2**62 - 1, 2**62, 0, 2**64 - 1], dtype=np.uint64)
    assert PoissonPatients(4, 0.25, FixedWords(words)).draw().tolist() == [0, 2]


@given(st.floats(2.0**-64, 1.0))
def test_the_threshold_never_exceeds_the_accounted_rate(rate: float) -> None:
    threshold = inclusion_threshold(rate)
    assert 1 <= threshold <= 2**64
    numerator, denominator = rate.as_integer_ratio()
    assert threshold * denominator <= numerator * 2**64 < (threshold + 1) * denominator


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.0000001, math.nan, math.inf, 1e-20])
def test_a_rate_that_is_no_probability_is_refused(rate: float) -> None:
    with pytest.raises(PrivacyError, match="sample_rate"):
        PoissonPatients(10, rate, SecureNoise())


@pytest.mark.parametrize("patients", [-1, 2.5, True])
def test_a_number_of_patients_that_is_no_count_is_refused(patients: object) -> None:
    with pytest.raises(PrivacyError, match="count"):
        PoissonPatients(patients, 0.5, SecureNoise())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "words", [np.zeros(3, dtype=np.uint64), np.zeros(4), np.zeros((4, 1), dtype=np.uint64)]
)
def test_too_few_or_wrong_words_are_refused(words: NDArray[np.uint64]) -> None:
    with pytest.raises(PrivacyError, match="words"):
        PoissonPatients(4, 0.5, FixedWords(words)).draw()
