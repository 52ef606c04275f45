"""A benchmark that no longer runs is found by a test, and not by whoever asks it next."""

import copy

import numpy as np
import pytest
import torch
from opacus import GradSampleModule

from fundusgen.models.losses import loss_on_drawn, loss_on_real
from simulations.benchmarks import budget, client_memory, digits, dp_step, grad_sample


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


@pytest.mark.parametrize("kind", ["ours", "plain"])
def test_both_gans_of_digits_are_trained_and_judged(kind: str) -> None:
    setting = digits.Setting(kind, sample_rate=0.02, steps=3, learning_rate=1e-3, max_grad_norm=1)
    (row,) = digits.measure([setting], seeds=[0])
    assert row["frechet"] > 0
    assert 0 <= row["accuracy_linear"] <= 1
    assert f"| {kind} |" in digits.table([row])


def test_the_plain_gan_of_digits_is_given_each_digits_own_gradient() -> None:
    split, model = digits.digits(0), digits.DigitsGAN()
    with torch.no_grad():
        # A new embedding is zero, and would hide mistakes in the labels.
        model.discriminator.embedding.weight.normal_()
    real, labels = split.train[:4], split.train_labels[:4]
    drawn = model.draw(torch.randn(4, model.noise_length), labels).detach()
    # A copy: hooks stay on what they were put on.
    judge = GradSampleModule(copy.deepcopy(model.discriminator))
    digits.hooked_gradients(judge, real, drawn, labels)
    found = [parameter.grad_sample for parameter in judge.parameters()]
    for place in range(4):
        one = slice(place, place + 1)
        loss = loss_on_real(model.discriminator(real[one], labels[one]), "logistic").sum()
        loss = loss + loss_on_drawn(model.discriminator(drawn[one], labels[one]), "logistic").sum()
        slow = torch.autograd.grad(loss, list(model.discriminator.parameters()))
        for fast, expected in zip(found, slow, strict=True):
            torch.testing.assert_close(fast[place], expected, rtol=1e-4, atol=1e-6)


def test_the_frechet_distance_is_that_of_gaussians() -> None:
    rng = np.random.default_rng(0)
    one_ND = rng.normal(0, 1, (4000, 3))
    assert digits.frechet(one_ND, one_ND) == pytest.approx(0, abs=1e-6)
    # Of Gaussians of deviations 1 and 2 whose means lie 3 apart: 9 + 3 * (2 - 1) ** 2.
    other_ND = rng.normal(0, 2, (4000, 3)) + np.array([3.0, 0.0, 0.0])
    assert digits.frechet(one_ND, other_ND) == pytest.approx(12, rel=0.05)


def test_a_discriminators_step_is_measured_beside_its_plain_one(monkeypatch) -> None:
    monkeypatch.setattr(dp_step, "TURNS", 1)
    subject = dp_step.gan_subject("discriminator.*vote.*")
    dp_s, plain_s = dp_step._compare(subject)
    assert dp_step._count(subject) < dp_step._count(dp_step.gan_subject("discriminator.*"))
    assert min(*dp_s, *plain_s) > 0


def test_all_ways_to_patients_gradients_are_timed_over_the_plain_one() -> None:
    rows = grad_sample.measure(patients=2, turns=1)
    assert len(rows) == 4 * 6
    assert all(row["value"] > 0 for row in rows)


def test_a_way_that_gives_other_sums_is_not_timed(monkeypatch) -> None:
    subject = grad_sample.subjects(2)[1]
    clipped = grad_sample._vmap(subject)
    wrong = {name: total * 1.01 for name, total in clipped.items()}
    monkeypatch.setattr(grad_sample, "_vmap", lambda _: wrong)
    with pytest.raises(ArithmeticError, match=r"vmap is .* away"):
        grad_sample.ways(subject)
