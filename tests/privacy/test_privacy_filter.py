import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fundusgen.errors import AccountingError
from fundusgen.privacy.accounting import calibrate_noise_multiplier, epsilon, epsilon_rdp
from fundusgen.privacy.events import Event
from fundusgen.privacy.gaussian_bounds import gaussian_delta
from fundusgen.privacy.privacy_filter import MAX_ORDER, filter_epsilon, filter_order


def sgd(noise_multiplier: float, sample_rate: float, steps: int) -> Event:
    return Event("subsampled_gaussian", noise_multiplier, sample_rate, steps)


def votes(noise_multiplier: float, steps: int = 1) -> Event:
    return Event("gaussian", noise_multiplier, 1.0, steps)


events = st.one_of(
    st.builds(sgd, st.floats(0.5, 20.0), st.floats(0.001, 1.0), st.integers(0, 500)),
    st.builds(votes, st.floats(0.5, 20.0), st.integers(0, 5)),
)
histories = st.lists(events, max_size=5)
# Budgets whose orders are among those that the best is sought over.
budgets = st.tuples(st.floats(0.5, 20.0), st.floats(1e-8, 1e-2))


def test_the_order_is_fixed_by_the_budget():
    assert filter_order(8.0, 1e-5) == 3.3  # 1.3 + 1.4 * 11.51 / 8
    assert filter_order(1.0, 1e-5) == 17.0
    assert filter_order(1e-9, 1e-5) == MAX_ORDER
    assert filter_order(1e300, 0.999) == 1.3
    assert filter_order(5e-324, 1e-300) == MAX_ORDER


@settings(max_examples=40, deadline=None)
@given(history=histories, budget=budgets)
def test_the_filter_is_never_below_the_best_order(history, budget):
    max_epsilon, delta = budget
    by_filter = filter_epsilon(history, max_epsilon=max_epsilon, delta=delta)
    assert by_filter >= epsilon_rdp(history, delta) * (1 - 1e-12)


@settings(max_examples=40, deadline=None)
@given(history=histories, more=events, budget=budgets, random=st.randoms(use_true_random=False))
def test_the_filter_rises_with_every_event_in_whatever_order(history, more, budget, random):
    max_epsilon, delta = budget
    before = filter_epsilon(history, max_epsilon=max_epsilon, delta=delta)
    longer = [*history, more]
    after = filter_epsilon(longer, max_epsilon=max_epsilon, delta=delta)
    assert after >= before
    random.shuffle(longer)
    assert filter_epsilon(longer, max_epsilon=max_epsilon, delta=delta) == after


@settings(max_examples=25, deadline=None)
@given(
    noise_multiplier=st.floats(0.3, 20.0),
    sample_rate=st.floats(0.001, 0.9),
    steps=st.integers(1, 500),
    budget=budgets,
    more=st.floats(1.01, 3.0),
)
def test_the_filter_falls_with_noise_and_rises_with_rate(
    noise_multiplier, sample_rate, steps, budget, more
):
    def cost(event):
        return filter_epsilon([event], max_epsilon=budget[0], delta=budget[1])

    here = cost(sgd(noise_multiplier, sample_rate, steps))
    assert cost(sgd(noise_multiplier * more, sample_rate, steps)) <= here + 1e-9
    assert cost(sgd(noise_multiplier, min(1.0, sample_rate * more), steps)) >= here - 1e-9


def test_each_event_adds_the_same_whatever_came_before():
    # What makes it a filter: a sum at one order, and a constant of the budget.
    def cost(*history):
        return filter_epsilon(history, max_epsilon=8.0, delta=1e-5)

    first, second, third = sgd(1.1, 0.05, 200), votes(5.0, 2), sgd(0.9, 0.2, 3)
    added = cost(first, third) - cost(first)
    assert cost(second, third) - cost(second) == pytest.approx(added, rel=1e-9)
    assert cost(first, second, third) - cost(first, second) == pytest.approx(added, rel=1e-9)


