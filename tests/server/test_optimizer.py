"""The server's optimizer, held against the papers' formulas written out in double precision."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fundusgen.study import FederationSettings, Study
from server.optimizer import server_step, variance_of_average


def federation(optimizer: str, rounds: int = 10) -> FederationSettings:
    return FederationSettings.model_validate(
        {"rounds": rounds, "server_optimizer": optimizer, "server_learning_rate": 0.1}
    )


def slow(changes: list[NDArray[np.float64]], noise: float, rounds: int = 10) -> NDArray[np.float64]:
    """Where a weight that begins at 0 ends, if the sites ask for these changes."""
    first = second = weight = np.zeros_like(changes[0])
    for step, change in enumerate(changes, 1):
        first = 0.9 * first + 0.1 * change
        second = 0.99 * second + 0.01 * change**2
        told = np.maximum(second / (1 - 0.99**step) - noise, 0.1 * noise)
        rate = 0.1 * min(1.0, 2 * (1 - (step - 1) / rounds))
        weight = weight + rate * first / (1 - 0.9**step) / (np.sqrt(told) + 1e-8)
    return weight


@pytest.mark.parametrize(("optimizer", "known"), [("adam", 0.0), ("adam_bc", 0.3)])
def test_the_steps_are_those_of_the_paper(optimizer: str, known: float) -> None:
    rng = np.random.default_rng(0)
    changes = [rng.normal(0.2, 0.6, 5) for _ in range(6)]
    old, moments = {"w": np.zeros(5, np.float32), "frozen": np.ones(1, np.float32)}, {}
    for step, change in enumerate(changes, 1):
        new = {"w": (old["w"] + change).astype(np.float32)}
        stepped, moments = server_step(federation(optimizer), old, new, moments, step, 0.3)
        old = {**old, **stepped}
    np.testing.assert_allclose(old["w"], slow(changes, known), rtol=1e-4, atol=1e-5)
    assert set(stepped) == {"w"}


def test_the_plain_average_is_taken_as_it_is() -> None:
    new = {"w": np.ones(2, np.float32)}
    assert server_step(federation("average"), {"w": np.zeros(2, np.float32)}, new, {}, 1, 1.0) == (
        new, {},
    )  # fmt: skip


def test_without_the_noise_a_weight_that_is_told_something_outruns_the_others() -> None:
    rng = np.random.default_rng(1)

    def run(optimizer: str) -> float:
        old, moments = {"w": np.zeros(200, np.float32)}, {}
        told = np.where(np.arange(200) < 100, 1.0, 0.0)
        for step in range(1, 61):
            change = told + rng.normal(0, 1.0, 200)
            new = {"w": (old["w"] + change).astype(np.float32)}
            stepped, moments = server_step(federation(optimizer, 100), old, new, moments, step, 1.0)
            old = {**old, **stepped}
        moved = np.abs(old["w"])
        return float(old["w"][:100].mean() / moved[100:].mean())

    # The ratio of what is learned to what the noise moves: not worse for knowing the noise.
    assert run("adam_bc") > 1.0
    assert run("adam") > 1.0


@given(st.lists(st.tuples(st.floats(0.1, 1e4), st.floats(0, 10)), min_size=1, max_size=8))
def test_the_variance_of_an_average_is_that_of_independent_noises(noises) -> None:
    shares = np.array([share for share, _ in noises])
    deviations = np.array([deviation for _, deviation in noises])
    expected = float(np.square(shares / shares.sum()) @ np.square(deviations))
    assert variance_of_average(noises) == pytest.approx(expected)


def test_the_noise_must_be_known_where_it_is_taken_out() -> None:
    content = {
        "study_id": "t", "conditions": ["amd"], "privacy": {"target_epsilon": 8},
        "federation": {"rounds": 1, "server_optimizer": "adam_bc"},
    }  # fmt: skip
    with pytest.raises(ValueError, match="only of steps of sgd"):
        Study.model_validate(content)
    Study.model_validate({**content, "stages": {"dpsgd": {"optimizer": "sgd"}}})
