"""Bounds on ideal mechanisms whose epsilon is known: right as often as they say, and not idle."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ndtr

from fundusgen.auditing.bounds import (
    Rates,
    clopper_pearson_bound,
    clopper_pearson_upper,
    epsilon_of_rates,
    gaussian_bound,
    gaussian_scores_bound,
)
from fundusgen.auditing.canaries import Booleans, Floats, coins, log_likelihood_ratio
from fundusgen.auditing.trade_offs import (
    GaussianFamily,
    GaussianTradeOff,
    ProfileTradeOff,
    TradeOff,
)
from fundusgen.privacy.accounting import epsilon
from fundusgen.privacy.events import Event
from fundusgen.privacy.gaussian_bounds import gaussian_delta, gaussian_epsilon

DELTA = 1e-5
CONFIDENCE = 0.95
PLAIN, SAMPLED = GaussianFamily(1.0, 8), GaussianFamily(0.25, 20)


def most_errors(trials: int) -> int:
    """So many errors of one in twenty happen once in ten thousand times."""
    return int(stats.binom.ppf(1 - 1e-4, trials, 1 - CONFIDENCE))


def ideal(
    family: GaussianFamily, noise: float, canaries: int, rng: np.random.Generator
) -> tuple[Floats, Booleans]:
    """Releases of a mechanism that is what it claims, by its definition."""
    included_M = coins(canaries, rng)
    drawn_TM = rng.random((family.steps, canaries)) < family.sample_rate
    return rng.normal(0, noise, drawn_TM.shape) + (drawn_TM & included_M), included_M


def brute_upper(hits: int, trials: int, significance: float) -> float:
    """The probability with which so few hits are just that improbable, by bisection."""
    low, high = hits / trials, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if stats.binom.cdf(hits, trials, middle) > significance:
            low = middle
        else:
            high = middle
    return low


@given(st.integers(1, 300), st.floats(0, 1), st.floats(1e-6, 0.4))
def test_clopper_pearson_is_the_inverse_of_the_binomial(
    trials: int, share: float, significance: float
) -> None:
    hits = min(int(share * trials), trials - 1)
    found = clopper_pearson_upper(hits, trials, significance)
    assert found == pytest.approx(brute_upper(hits, trials, significance), rel=1e-6, abs=1e-9)


def test_the_rule_of_three() -> None:
    assert clopper_pearson_upper(0, 1000, 0.05) == pytest.approx(3 / 1000, rel=0.01)
    assert clopper_pearson_upper(7, 7, 0.05) == 1.0
    assert clopper_pearson_upper(0, 0, 0.05) == 1.0


@given(st.floats(0.01, 6), st.floats(-5, 5))
def test_rates_of_a_gaussian_mechanism_never_exceed_its_epsilon(mu: float, place: float) -> None:
    rates = Rates(float(ndtr(-place)), float(ndtr(place - mu)))
    assert epsilon_of_rates(rates, DELTA) <= gaussian_epsilon(mu, DELTA) + 1e-6


def test_the_best_test_reaches_the_epsilon_of_a_gaussian_mechanism() -> None:
    mu = 2.0
    places = np.linspace(-3, 6, 2000)
    found = max(
        epsilon_of_rates(Rates(float(ndtr(-place)), float(ndtr(place - mu))), DELTA)
        for place in places
    )
    assert found == pytest.approx(gaussian_epsilon(mu, DELTA), rel=1e-3)


@given(st.floats(0.05, 6), st.floats(1e-6, 1 - 1e-6))
def test_a_profile_holds_what_the_closed_form_does(mu: float, true_positives: float) -> None:
    """Lines under a convex curve touch it where they are many."""
    epsilons = np.linspace(0, 60, 6000)
    profile = ProfileTradeOff(epsilons, np.array([gaussian_delta(mu, e) for e in epsilons]))
    exact = GaussianTradeOff(mu).least_false_positives(true_positives)
    found = profile.least_false_positives(true_positives)
    assert found <= exact + 1e-9
    assert found == pytest.approx(exact, rel=0.02, abs=1e-6)


def test_the_trade_off_of_sampled_steps_is_what_its_best_test_does() -> None:
    noise, trials = 1.0, 40_000
    rng = np.random.default_rng(1)
    trade_off = SAMPLED.trade_off(noise)
    out = log_likelihood_ratio(rng.normal(0, noise, (SAMPLED.steps, trials)), noise, 0.25)
    drawn = rng.random((SAMPLED.steps, trials)) < 0.25
    inside = log_likelihood_ratio(rng.normal(0, noise, drawn.shape) + drawn, noise, 0.25)
    for threshold in (-2.0, 0.0, 2.0):
        positives, alarms = (inside > threshold).mean(), (out > threshold).mean()
        least = trade_off.least_false_positives(float(positives))
        # No test is better; this one, by Neyman and Pearson, is hardly worse.
        assert least < alarms + 4 * math.sqrt(alarms / trials)
        assert least == pytest.approx(alarms, rel=0.15)


@pytest.mark.parametrize("noise", [0.8, 1.5])
@pytest.mark.parametrize("family", [PLAIN, SAMPLED])
def test_epsilon_of_a_family_is_just_below_the_accountants(
    family: GaussianFamily, noise: float
) -> None:
    event = Event("subsampled_gaussian", noise, family.sample_rate, family.steps)
    claim = epsilon([event], DELTA)
    assert claim - 0.06 < family.epsilon(noise, DELTA) <= claim


@given(st.floats(0.3, 8), st.floats(0.02, 50))
def test_the_least_noise_contradicted_is_found_within_a_step(claimed: float, least: float) -> None:
    def contradicts(trade_off: object) -> bool:
        assert isinstance(trade_off, GaussianTradeOff)
        return math.sqrt(PLAIN.steps) / trade_off.mu >= least

    found = PLAIN.least_noise_contradicted(claimed, contradicts)
    if claimed / 140 < least < claimed * 140:
        assert found is not None
        assert least <= found * (1 + 1e-9) < least * 1.0051


def test_noise_that_nothing_contradicts_bounds_nothing() -> None:
    assert PLAIN.least_noise_contradicted(1.0, lambda _: False) is None
    everything = PLAIN.least_noise_contradicted(1.0, lambda _: True)
    assert everything is not None
    assert everything < 1.0


class Truth(GaussianFamily):
    """A family whose search asks about one noise alone: is the truth contradicted?"""

    noise = 1.0

    def least_noise_contradicted(
        self, claimed: float, contradicts: Callable[[TradeOff], bool]
    ) -> float | None:
        return self.noise if contradicts(self.trade_off(self.noise)) else None


@pytest.mark.parametrize("claimed", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("family", [Truth(1.0, 3), Truth(0.25, 20)], ids=["plain", "sampled"])
def test_gaussian_bounds_are_wrong_once_in_twenty_times_at_most(
    family: Truth, claimed: float
) -> None:
    """Also where the claim, for which the test is made, is not what is true."""
    rng, trials, wrong = np.random.default_rng(2), 800, 0
    for _ in range(trials):
        released_TM, included_M = ideal(family, family.noise, 300, rng)
        found = gaussian_bound(
            released_TM,
            included_M,
            family,
            claimed_noise=claimed,
            delta=DELTA,
            confidence=CONFIDENCE,
        )
        wrong += found > 0
    assert wrong <= most_errors(trials)


def test_a_bound_is_above_the_truth_only_where_the_truth_is_contradicted() -> None:
    """What the test above takes for granted, on a grid of which the truth is no point."""
    rng, wrong, contradicted = np.random.default_rng(3), 0, 0
    for _ in range(400):
        released_TM, included_M = ideal(PLAIN, 1.7, 40, rng)
        # At low confidence, so that both happen.
        given = {"claimed_noise": 1.6, "delta": DELTA, "confidence": 0.3}
        family = Truth(1.0, 8)
        object.__setattr__(family, "noise", 1.7)
        contradicted += gaussian_bound(released_TM, included_M, family, **given) > 0
        found = gaussian_bound(released_TM, included_M, PLAIN, **given)
        wrong += found > PLAIN.epsilon(1.7, DELTA)
    assert 20 < wrong <= contradicted <= wrong + 8


def test_bounds_of_gaussian_scores_are_wrong_once_in_twenty_times() -> None:
    rng = np.random.default_rng(3)
    trials, wrong = 4000, 0
    truth = gaussian_epsilon(math.sqrt(8) / 1.7, DELTA)
    for _ in range(trials):
        released_TM, included_M = ideal(PLAIN, 1.7, 100, rng)
        wrong += gaussian_scores_bound(released_TM.sum(0), included_M, DELTA, CONFIDENCE) > truth
    assert wrong <= most_errors(trials)
    # The distribution is exact, so that the bound is no worse than it says.
    assert wrong >= stats.binom.ppf(1e-4, trials, 1 - CONFIDENCE)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_missing_noise_is_seen_in_sampled_steps(share: float) -> None:
    released_TM, included_M = ideal(SAMPLED, share * 1.004, 1000, np.random.default_rng(8))
    found = gaussian_bound(
        released_TM, included_M, SAMPLED, claimed_noise=1.004, delta=DELTA, confidence=CONFIDENCE
    )
    truth = SAMPLED.epsilon(share * 1.004, DELTA)
    assert 0.3 * truth < found < truth
    assert (found > 8.03) == (share < 1)


def test_scores_that_differ_by_nothing_but_chance_bound_nothing() -> None:
    rng = np.random.default_rng(4)
    found = [
        gaussian_scores_bound(rng.normal(size=60), coins(60, rng), DELTA, CONFIDENCE)
        for _ in range(1000)
    ]
    assert np.mean(np.array(found) > 0) < 0.08


@pytest.mark.parametrize("noise", [1.7, 0.6])
def test_clopper_pearson_bounds_are_wrong_once_in_twenty_times_at_most(noise: float) -> None:
    rng = np.random.default_rng(5)
    trials, wrong, best = 60, 0, 0.0
    truth = gaussian_epsilon(math.sqrt(8) / noise, DELTA)
    for _ in range(trials):
        released_TM, included_M = ideal(PLAIN, noise, 120, rng)
        found = clopper_pearson_bound(released_TM.sum(0), included_M, DELTA, CONFIDENCE)
        wrong, best = wrong + (found > truth), max(best, found)
    assert wrong <= most_errors(trials)
    assert best > 0.3


def test_clopper_pearson_is_near_randomised_response() -> None:
    """Of a mechanism whose epsilon is that of one event, the bound comes near."""
    rng = np.random.default_rng(6)
    truth = 1.0
    wrong, found = 0, []
    for _ in range(40):
        included_M = coins(1000, rng)
        told = rng.random(1000) < 1 / (1 + math.exp(-truth))
        scores_M = np.where(told, included_M, ~included_M).astype(float)
        found.append(clopper_pearson_bound(scores_M, included_M, 0.0, CONFIDENCE))
        wrong += found[-1] > truth
    assert wrong <= most_errors(40)
    assert np.median(found) > 0.6


def test_noise_of_one_value_hides_nothing() -> None:
    included_M = np.arange(20) < 10
    found = gaussian_scores_bound(included_M + 0.25, included_M, DELTA, CONFIDENCE)
    assert found == math.inf
    assert gaussian_scores_bound(included_M + 0.25, np.zeros(20, bool), DELTA, CONFIDENCE) == 0.0


@pytest.mark.timeout(20)
def test_almost_no_noise_is_bounded_in_no_time() -> None:
    included_M = np.arange(400) < 200
    sums_M = included_M + np.random.default_rng(9).normal(0, 1e-9, 400)
    assert 100 < gaussian_scores_bound(sums_M, included_M, DELTA, CONFIDENCE) < math.inf


def test_bounds_grow_with_canaries_and_fall_with_confidence() -> None:
    rng = np.random.default_rng(7)
    released_TM, included_M = ideal(PLAIN, 1.7, 20_000, rng)

    def found(canaries: int, confidence: float) -> float:
        return gaussian_bound(
            released_TM[:, :canaries],
            included_M[:canaries],
            PLAIN,
            claimed_noise=1.7,
            delta=DELTA,
            confidence=confidence,
        )

    truth = gaussian_epsilon(math.sqrt(8) / 1.7, DELTA)
    assert found(100, CONFIDENCE) < found(1000, CONFIDENCE) < found(20_000, CONFIDENCE) < truth
    assert found(20_000, CONFIDENCE) > 0.93 * truth
    assert found(1000, 1 - 1e-5) < found(1000, CONFIDENCE)


@given(st.floats(0.3, 5), st.floats(0.01, 1), st.integers(1, 5), st.integers(0, 2**32))
def test_scores_are_the_log_likelihood_ratio(
    noise: float, rate: float, steps: int, seed: int
) -> None:
    released_TM = np.random.default_rng(seed).normal(0.3, noise, (steps, 4))
    inside = rate * stats.norm.pdf(released_TM, 1, noise)
    outside = stats.norm.pdf(released_TM, 0, noise)
    slow = np.log((inside + (1 - rate) * outside) / outside).sum(axis=0)
    assert log_likelihood_ratio(released_TM, noise, rate) == pytest.approx(slow, rel=1e-6, abs=1e-9)


def test_an_audit_needs_two_canaries() -> None:
    with pytest.raises(ValueError, match="1 canaries"):
        coins(1, np.random.default_rng(0))
