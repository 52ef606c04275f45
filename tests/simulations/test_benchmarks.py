"""A benchmark that no longer runs is found by a test, and not by whoever asks it next."""

import numpy as np
import pytest

from simulations.benchmarks import budget, client_memory, digits, dp_step


@pytest.mark.slow
def test_a_client_answers_in_the_memory_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_memory, "PATIENTS", 12)
    peak, before = client_memory.run()
    # A process begins with the peak of the one that started it, which may be the whole suite's.
    assert peak["value"] >= before["value"] > 0


def test_the_budget_benchmark_answers_audits_and_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setattr(budget, "ROUNDS", 5)
    monkeypatch.chdir(tmp_path)
    rows = budget.measure()
    assert len(rows) == 6
    assert all(row["value"] > 0 for row in rows)


@pytest.mark.filterwarnings("ignore:Full backward hook:UserWarning")
@pytest.mark.filterwarnings("ignore:Optimal order is the largest alpha:UserWarning")
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer:Warning")
@pytest.mark.parametrize("kind", ["ours", "plain"])
def test_both_gans_of_digits_are_trained_and_judged(kind: str) -> None:
    setting = digits.Setting(kind, sample_rate=0.02, steps=3, learning_rate=1e-3, max_grad_norm=1)
    (row,) = digits.measure([setting], seeds=[0])
    assert row["frechet"] > 0
    assert 0 <= row["accuracy_linear"] <= 1
    assert f"| {kind} |" in digits.table([row])


def test_the_frechet_distance_is_that_of_gaussians() -> None:
    rng = np.random.default_rng(0)
    one_ND = rng.normal(0, 1, (4000, 3))
    assert digits.frechet(one_ND, one_ND) == pytest.approx(0, abs=1e-6)
    # Of Gaussians of deviations 1 and 2 whose means lie 3 apart: 9 + 3 * (2 - 1) ** 2.
    other_ND = rng.normal(0, 2, (4000, 3)) + np.array([3.0, 0.0, 0.0])
    assert digits.frechet(one_ND, other_ND) == pytest.approx(12, rel=0.05)


def test_a_discriminators_step_is_measured_beside_its_plain_one(monkeypatch) -> None:
    monkeypatch.setattr(dp_step, "TURNS", 1)
    private, (dp_s, plain_s) = dp_step._compare_discriminator("discriminator.*vote.*")
    assert private
    assert all(name.startswith("discriminator.") for name in private)
    assert min(*dp_s, *plain_s) > 0
