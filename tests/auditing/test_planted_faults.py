"""Faults planted in the code that trains: every one must be found, and by its name."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fundusgen.auditing import mechanisms
from fundusgen.auditing.audit import MechanismAudit, audit_mechanism
from fundusgen.auditing.mechanisms import STANDARD, AuditedMechanism
from fundusgen.privacy import clipping, dpsgd, noise, votes
from fundusgen.privacy.events import Event
from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.noise import SecureNoise
from fundusgen.privacy.sampling import PoissonPatients

CANARIES = 600
EVERYONE, _, VOTES, VOTES_AND_MORE = STANDARD
# Fewer steps than the standard one, of about the same epsilon.
SAMPLED = AuditedMechanism("sampled", "dpsgd", Event("subsampled_gaussian", 1.004, 0.25, 4), 5)
BOTH = pytest.mark.parametrize("mechanism", [EVERYONE, SAMPLED], ids=lambda m: m.name)
Patch = pytest.MonkeyPatch


def audit(mechanism: AuditedMechanism) -> MechanismAudit:
    return audit_mechanism(mechanism, SecureNoise(), np.random.default_rng(1), canaries=CANARIES)


def failed(found: MechanismAudit) -> set[str]:
    return {check.code for check in found.failed}


@pytest.mark.parametrize(
    "mechanism", [EVERYONE, SAMPLED, VOTES, VOTES_AND_MORE], ids=lambda m: m.name
)
def test_without_a_fault_nothing_is_found(mechanism: AuditedMechanism) -> None:
    found = audit(mechanism)
    assert found.holds, (found.exceeding, found.failed)


@BOTH
def test_half_the_noise(mechanism: AuditedMechanism, monkeypatch: Patch) -> None:
    whole = SecureNoise.gaussian
    monkeypatch.setattr(
        SecureNoise, "gaussian", lambda self, shape, deviation: whole(self, shape, deviation / 2)
    )
    found = audit(mechanism)
    assert failed(found) == {"noise-size"}
    assert "Gaussian, threshold" in {bound.method for bound in found.exceeding}


def test_half_the_noise_on_votes(monkeypatch: Patch) -> None:
    whole = votes.add_gaussian_noise
    monkeypatch.setattr(
        votes,
        "add_gaussian_noise",
        lambda values, deviation, source: whole(values, deviation / 2, source),
    )
    found = audit(VOTES)
    assert failed(found) == {"noise-size"}
    assert {"Gaussian, threshold", "Gaussian, scores"} <= {b.method for b in found.exceeding}


def test_no_noise_on_what_patients_state_with_their_ballots(monkeypatch: Patch) -> None:
    whole = votes.add_gaussian_noise

    def on_ballots_alone(values: Tensor, deviation: float, source: SecureNoise) -> Tensor:
        return torch.cat([whole(values[:CANARIES], deviation, source), values[CANARIES:]])

    monkeypatch.setattr(votes, "add_gaussian_noise", on_ballots_alone)
    assert failed(audit(VOTES_AND_MORE)) == {"noise-size"}


def test_ballots_that_stay_whole_beside_statements(monkeypatch: Patch) -> None:
    """A patient would be heard twice, were the whole not bounded again where it is counted."""
    monkeypatch.setattr(
        mechanisms, "joint", lambda one, stated, share: np.concatenate([one, stated])
    )
    assert audit(VOTES_AND_MORE).holds
    monkeypatch.setattr(votes, "counted", lambda one, settings: one)
    assert "contribution" in failed(audit(VOTES_AND_MORE))


@pytest.mark.parametrize("mechanism", [EVERYONE, SAMPLED, VOTES], ids=lambda m: m.name)
def test_noise_seeded_alike_in_each_round(mechanism: AuditedMechanism, monkeypatch: Patch) -> None:
    """The generator's keys, of which a step takes one for its sample and one for its noise."""
    calls, in_round = [0], mechanism.event.steps * (1 if mechanism.stage == "votes" else 2)

    def repeating(count: int) -> bytes:
        calls[0] += 1
        return np.random.default_rng(calls[0] % in_round).bytes(count)

    monkeypatch.setattr(noise, "os", SimpleNamespace(urandom=repeating))
    found = audit(mechanism)
    assert "noise-over-steps" in failed(found)
    if mechanism is SAMPLED:
        assert "sampling-over-steps" in failed(found)


