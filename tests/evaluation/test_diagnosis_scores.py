"""Scores of diagnosis against scikit-learn, known answers and loops, and what intervals hold."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, roc_auc_score

from fundusgen.evaluation.diagnosis_scores import (
    Examination,
    ScoreName,
    auc,
    averaged,
    balanced_accuracy,
    confusions,
    difference,
    quadratic_kappa,
    verdict,
)
from fundusgen.evaluation.resampling import Estimate

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@st.composite
def diagnoses(draw: st.DrawFn) -> tuple[Integers, Integers, Integers]:
    """Classes, what was found, and weights of at least one for the first two, of two classes."""
    count = draw(st.integers(2, 25))
    grades = st.lists(st.integers(0, 3), min_size=count, max_size=count)
    labels, found = np.array(draw(grades)), np.array(draw(grades))
    labels[:2] = 0, 3
    weights = np.array(draw(grades))
    weights[:2] += 1
    return labels, found, weights


@given(diagnoses())
def test_auc_is_that_of_scikit_learn(drawn: tuple[Integers, Integers, Integers]) -> None:
    labels_N, scores_N, weights_N = drawn[0] // 2, drawn[1].astype(float), drawn[2]
    expected = roc_auc_score(labels_N, scores_N, sample_weight=weights_N)
    assert auc(labels_N, scores_N, weights_N[None].astype(float))[0] == pytest.approx(expected)


@given(diagnoses())
def test_auc_is_the_share_of_pairs_that_are_ranked_right(
    drawn: tuple[Integers, Integers, Integers],
) -> None:
    labels_N, scores_N, weights_N = drawn[0] // 2, drawn[1].astype(float), drawn[2]
    won = total = 0.0
    for ill in np.flatnonzero(labels_N == 1):
        for well in np.flatnonzero(labels_N == 0):
            pairs = weights_N[ill] * weights_N[well]
            total += pairs
            won += pairs * (
                (scores_N[ill] > scores_N[well]) + (scores_N[ill] == scores_N[well]) / 2
            )
    found = auc(labels_N, scores_N, weights_N[None].astype(float))[0]
    assert found == pytest.approx(won / total)


@given(diagnoses())
def test_kappa_is_that_of_scikit_learn(drawn: tuple[Integers, Integers, Integers]) -> None:
    labels_N, found_N, weights_N = drawn
    counts_BKK = confusions(labels_N, found_N, 4, weights_N[None].astype(float))
    expected = cohen_kappa_score(
        labels_N, found_N, labels=[0, 1, 2, 3], weights="quadratic", sample_weight=weights_N
    )
    assert quadratic_kappa(counts_BKK)[0] == pytest.approx(expected, abs=1e-12)


@given(diagnoses())
def test_balanced_accuracy_is_that_of_scikit_learn(
    drawn: tuple[Integers, Integers, Integers],
) -> None:
    labels_N, found_N, weights_N = drawn
    # scikit-learn warns of classes that are found and not there; here these are left as they are.
    found_N = np.where(np.isin(found_N, labels_N[weights_N > 0]), found_N, 0)
    there_N = weights_N > 0
    counts_BKK = confusions(labels_N, found_N, 4, weights_N[None].astype(float))
    expected = balanced_accuracy_score(
        labels_N[there_N], found_N[there_N], sample_weight=weights_N[there_N]
    )
    assert balanced_accuracy(counts_BKK)[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("found", "kappa", "accuracy"),
    [
        ([0, 1, 2, 0, 1, 2], 1.0, 1.0),
        # All in the middle: as chance would have it.
        ([1, 1, 1, 1, 1, 1], 0.0, 1 / 3),
        ([2, 1, 0, 2, 1, 0], -1.0, 1 / 3),
    ],
)
def test_known_diagnoses_have_known_scores(found: list[int], kappa: float, accuracy: float) -> None:
    labels_N = np.array([0, 1, 2, 0, 1, 2])
    counts_BKK = confusions(labels_N, np.array(found), 3, np.ones((1, 6)))
    assert quadratic_kappa(counts_BKK)[0] == pytest.approx(kappa)
    assert balanced_accuracy(counts_BKK)[0] == pytest.approx(accuracy)


def two_classes(count: int, rng: np.random.Generator, images: int = 1) -> tuple[Integers, Floats]:
    """Labels, and probabilities of which the AUC is 0.76: normal, one deviation apart."""
    labels_N = np.repeat(rng.integers(2, size=count), images)
    logits_N = labels_N + np.repeat(rng.standard_normal(count), images)
    ill_N = 1 / (1 + np.exp(-logits_N))
    return labels_N, np.stack([1 - ill_N, ill_N], axis=1)


def test_replicates_are_scores_of_the_drawn_patients() -> None:
    rng = np.random.default_rng(0)
    labels_N, probabilities_NK = two_classes(60, rng)
    patients_N = [f"p{number // 2}" for number in range(60)]
    examination = Examination.drawn(labels_N, patients_N, 2, 3, replicates=5)
    assert (examination.weights_BN[:, ::2] == examination.weights_BN[:, 1::2]).all()
    assert (examination.weights_BN.sum(axis=1) == 60).all()
    found = examination.score("auc", probabilities_NK)
    assert found.value == pytest.approx(roc_auc_score(labels_N, probabilities_NK[:, 1]))
    for weights_N, replicate in zip(examination.weights_BN, found.replicates_B, strict=True):
        places = np.repeat(np.arange(60), weights_N.astype(int))
        expected = roc_auc_score(labels_N[places], probabilities_NK[places, 1])
        assert replicate == pytest.approx(expected)


def test_every_replicate_has_every_class() -> None:
    labels_N = np.array([0] * 40 + [1] * 2 + [3] * 2)
    examination = Examination.drawn(labels_N, range(44), 5, 0, replicates=300)
    for label in (0, 1, 3):
        assert (examination.weights_BN[:, labels_N == label].sum(axis=1) > 0).all()
    # Some are drawn twice and some not at all, as they would be otherwise.
    assert (examination.weights_BN[:, 41] == 0).any()
    found = examination.score("quadratic_kappa", np.eye(5)[labels_N])
    assert found.value == 1
    assert np.isfinite(found.replicates_B).all()


@pytest.mark.parametrize("name", ["auc", "balanced_accuracy", "quadratic_kappa"])
def test_intervals_hold_the_truth_about_as_often_as_they_say(name: ScoreName) -> None:
    rng = np.random.default_rng(1)
    many_N, probabilities_NK = two_classes(200_000, rng)
    weights = np.ones((1, len(many_N)))
    truth = Examination(many_N, 2, weights[:0]).score(name, probabilities_NK).value
    held = 0
    for seed in range(200):
        # Both eyes of a patient are the same here, so images are half as many as they seem.
        labels_N, probabilities_NK = two_classes(120, rng, images=2)
        patients_N = np.repeat(np.arange(120), 2).tolist()
        drawn = Examination.drawn(labels_N, patients_N, 2, seed, replicates=200)
        low, high = drawn.score(name, probabilities_NK).interval
        held += low <= truth <= high
    assert 0.89 <= held / 200 <= 0.99


def estimates(values: Floats, replicates: int = 2000) -> list[Estimate]:
    """Of each seed, replicates that vary with the same patients."""
    patients_B = np.random.default_rng(7).normal(0, 0.02, replicates)
    return [Estimate(value, value + patients_B) for value in values]


def test_the_spread_between_seeds_is_in_the_interval() -> None:
    values = np.array([0.70, 0.76, 0.73])
    found = averaged(estimates(values), 0)
    assert found.value == pytest.approx(0.73)
    expected = np.sqrt(0.02**2 + values.var(ddof=1) / 3)
    assert found.replicates_B.std() == pytest.approx(expected, rel=0.05)


def test_of_one_seed_the_average_is_itself() -> None:
    (one,) = estimates(np.array([0.7]))
    found = averaged([one], 0)
    assert found.value == one.value
    np.testing.assert_allclose(found.replicates_B, one.replicates_B)


def test_a_difference_has_the_patients_of_both_in_common() -> None:
    rng = np.random.default_rng(2)
    labels_N, probabilities_NK = two_classes(300, rng)
    examination = Examination.drawn(labels_N, range(300), 2, 0)
    one = examination.score("auc", probabilities_NK)
    noisy_NK = probabilities_NK + 0.02 * rng.standard_normal(probabilities_NK.shape)
    other = examination.score("auc", noisy_NK)
    change = difference([one], [other], 0)
    assert change.value == pytest.approx(one.value - other.value)
    assert change.replicates_B.std() < 0.3 * one.replicates_B.std()


def test_a_difference_is_taken_seed_by_seed() -> None:
    values = np.array([0.6, 0.7, 0.8])
    change = difference(estimates(values + 0.05), estimates(values), 0)
    np.testing.assert_allclose(change.replicates_B, 0.05)
    with pytest.raises(ValueError, match="zip"):
        difference(estimates(values), estimates(values[:2]), 0)


@pytest.mark.parametrize(
    ("mean", "expected"), [(0.1, "helps"), (-0.1, "harms"), (0.01, "cannot tell")]
)
def test_the_verdict_is_where_the_interval_lies(mean: float, expected: str) -> None:
    (change,) = estimates(np.array([mean]))
    assert verdict(change) == expected


def test_no_change_at_all_is_not_called_one() -> None:
    assert verdict(Estimate(0.0, np.zeros(10))) == "cannot tell"


def test_the_same_seed_draws_the_same_patients() -> None:
    labels_N = np.arange(40) % 2
    one, again, other = (Examination.drawn(labels_N, range(40), 2, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.weights_BN, again.weights_BN)
    assert (one.weights_BN != other.weights_BN).any()


@pytest.mark.parametrize(
    ("attempt", "match"),
    [
        (lambda: Examination.drawn(np.zeros(20, np.int64), range(20), 2, 0), "two or more"),
        (lambda: Examination.drawn(np.arange(20) // 19, range(20), 2, 0), "at least 2"),
        (lambda: Examination.drawn(np.arange(20) % 3, range(20), 2, 0), "0 to 1"),
        (lambda: Examination.drawn(np.arange(6) % 2, range(6), 2, 0), "interval"),
        (lambda: Examination.drawn(np.arange(20) % 2, range(19), 2, 0), "one for each"),
        (lambda: of_three_classes(np.full((30, 3), np.nan)), "finite"),
        (lambda: of_three_classes(np.ones((30, 2))), "probabilities"),
        (lambda: of_three_classes(np.ones((30, 3))), "two classes"),
    ],
)
def test_what_cannot_be_scored_is_refused(attempt: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        attempt()


def of_three_classes(probabilities_NK: Floats) -> Estimate:
    return Examination.drawn(np.arange(30) % 3, range(30), 3, 0).score("auc", probabilities_NK)
