"""One ballot a patient, added up and hidden in noise once."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from fundusgen.errors import PrivacyError
from fundusgen.privacy.noise import FastNoise, NoiseSource, SecureNoise, lattice_spacing
from fundusgen.privacy.votes import NOBODY, VoteSettings, ballot, counted, noisy_tally


class RecordedNoise:
    """Gives the same noise each time, and keeps what it was asked for."""

    kind = "test"

    def __init__(self, spacing: float) -> None:
        self.spacing = spacing
        self.asked: list[tuple[tuple[int, ...], float]] = []

    def gaussian(self, shape: Sequence[int], standard_deviation: float) -> Tensor:
        self.asked.append((tuple(shape), standard_deviation))
        steps = torch.arange(math.prod(shape), dtype=torch.float64) * 7919 - 12345
        return (steps * self.spacing).reshape(tuple(shape))

    def uniform_uint64(self, count: int) -> None:
        raise NotImplementedError


def settings(candidates: int = 6, noise_multiplier: float = 2.0) -> VoteSettings:
    return VoteSettings(noise_multiplier, candidates)


def choices(*images: Sequence[int]) -> np.ndarray:
    return np.array(images, dtype=np.int64)


def test_an_image_spreads_one_vote_over_its_candidates() -> None:
    made = ballot(choices([0, 2, 3, 5]), settings())
    np.testing.assert_allclose(made, [0.5, 0, 0.5, 0.5, 0, 0.5])


def test_a_patient_with_more_images_has_the_same_mass_and_not_more() -> None:
    one = ballot(choices([1, 4]), settings())
    many = ballot(choices(*[[1, 4]] * 500), settings())
    np.testing.assert_allclose(one, many, rtol=1e-12)
    apart = ballot(choices([0, 1], [2, 3]), settings())
    assert np.linalg.norm(apart) == pytest.approx(1.0)


def test_a_candidate_that_several_images_chose_has_more_of_the_mass() -> None:
    made = ballot(choices([0, 1], [0, 2]), settings())
    np.testing.assert_allclose(made, np.array([2, 1, 1, 0, 0, 0]) / math.sqrt(6))


@pytest.mark.parametrize(
    "chosen", [np.empty((0, 3), np.int64), np.full((4, 3), NOBODY), np.empty((2, 0), np.int64)]
)
def test_who_found_nobody_to_vote_for_hands_in_a_blank_ballot(chosen: np.ndarray) -> None:
    np.testing.assert_array_equal(ballot(chosen, settings()), np.zeros(6))


def test_nobody_takes_nothing_from_those_that_were_chosen() -> None:
    made = ballot(choices([3, NOBODY], [NOBODY, NOBODY]), settings())
    np.testing.assert_array_equal(made, [0, 0, 0, 1, 0, 0])


@pytest.mark.parametrize("place", [6, -2, 2**40, -(2**40)])
def test_a_vote_for_who_does_not_stand_is_an_error(place: int) -> None:
    with pytest.raises(PrivacyError, match="does not stand"):
        ballot(choices([0, place]), settings())


def test_the_tally_is_the_sum_of_the_ballots_and_the_noise() -> None:
    chosen = settings(candidates=5, noise_multiplier=3.0)
    spacing = lattice_spacing(3.0)
    noise = RecordedNoise(spacing)
    ballots = [ballot(choices([n % 5, (n + 1) % 5]), chosen) for n in range(40)]
    tally = noisy_tally(ballots, chosen, noise)
    assert noise.asked == [((5,), 3.0)]
    expected = sum(ballots) + RecordedNoise(spacing).gaussian((5,), 3.0).numpy()
    # Each ballot is shortened by a thousand millionth and rounded to the lattice.
    assert np.abs(tally - expected).max() <= 40 * (spacing + 1e-9) + 1e-5
    assert tally.dtype == np.float32


def test_before_it_is_cast_the_tally_lies_on_the_lattice_of_the_noise() -> None:
    chosen = settings(candidates=50, noise_multiplier=0.7)
    total = sum(counted(ballot(choices([n, n + 1, 49]), chosen), chosen) for n in range(40))
    steps = total / lattice_spacing(0.7)
    np.testing.assert_array_equal(steps, np.round(steps))


def test_noise_is_drawn_once_whatever_number_of_patients() -> None:
    noise = RecordedNoise(lattice_spacing(2.0))
    for patients in (0, 1, 100):
        noisy_tally([np.eye(6)[0]] * patients, settings(), noise)
    assert noise.asked == [((6,), 2.0)] * 3


@pytest.mark.parametrize("source", [SecureNoise(), FastNoise()])
@pytest.mark.parametrize("noise_multiplier", [0.3, 1.0, 40.0])
@pytest.mark.parametrize("patients", [0, 30])
def test_the_noise_has_the_standard_deviation_that_is_accounted(
    source: NoiseSource, noise_multiplier: float, patients: int
) -> None:
    chosen = VoteSettings(noise_multiplier, 20_000)
    one = ballot(choices([7, 9]), chosen)
    tally = noisy_tally([one] * patients, chosen, source).astype(np.float64)
    noise = (tally - patients * one) / noise_multiplier
    # Four standard errors of 20,000 draws; half the noise would be a hundred of them away.
    assert abs(noise.mean()) < 4 / math.sqrt(20_000)
    assert abs(noise.std() - 1) < 4 / math.sqrt(2 * 20_000)
    assert abs(np.mean(np.abs(noise) > 2) - 0.0455) < 0.007


def test_two_tallies_of_the_same_ballots_share_no_noise() -> None:
    chosen = settings(candidates=1000)
    first, second = (noisy_tally([], chosen, SecureNoise()) for _ in range(2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_ballot_that_is_not_finite_counts_as_blank(value: float) -> None:
    spoiled = np.array([0.5, value, 0, 0, 0, 0.5])
    np.testing.assert_array_equal(counted(spoiled, settings()), np.zeros(6))


@pytest.mark.parametrize("shape", [(5,), (7,), (6, 1), ()])
def test_a_ballot_of_another_length_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(PrivacyError, match="was handed in"):
        noisy_tally([np.zeros(shape)], settings(), FastNoise())


def test_sixteen_million_patients_of_one_mind_do_not_break_the_sum() -> None:
    """Whether a sum is too large for its noise would be known without noise."""
    chosen = VoteSettings(0.01, 1)
    most = counted(np.ones(1), chosen) * (2**24 - 1)
    noise = RecordedNoise(lattice_spacing(0.01))
    assert most[0] + counted(np.ones(1), chosen)[0] - most[0] == counted(np.ones(1), chosen)[0]
    assert most[0] / noise.spacing < 2**51


@pytest.mark.parametrize(
    "noise_multiplier", [0.0, -1.0, 0.0099, 2e6, math.nan, math.inf, -math.inf]
)
def test_a_vote_without_sound_noise_cannot_be_set_up(noise_multiplier: float) -> None:
    with pytest.raises(PrivacyError, match="noise multiplier"):
        VoteSettings(noise_multiplier, 6)


@pytest.mark.parametrize("candidates", [0, -1, 2**31 + 1, 6.0, True])
def test_a_vote_without_a_number_of_candidates_cannot_be_set_up(candidates: object) -> None:
    with pytest.raises(PrivacyError, match="candidates"):
        VoteSettings(1.0, candidates)  # type: ignore[arg-type]