# A share of the budget buys the first answer; what is left of it buys the second, or nothing does.
@pytest.mark.parametrize("max_epsilon", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_one_who_chooses_the_second_noise_by_the_first_answer_stays_within_the_budget(
    max_epsilon, share
):
    delta = 1e-5

    def least_noise(*history):
        low, high = 1e-2, 1e6
        while high / low > 1 + 1e-9:
            middle = math.sqrt(low * high)
            cost = filter_epsilon([*history, votes(middle)], max_epsilon=max_epsilon, delta=delta)
            low, high = (low, middle) if cost <= max_epsilon else (middle, high)
        return high

    noise = least_noise() / math.sqrt(share)
    rest = least_noise(votes(noise))
    # The patient is there (mean 1) or not (mean 0); the first answer is y.
    y = np.linspace(-12 * noise, 1 + 12 * noise, 20_001)
    there = np.exp(-(((y - 1) / noise) ** 2) / 2) / (noise * math.sqrt(2 * math.pi))
    loss = (2 * y - 1) / (2 * noise**2)
    for threshold in (-math.inf, -noise, 0.0, 0.5, 1.0, 1 + noise, 1 + 3 * noise):
        # Who saw much goes on, with all that is left; who saw little stops.
        after = [
            gaussian_delta(1 / rest if seen > threshold else 0.0, max_epsilon - lost)
            for seen, lost in zip(y, loss, strict=True)
        ]
        assert np.trapezoid(there * np.array(after), y) <= delta


def test_the_filter_costs_little_against_the_best_order():
    for max_epsilon, delta, sample_rate, steps in [
        (8.0, 1e-5, 0.25, 200),
        (8.0, 1e-4, 0.25, 60),
        (1.0, 1e-6, 0.1, 300),
        (3.0, 1e-5, 0.02, 2000),
    ]:
        noise = calibrate_noise_multiplier(
            target_epsilon=max_epsilon,
            target_delta=delta,
            sample_rate=sample_rate,
            steps=steps,
        )
        more = sgd(1.05 * noise, sample_rate, steps)
        assert filter_epsilon([more], max_epsilon=max_epsilon, delta=delta) <= max_epsilon
        assert epsilon([more], delta) < max_epsilon


def test_no_steps_cost_nothing():
    assert filter_epsilon([], max_epsilon=1.0, delta=1e-5) == 0.0
    assert filter_epsilon([sgd(1.0, 0.1, 0)], max_epsilon=1.0, delta=1e-5) == 0.0


def test_a_budget_too_small_for_any_order_lets_nothing_through():
    assert filter_epsilon([votes(1e300)], max_epsilon=1.0, delta=1e-5) < 1.0
    assert filter_epsilon([votes(1e9)], max_epsilon=1e-4, delta=1e-5) > 1e-4


@settings(max_examples=25, deadline=None)
@given(
    noise_multiplier=st.floats(1e-6, 1e300),
    sample_rate=st.floats(1e-12, 1.0, exclude_min=True),
    steps=st.integers(0, 10**9),
    max_epsilon=st.floats(1e-9, 1e9),
    delta=st.floats(1e-300, 0.999),
)
def test_extreme_histories_and_budgets_give_a_finite_epsilon(
    noise_multiplier, sample_rate, steps, max_epsilon, delta
):
    total = filter_epsilon(
        [sgd(noise_multiplier, sample_rate, steps)], max_epsilon=max_epsilon, delta=delta
    )
    assert 0.0 <= total < math.inf


@pytest.mark.parametrize("max_epsilon", [0.0, -1.0, math.nan, math.inf, True, "8"])
def test_a_budget_that_makes_no_sense_is_refused(max_epsilon):
    with pytest.raises(AccountingError, match="max_epsilon"):
        filter_epsilon([sgd(1.0, 0.1, 10)], max_epsilon=max_epsilon, delta=1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, math.nan, True])
def test_a_delta_that_promises_nothing_is_refused(delta):
    with pytest.raises(AccountingError, match="delta"):
        filter_epsilon([], max_epsilon=1.0, delta=delta)
