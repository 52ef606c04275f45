import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundusgen.errors import AccountingError
from fundusgen.privacy.events import MAX_STEPS, MIN_NOISE_MULTIPLIER, Event, merged

events = st.one_of(
    st.builds(
        Event,
        st.just("subsampled_gaussian"),
        st.floats(MIN_NOISE_MULTIPLIER, 1e300),
        st.floats(0.0, 1.0, exclude_min=True),
        st.integers(0, 10**9),
    ),
    st.builds(
        Event,
        st.just("gaussian"),
        st.floats(MIN_NOISE_MULTIPLIER, 1e300),
        st.just(1.0),
        st.integers(0, 10**9),
    ),
)


@given(events)
def test_events_survive_json_to_the_last_bit(event):
    assert Event.from_json(json.loads(json.dumps(event.to_json(), allow_nan=False))) == event


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("laplace", 1.0, 0.1, 1), "unknown"),
        (("subsampled_gaussian", 0.0, 0.1, 1), "noise_multiplier"),
        (("subsampled_gaussian", -1.0, 0.1, 1), "noise_multiplier"),
        (("subsampled_gaussian", 1e-7, 0.1, 1), "noise_multiplier"),
        (("subsampled_gaussian", math.nan, 0.1, 1), "noise_multiplier"),
        (("subsampled_gaussian", math.inf, 0.1, 1), "noise_multiplier"),
        (("subsampled_gaussian", "1.0", 0.1, 1), "noise_multiplier"),
        (("subsampled_gaussian", True, 0.1, 1), "noise_multiplier"),
        (("subsampled_gaussian", 1.0, 0.0, 1), "sample_rate"),
        (("subsampled_gaussian", 1.0, 1.01, 1), "sample_rate"),
        (("subsampled_gaussian", 1.0, math.nan, 1), "sample_rate"),
        (("gaussian", 1.0, 0.5, 1), "sample_rate"),
        (("subsampled_gaussian", 1.0, 0.1, -1), "steps"),
        (("subsampled_gaussian", 1.0, 0.1, 1.0), "steps"),
        (("subsampled_gaussian", 1.0, 0.1, True), "steps"),
        (("subsampled_gaussian", 1.0, 0.1, 10**9 + 1), "steps"),
    ],
)
def test_parameters_without_an_epsilon_are_refused(values, message):
    with pytest.raises(AccountingError, match=message):
        Event(*values)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"kind": "gaussian", "noise_multiplier": 1.0, "sample_rate": 1.0},
        {"kind": "gaussian", "noise_multiplier": 1.0, "sample_rate": 1.0, "steps": 1, "x": 1},
        ["gaussian", 1.0, 1.0, 1],
        None,
    ],
)
def test_nothing_is_guessed_when_an_event_is_read(values):
    with pytest.raises(AccountingError, match="keys"):
        Event.from_json(values)


def test_what_was_done_costs_at_most_the_plan_only_if_every_parameter_does():
    planned = Event("subsampled_gaussian", 1.0, 0.1, 10)
    assert planned.costs_at_most(planned)
    assert Event("subsampled_gaussian", 1.5, 0.05, 0).costs_at_most(planned)
    assert not Event("subsampled_gaussian", 0.9, 0.1, 10).costs_at_most(planned)
    assert not Event("subsampled_gaussian", 1.0, 0.2, 10).costs_at_most(planned)
    assert not Event("subsampled_gaussian", 1.0, 0.1, 11).costs_at_most(planned)
    assert not Event("gaussian", 1.0, 1.0, 1).costs_at_most(planned)


# Few values, so that histories repeat themselves.
repetitive = st.lists(
    st.one_of(
        st.builds(
            Event,
            st.just("subsampled_gaussian"),
            st.sampled_from([1.0, 1.5]),
            st.sampled_from([0.1, 1.0]),
            st.sampled_from([0, 1, 7, MAX_STEPS]),
        ),
        st.builds(
            Event,
            st.just("gaussian"),
            st.sampled_from([1.0, 1.5]),
            st.just(1.0),
            st.sampled_from([0, 1, 7, MAX_STEPS]),
        ),
    ),
    max_size=12,
).flatmap(st.permutations)


def steps_one_by_one(events):
    total = {}
    for event in events:
        if event.steps:
            mechanism = (event.kind, event.noise_multiplier, event.sample_rate)
            total[mechanism] = total.get(mechanism, 0) + event.steps
    return total


@given(repetitive)
def test_a_merged_history_has_every_step_and_no_mechanism_twice(history):
    short = merged(history)
    assert steps_one_by_one(short) == steps_one_by_one(history)
    full = [event for event in short if event.steps == MAX_STEPS]
    assert len(short) - len(full) <= len(steps_one_by_one(history))
    assert all(event.steps > 0 for event in short)
    assert merged(short) == short


@given(repetitive, st.randoms(use_true_random=False))
def test_a_merged_history_does_not_depend_on_the_order_of_events(history, random):
    mixed = list(history)
    random.shuffle(mixed)
    assert merged(mixed) == merged(history)


def test_a_study_of_many_rounds_merges_to_one_event():
    rounds = [Event("subsampled_gaussian", 1.2, 0.05, 4)] * 1000
    votes = Event("gaussian", 8.0, 1.0, 1)
    assert merged([*rounds, votes]) == (votes, Event("subsampled_gaussian", 1.2, 0.05, 4000))
