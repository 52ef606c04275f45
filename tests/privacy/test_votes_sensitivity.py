"""One patient moves a tally by at most 1, in exact arithmetic, whatever they vote.

N candidates, M images of a patient, K choices of an image.
"""

from fractions import Fraction

import numpy as np
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from fundusgen.privacy.noise import lattice_spacing
from fundusgen.privacy.votes import NOBODY, VoteSettings, ballot, counted, noisy_tally

MARGIN = Fraction(1e-9)
NOISE = st.floats(0.01, 100)
VOTES = st.integers(1, 12).flatmap(
    lambda candidates: st.tuples(
        st.builds(VoteSettings, NOISE, st.just(candidates)),
        st.lists(
            st.lists(st.integers(NOBODY, candidates - 1), max_size=60), min_size=1, max_size=8
        ),
    )
)


class NoNoise:
    """Leaves of a release what is not noise."""

    kind = "test"

    def gaussian(self, shape: tuple[int, ...], standard_deviation: float) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64)

    def uniform_uint64(self, count: int) -> None:
        raise NotImplementedError


def exact(values: np.ndarray) -> list[Fraction]:
    return [Fraction(float(value)) for value in values]


def square_norm(values: list[Fraction]) -> Fraction:
    return sum((value * value for value in values), Fraction(0))


def choices(patient: list[int]) -> np.ndarray:
    return np.array(patient, dtype=np.int64).reshape(-1, 1)


def total(patients: list[list[int]], settings: VoteSettings) -> np.ndarray:
    """What a release would be before its noise and its cast."""
    added = np.zeros(settings.candidates)
    for patient in patients:
        added += counted(ballot(choices(patient), settings), settings)
    return added


def obvious(patient: list[int], settings: VoteSettings) -> list[Fraction]:
    """A ballot on the lattice, with whole numbers and fractions alone."""
    votes = [sum(choice == place for choice in patient) for place in range(settings.candidates)]
    squares = sum(vote * vote for vote in votes)
    spacing = Fraction(lattice_spacing(settings.noise_multiplier))
    steps = []
    for vote in votes:
        # The largest k with k * spacing <= (1 - margin) * vote / sqrt(squares).
        bound = ((1 - MARGIN) * vote / spacing) ** 2 / (squares or 1)
        k = int(Fraction(float(bound)) ** Fraction(1, 2)) if bound else 0
        while (k + 1) ** 2 <= bound:
            k += 1
        while k * k > bound:
            k -= 1
        steps.append(k * spacing)
    return steps


@hypothesis_settings(max_examples=300, deadline=None)
@given(VOTES)
def test_a_ballot_has_norm_1_at_most_for_any_number_of_images_and_choices(votes) -> None:
    settings, patients = votes
    for patient in patients:
        assert square_norm(exact(counted(ballot(choices(patient), settings), settings))) <= 1


@hypothesis_settings(max_examples=300, deadline=None)
@given(
    noise_multiplier=NOISE,
    values=arrays.arrays(
        np.float64,
        st.integers(1, 30),
        elements=st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True),
    ),
)
def test_whatever_is_handed_in_as_a_ballot_counts_with_norm_1_at_most(
    noise_multiplier: float, values: np.ndarray
) -> None:
    settings = VoteSettings(noise_multiplier, len(values))
    with np.errstate(over="ignore"):
        taken = counted(values, settings)
    assert square_norm(exact(taken)) <= 1
    spacing = Fraction(lattice_spacing(noise_multiplier))
    assert all((value / spacing).denominator == 1 for value in exact(taken))


@hypothesis_settings(max_examples=200, deadline=None)
@given(VOTES, st.data())
def test_taking_out_any_one_patient_moves_the_tally_by_1_at_most(votes, data) -> None:
    settings, patients = votes
    place = data.draw(st.integers(0, len(patients) - 1))
    others = patients[:place] + patients[place + 1 :]
    with_all, without = exact(total(patients, settings)), exact(total(others, settings))
    moved = [one - other for one, other in zip(with_all, without, strict=True)]
    assert square_norm(moved) <= 1
    # Nothing is rounded on the way: what is missing is the patient's ballot to the last bit.
    assert moved == exact(counted(ballot(choices(patients[place]), settings), settings))


@hypothesis_settings(max_examples=150, deadline=None)
@given(VOTES)
def test_the_tally_is_that_of_whole_numbers_on_the_lattice(votes) -> None:
    settings, patients = votes
    slow = [Fraction(0)] * settings.candidates
    for patient in patients:
        slow = [one + more for one, more in zip(slow, obvious(patient, settings), strict=True)]
    assert exact(total(patients, settings)) == slow


@hypothesis_settings(max_examples=100, deadline=None)
@given(VOTES, st.randoms(use_true_random=False))
def test_the_order_of_the_patients_changes_no_bit(votes, random) -> None:
    settings, patients = votes
    shuffled = list(patients)
    random.shuffle(shuffled)
    assert total(patients, settings).tobytes() == total(shuffled, settings).tobytes()


@hypothesis_settings(max_examples=100, deadline=None)
@given(VOTES)
def test_a_release_is_the_exact_sum_and_nothing_else_but_noise(votes) -> None:
    settings, patients = votes
    ballots = [ballot(choices(patient), settings) for patient in patients]
    released = noisy_tally(ballots, settings, NoNoise())
    np.testing.assert_array_equal(released, total(patients, settings).astype(np.float32))


def test_a_patient_with_ten_thousand_images_moves_a_tally_as_little_as_one_with_one() -> None:
    settings = VoteSettings(1.0, 1000)
    rng = np.random.default_rng(3)
    chosen_MK = rng.integers(0, 1000, size=(10_000, 40))
    assert square_norm(exact(counted(ballot(chosen_MK, settings), settings))) <= 1


def test_the_margin_covers_the_norm_of_a_hundred_thousand_candidates() -> None:
    settings = VoteSettings(0.01, 100_000)
    rng = np.random.default_rng(4)
    for votes in (rng.random(100_000), rng.pareto(0.3, 100_000), np.ones(100_000)):
        long = votes * 10.0 ** rng.integers(-100, 100)
        assert square_norm(exact(counted(long, settings))) <= 1
