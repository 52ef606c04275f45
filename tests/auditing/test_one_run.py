"""One-run bounds: against the published algorithms as loops, and on mechanisms that are known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fundusgen.auditing.canaries import coins
from fundusgen.auditing.one_run import (
    contradicts_f_dp,
    correct_guesses,
    f_dp_bound,
    one_run_bound,
    one_run_p_value,
)
from fundusgen.auditing.trade_offs import GaussianFamily, GaussianTradeOff
from fundusgen.privacy.gaussian_bounds import gaussian_epsilon

CONFIDENCE = 0.95


def most_errors(trials: int) -> int:
    """So many errors of one in twenty happen once in ten thousand times."""
    return int(stats.binom.ppf(1 - 1e-4, trials, 1 - CONFIDENCE))


def slow_p_value(m: int, r: int, v: int, eps: float, delta: float) -> float:
    """Steinke et al. 2023, appendix D, term by term."""
    q = 1 / (1 + math.exp(-eps))
    beta = float(stats.binom.sf(v - 1, r, q))
    alpha = total = 0.0
    for i in range(1, v + 1):
        total += float(stats.binom.pmf(v - i, r, q))
        alpha = max(alpha, total / i)
    return min(1.0, beta + alpha * delta * 2 * m)


def slow_contradicts(mu: float, m: int, guesses: int, c: int, gamma: float) -> bool:
    """Mahloujifar et al. 2024, algorithm 3 with abstentions, with its arrays r and h."""
    r, h = [0.0] * (c + 1), [0.0] * (c + 1)
    r[c], h[c] = gamma * c / m, gamma * (guesses - c) / m
    for i in range(c - 1, -1, -1):
        h[i] = max(h[i + 1], float(stats.norm.cdf(stats.norm.ppf(r[i + 1]) - mu)))
        r[i] = min(1.0, r[i + 1] + i / (guesses - i) * (h[i] - h[i + 1]))
    return r[0] + h[0] > guesses / m


@given(st.integers(1, 60), st.floats(0, 1), st.floats(0, 1), st.floats(0, 8), st.floats(0, 0.01))
def test_the_p_value_is_that_of_the_papers_code(
    canaries: int, guessed: float, right: float, epsilon: float, delta: float
) -> None:
    guesses = round(guessed * canaries)
    correct = round(right * guesses)
    found = one_run_p_value(
        canaries=canaries, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta
    )
    if correct:
        slow = slow_p_value(canaries, guesses, correct, epsilon, delta)
        assert found == pytest.approx(slow, rel=1e-6, abs=1e-12)
    else:
        assert found == 1.0


@pytest.mark.parametrize("guesses", [10, 100, 1000])
def test_guesses_that_are_all_right_bound_epsilon_in_closed_form(guesses: int) -> None:
    """With delta 0: the accuracy whose power of `guesses` is 5%."""
    found = one_run_bound(
        canaries=1000, guesses=guesses, correct=guesses, delta=0.0, confidence=CONFIDENCE
    )
    accuracy = 0.05 ** (1 / guesses)
    assert found == pytest.approx(math.log(accuracy / (1 - accuracy)), abs=1e-5)


def test_half_right_bounds_nothing_and_delta_costs() -> None:
    one = {"canaries": 1000, "guesses": 100, "confidence": CONFIDENCE}
    assert one_run_bound(**one, correct=50, delta=0.0) == 0.0
    falling = [one_run_bound(**one, correct=95, delta=delta) for delta in (0.0, 1e-5, 1e-4, 0.1)]
    assert falling[0] > falling[1] > falling[2] > falling[3] == 0.0


def test_randomised_response_is_bounded_as_often_as_is_said() -> None:
    """The mechanism for which the theorem is tight."""
    rng = np.random.default_rng(1)
    truth, trials, wrong = 2.0, 600, 0
    for _ in range(trials):
        told = int((rng.random(400) < 1 / (1 + math.exp(-truth))).sum())
        p = one_run_p_value(canaries=400, guesses=400, correct=told, epsilon=truth, delta=0.0)
        wrong += p < 1 - CONFIDENCE
    assert stats.binom.ppf(1e-4, trials, 0.03) <= wrong <= most_errors(trials)


def test_a_mechanism_that_fails_for_all_at_once_is_not_wronged() -> None:
    """With probability delta it tells everything of everyone: canaries are not independent."""
    delta, canaries = 0.001, 50
    exact = one_run_p_value(
        canaries=canaries, guesses=canaries, correct=canaries, epsilon=0.0, delta=delta
    )
    assert exact >= delta


@given(st.integers(2, 80), st.floats(0, 1), st.floats(0.3, 1), st.floats(0.05, 5))
def test_the_recursion_is_that_of_the_paper(
    canaries: int, guessed: float, right: float, mu: float
) -> None:
    guesses = max(1, round(guessed * canaries))
    correct = round(right * guesses)
    found = contradicts_f_dp(
        GaussianTradeOff(mu), canaries=canaries, guesses=guesses, correct=correct, significance=0.05
    )
    assert found == slow_contradicts(mu, canaries, guesses, correct, 0.05)


@pytest.mark.parametrize("share", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("mu", [0.5, 1.67, 3.0])
def test_gaussian_mechanisms_are_contradicted_once_in_twenty_times_at_most(
    mu: float, share: float
) -> None:
    rng = np.random.default_rng(2)
    trials, canaries, wrong = 400, 200, 0
    guesses = round(share * canaries)
    verdict: dict[int, bool] = {}
    for _ in range(trials):
        included_M = coins(canaries, rng)
        correct = correct_guesses(rng.normal(mu * included_M), included_M, guesses)
        if correct not in verdict:
            verdict[correct] = contradicts_f_dp(
                GaussianTradeOff(mu),
                canaries=canaries,
                guesses=guesses,
                correct=correct,
                significance=1 - CONFIDENCE,
            )
        wrong += verdict[correct]
    assert wrong <= most_errors(trials)


def test_a_trade_off_says_more_than_an_epsilon() -> None:
    """What the second paper is for: on the same guesses its bound is higher."""
    rng = np.random.default_rng(3)
    included_M = coins(2000, rng)
    family = GaussianFamily(1.0, 1)
    scores_M = rng.normal(1.67 * included_M)
    guesses = 600
    correct = correct_guesses(scores_M, included_M, guesses)
    told = {"canaries": 2000, "guesses": guesses, "correct": correct, "confidence": CONFIDENCE}
    plain = one_run_bound(**told, delta=1e-5)
    with_curve = f_dp_bound(family, claimed_noise=1 / 1.67, delta=1e-5, **told)
    assert 0 < plain < with_curve < gaussian_epsilon(1.67, 1e-5)
    assert with_curve > 0.4 * gaussian_epsilon(1.67, 1e-5)


def test_guesses_are_the_highest_and_the_lowest_scores() -> None:
    scores_M = np.array([5.0, -1.0, 3.0, 0.0, -7.0, 2.0])
    included_M = np.array([True, True, False, False, False, True])
    # Said to be in: 5 and 3; said to be out: -7 and -1.
    assert correct_guesses(scores_M, included_M, 4) == 2
    assert correct_guesses(scores_M, included_M, 0) == 0
    assert correct_guesses(scores_M, ~included_M, 4) == 2
    assert correct_guesses(scores_M, included_M, 1) == 1


def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="7 right of 5"):
        one_run_p_value(canaries=10, guesses=5, correct=7, epsilon=1.0, delta=0.0)
    with pytest.raises(ValueError, match="5 right of 11"):
        contradicts_f_dp(
            GaussianTradeOff(1.0), canaries=10, guesses=11, correct=5, significance=0.05
        )