def test_sums_divided_by_how_many_were_sampled(monkeypatch: Patch) -> None:
    """By their true number instead of the public one: the noise tells it."""
    sampled, hidden, size = PoissonPatients.draw, dpsgd._PatientOptimizer.add_noise, [0]

    def draw(self: PoissonPatients) -> NDArray[np.int64]:
        drawn = sampled(self)
        size[0] = len(drawn)
        return drawn

    def add_noise(self: dpsgd._PatientOptimizer) -> None:
        hidden(self)
        for parameter in self.params:
            parameter.grad *= self.expected_batch_size / size[0]

    monkeypatch.setattr(PoissonPatients, "draw", draw)
    monkeypatch.setattr(dpsgd._PatientOptimizer, "add_noise", add_noise)
    assert "noise-sizes" in failed(audit(SAMPLED))


def test_gradients_left_over_from_the_step_before(monkeypatch: Patch) -> None:
    hidden, left = dpsgd._PatientOptimizer.add_noise, {}

    def add_noise(self: dpsgd._PatientOptimizer) -> None:
        for place, parameter in enumerate(self.params):
            now = parameter.summed_grad.clone()
            parameter.summed_grad += left.get(place, 0)
            left[place] = now
        hidden(self)

    monkeypatch.setattr(dpsgd._PatientOptimizer, "add_noise", add_noise)
    assert "absence" in failed(audit(SAMPLED))


@BOTH
def test_a_batch_counted_twice(mechanism: AuditedMechanism, monkeypatch: Patch) -> None:
    once = dpsgd._PatientOptimizer.clip_and_accumulate

    def twice(self: dpsgd._PatientOptimizer) -> None:
        once(self)
        once(self)

    monkeypatch.setattr(dpsgd._PatientOptimizer, "clip_and_accumulate", twice)
    found = audit(mechanism)
    assert failed(found) == {"contribution"}
    assert found.exceeding


