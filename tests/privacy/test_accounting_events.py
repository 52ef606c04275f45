import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundusgen.errors import AccountingError
from fundusgen.privacy.events import MIN_NOISE_MULTIPLIER, Event

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
