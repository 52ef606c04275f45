import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fundusgen.errors import FederationError
from fundusgen.federation.weights import (
    Weights,
    average,
    digest,
    distance,
    mixed,
    outliers,
    require_fit,
)

finite = hnp.arrays(np.float32, (3,), elements=st.floats(-1e3, 1e3, width=32))


def weights(*values: float) -> Weights:
    return {"a": np.array(values, np.float32), "b": np.ones((2, 2), np.float32)}


def test_the_digest_depends_on_values_names_and_shapes_and_not_on_the_order() -> None:
    one = weights(1, 2)
    assert digest(one) == digest(dict(reversed(one.items())))
    others = [
        weights(1, 3),
        {"c": one["a"], "b": one["b"]},
        {"a": one["a"], "b": one["b"].reshape(4)},
    ]
    assert len({digest(other) for other in [one, *others]}) == 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"a": np.ones(2, np.float32)},
        {**weights(1, 2), "c": np.ones(1, np.float32)},
        weights(1, 2, 3),
        weights(1, float("nan")),
        weights(1, float("inf")),
        {"a": np.ones(2, np.float64), "b": np.ones((2, 2), np.float32)},
    ],
    ids=["missing", "extra", "shape", "nan", "inf", "dtype"],
)
def test_arrays_that_are_not_what_was_asked_for_are_refused(wrong: Weights) -> None:
    with pytest.raises(FederationError):
        require_fit(wrong, weights(1, 2))


def test_arrays_that_are_what_was_asked_for_pass() -> None:
    require_fit(weights(3, 4), weights(1, 2))


def slow_average(replies: list[tuple[float, Weights]]) -> Weights:
    total = sum(share for share, _ in replies)
    result = {}
    for name, like in replies[0][1].items():
        value = np.zeros(like.shape)
        for index in np.ndindex(like.shape):
            value[index] = sum(share * float(w[name][index]) for share, w in replies) / total
        result[name] = value
    return result


@given(st.lists(st.tuples(st.floats(0.1, 1e4), finite), min_size=1, max_size=5))
def test_the_average_equals_the_slow_one(pairs: list[tuple[float, np.ndarray]]) -> None:
    replies = [(share, {"a": array}) for share, array in pairs]
    fast, slow = average(replies)["a"], slow_average(replies)["a"]
    np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-4)


def test_the_average_of_nothing_is_refused() -> None:
    with pytest.raises(FederationError):
        average([])


@given(finite, finite, st.floats(0, 0.999))
def test_a_moving_average_lies_between_old_and_new(
    old: np.ndarray, new: np.ndarray, decay: float
) -> None:
    value = mixed({"a": old}, {"a": new}, decay)["a"]
    assert (value >= np.minimum(old, new) - 1e-2).all()
    assert (value <= np.maximum(old, new) + 1e-2).all()


def test_the_distance_is_the_joint_euclidean_one() -> None:
    far = {"a": np.array([4, 2], np.float32), "b": np.ones((2, 2), np.float32) * 3}
    assert distance(far, weights(1, 2)) == pytest.approx(5)


def test_one_reply_that_is_far_longer_than_the_others_is_an_outlier() -> None:
    assert outliers([1.0, 1.2, 50.0], 10) == [False, False, True]


def test_of_two_replies_none_is_an_outlier() -> None:
    assert outliers([1.0, 1e9], 10) == [False, False]