def test_gradients_clipped_by_image_instead_of_patient(monkeypatch: Patch) -> None:
    of_patients = clipping.per_patient_gradients

    def of_images(
        loss: clipping.PatientLoss,
        parameters: Mapping[str, Tensor],
        batch: tuple[Tensor, ...],
        *,
        fixed_size: int | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        one_each = tuple(entry.flatten(0, 1)[:, None] if len(entry) else entry for entry in batch)
        return of_patients(loss, parameters, one_each)

    monkeypatch.setattr(dpsgd, "per_patient_gradients", of_images)
    found = audit(EVERYONE)
    assert failed(found) == {"contribution"}
    assert "3.0" in found.failed[0].found or "2.9" in found.failed[0].found
    assert found.exceeding


def test_ballots_bounded_by_image_instead_of_patient(monkeypatch: Patch) -> None:
    bounded = votes.counted
    monkeypatch.setattr(votes, "counted", lambda ballot, settings: 3 * bounded(ballot, settings))
    found = audit(VOTES)
    assert failed(found) == {"contribution"}
    assert found.exceeding


def test_gradients_that_are_not_clipped(monkeypatch: Patch) -> None:
    monkeypatch.setattr(
        dpsgd,
        "clipped_sum",
        lambda gradients, _: (
            [rows.sum(dim=0) for rows in gradients],
            clipping.patient_norms(gradients),
        ),
    )
    found = audit(EVERYONE)
    assert failed(found) == {"contribution"}
    assert found.exceeding


def test_tensors_clipped_each_by_itself(monkeypatch: Patch) -> None:
    """Two tensors, each of the bound: longer together by the root of two."""
    jointly = clipping.clipped_sum

    def apart(gradients: list[Tensor], bound: float) -> tuple[list[Tensor], Tensor]:
        each = [jointly([rows], bound) for rows in gradients]
        return [sums[0] for sums, _ in each], each[0][1]

    monkeypatch.setattr(dpsgd, "clipped_sum", apart)
    found = audit(EVERYONE)
    assert failed(found) == {"contribution"}
    assert found.exceeding


Draw = Callable[[PoissonPatients], NDArray[np.int64]]
_random = np.random.default_rng(3)


def _fixed_size(sampler: PoissonPatients) -> NDArray[np.int64]:
    size = round(sampler.sample_rate * sampler.patients)
    return np.sort(_random.choice(sampler.patients, size, replace=False))


def _by_image(sampler: PoissonPatients) -> NDArray[np.int64]:
    return np.flatnonzero(_random.random((sampler.patients, 3)).min(axis=1) < sampler.sample_rate)


def _always_the_same(sampler: PoissonPatients) -> NDArray[np.int64]:
    words = np.random.default_rng(4).random(sampler.patients)
    return np.flatnonzero(words < sampler.sample_rate)


def _shuffled() -> Draw:
    waiting: list[NDArray[np.int64]] = []

    def draw(sampler: PoissonPatients) -> NDArray[np.int64]:
        if not waiting:
            parts = round(1 / sampler.sample_rate)
            waiting.extend(np.array_split(_random.permutation(sampler.patients), parts))
        return np.sort(waiting.pop())

    return draw


@pytest.mark.parametrize(
    ("draw", "named"),
    [
        (_fixed_size, "sampling-sizes"),
        (_shuffled(), "sampling-patients"),
        (_by_image, "sampling-rate"),
        (_always_the_same, "sampling-over-steps"),
    ],
    ids=["fixed size", "shuffled", "by image", "always the same"],
)
def test_a_sampler_that_is_not_poisson(draw: Draw, named: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(PoissonPatients, "draw", draw)
    assert named in failed(audit(SAMPLED))


@pytest.mark.parametrize("mechanism", [EVERYONE, SAMPLED, VOTES], ids=lambda m: m.name)
def test_an_accountant_reset_in_each_round(mechanism: AuditedMechanism, monkeypatch: Patch) -> None:
    history = Ledger.events
    monkeypatch.setattr(Ledger, "events", lambda self: history(self)[-1:])
    found = audit(mechanism)
    assert failed(found) == {"accounting"}
    assert found.claim < 6
    # On samples of a quarter, more canaries would be needed for bounds to tell as well.
    assert found.exceeding or mechanism is SAMPLED


def test_an_accountant_that_answers_for_one_round(monkeypatch: Patch) -> None:
    """The ledger is whole, but what is made of it is not: bounds tell."""
    from fundusgen.auditing import mechanisms

    whole = mechanisms.epsilon
    monkeypatch.setattr(mechanisms, "epsilon", lambda _, delta: whole([EVERYONE.event], delta))
    found = audit(EVERYONE)
    assert not found.failed
    assert found.exceeding


def test_noise_that_is_not_gaussian(monkeypatch: Patch) -> None:
    generator = np.random.default_rng(5)

    def laplace(_: SecureNoise, shape: tuple[int, ...], deviation: float) -> Tensor:
        drawn = generator.laplace(0, deviation / np.sqrt(2), shape)
        return torch.from_numpy(drawn / noise.lattice_spacing(deviation)).round() * (
            noise.lattice_spacing(deviation)
        )

    monkeypatch.setattr(SecureNoise, "gaussian", laplace)
    assert failed(audit(VOTES)) == {"noise-shape"}


def test_noise_shared_by_neighbouring_weights(monkeypatch: Patch) -> None:
    own = SecureNoise.gaussian

    def shared(self: SecureNoise, shape: tuple[int, ...], deviation: float) -> Tensor:
        (count,) = shape
        return own(self, (-(-count // 4),), deviation).repeat_interleave(4)[:count]

    monkeypatch.setattr(SecureNoise, "gaussian", shared)
    # Which canaries are out is random, and of two neighbours mostly one is: so there are four.
    assert "noise-over-directions" in failed(audit(VOTES))
