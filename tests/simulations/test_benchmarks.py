"""A benchmark that no longer runs is found by a test, and not by whoever asks it next."""

import pytest

from simulations.benchmarks import budget, client_memory


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
