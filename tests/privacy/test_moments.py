"""What patients say of their images: bounded, of one patient alone, and read back as it was said.

M images of a patient, D values.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fundusgen.errors import PrivacyError
from fundusgen.privacy.moments import (
    SQUARES_BOUND,
    VALUES_BOUND,
    joint,
    moments,
    statement,
)
from fundusgen.privacy.votes import VoteSettings, counted

VALUES = st.integers(1, 30).flatmap(
    lambda count: st.integers(0, 6).flatmap(
        lambda images: arrays(
            np.float64,
            (images, count),
            elements=st.one_of(
                st.floats(-5, 5), st.floats(allow_nan=True, allow_infinity=True), st.just(1e300)
            ),
        )
    )
)


def slow_statement(values_MD: np.ndarray) -> np.ndarray:
    """One image after the other, one value after the other."""
    images, count = values_MD.shape
    total = [0.0] * (2 * count)
    for row in values_MD:
        said = [value / VALUES_BOUND / math.sqrt(2) for value in row]
        said += [(value * value - 1) / SQUARES_BOUND / math.sqrt(2) for value in row]
        length = math.sqrt(sum(one * one for one in said))
        if not math.isfinite(length):
            continue
        total = [sum_ + one / max(1.0, length) / images for sum_, one in zip(total, said)]  # noqa: B905
    return np.array(total)


@settings(max_examples=300, deadline=None)
@given(values_MD=VALUES)
def test_no_statement_is_longer_than_1(values_MD: np.ndarray) -> None:
    said_S = statement(values_MD)
    assert said_S.shape == (2 * values_MD.shape[1],)
    assert np.isfinite(said_S).all()
    assert np.linalg.norm(said_S) <= 1 + 1e-12


@settings(max_examples=100, deadline=None)
@given(values_MD=arrays(np.float64, (4, 7), elements=st.floats(-40, 40)))
def test_a_statement_is_that_of_one_image_after_the_other(values_MD: np.ndarray) -> None:
    np.testing.assert_allclose(statement(values_MD), slow_statement(values_MD), atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(values_MD=VALUES, share=st.floats(0, 0.999), votes=st.lists(st.floats(0, 1), min_size=3))
def test_ballot_and_statement_together_are_not_longer_than_1(
    values_MD: np.ndarray, share: float, votes: list[float]
) -> None:
    ballot_N = np.array(votes)
    ballot_N /= max(1.0, float(np.linalg.norm(ballot_N)))
    whole = joint(ballot_N, statement(values_MD), share)
    assert np.linalg.norm(whole) <= 1 + 1e-12
    assert np.sum(whole[len(votes) :] ** 2) <= share + 1e-12
    exact = counted(whole, VoteSettings(2.0, len(whole)))
    assert np.linalg.norm(exact) <= 1


def test_many_images_say_no_more_than_one() -> None:
    one = np.random.default_rng(0).normal(0, 3, (1, 24))
    np.testing.assert_allclose(statement(one.repeat(50, axis=0)), statement(one), atol=1e-12)


def test_an_image_that_is_not_finite_counts_as_zeros() -> None:
    values = np.ones((2, 5))
    values[1, 3] = np.nan
    np.testing.assert_allclose(statement(values), statement(np.ones((1, 5))) / 2)


def test_means_and_variances_are_read_back_as_they_were_said() -> None:
    rng = np.random.default_rng(1)
    values_PD = rng.normal(np.linspace(-1, 1, 24), np.linspace(0.5, 1.5, 24), (400, 24))
    ballot_N = np.zeros(3)
    total = sum(joint(ballot_N, statement(row[None]), 0.2) for row in values_PD)
    read = moments(np.asarray(total)[3:], 400, 0.2, 0.0)
    np.testing.assert_allclose(read.mean_D, values_PD.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(read.variance_D, values_PD.var(axis=0), atol=1e-9)
    assert read.mean_deviation == read.variance_deviation == 0


def test_the_noise_in_a_mean_is_as_large_as_is_said() -> None:
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 7.0, (4000, 48))
    read = [moments(row, 500, 0.2, 7.0) for row in noise]
    means = np.array([one.mean_D for one in read])
    assert means.std() == pytest.approx(read[0].mean_deviation, rel=0.02)
    squares = np.array([np.split(row, 2)[1] for row in noise]) * read[0].variance_deviation / 7
    assert squares.std() == pytest.approx(read[0].variance_deviation, rel=0.02)


def test_a_variance_that_noise_made_negative_is_above_zero() -> None:
    assert (moments(np.full(48, -9.0), 10, 0.2, 3.0).variance_D > 0).all()


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0, float("nan")])
def test_a_share_that_leaves_no_votes_is_refused(share: float) -> None:
    with pytest.raises(PrivacyError, match="share"):
        joint(np.zeros(2), np.zeros(4), share)
