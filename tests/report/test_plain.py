"""Results as values for JSON."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fundusgen.evaluation.questions import Question
from fundusgen.evaluation.resampling import Estimate
from fundusgen.report.plain import plain


@dataclass(frozen=True, eq=False)
class Inner:
    shares_N: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Outer:
    name: str
    inner: Inner | None
    parts: tuple[Inner, ...]


def test_data_classes_become_objects_all_the_way_down() -> None:
    made = Outer("a", None, (Inner(np.array([0.5, np.nan])),))
    assert plain(made) == {"name": "a", "inner": None, "parts": [{"shares_N": [0.5, None]}]}


def test_an_estimate_keeps_its_interval_and_loses_its_replicates() -> None:
    estimate = Estimate(2.0, np.linspace(0, 1, 41))
    low, high = estimate.interval
    assert plain({"kid": estimate}) == {"kid": {"value": 2.0, "low": low, "high": high}}
    assert low == pytest.approx(1.525)


def test_what_is_no_number_is_null() -> None:
    nothing = Estimate(float("nan"), np.full(20, np.nan))
    assert plain(nothing) == {"value": None, "low": None, "high": None}
    assert plain([float("inf"), np.float32("nan"), -np.inf]) == [None, None, None]


def test_numbers_of_numpy_become_those_of_python() -> None:
    found = plain({"n": np.int64(3), "yes": np.bool_(True), "x": np.float32(0.5)})
    assert [type(value) for value in found.values()] == [int, bool, float]
    assert plain(np.array([[1, 2]])) == [[1, 2]]


def test_names_and_sets_are_kept() -> None:
    assert plain({Question.REALISM: frozenset(["a"])}) == {"realism": ["a"]}


def test_what_has_no_form_in_json_is_refused() -> None:
    for value in (object(), Inner, b"bytes", 1j):
        with pytest.raises(TypeError, match="no form in JSON"):
            plain(value)


_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@given(st.recursive(_LEAVES, lambda of: st.lists(of) | st.dictionaries(st.text(), of)))
def test_every_result_can_be_written_strictly_and_read_again(value: object) -> None:
    found = plain(value)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
