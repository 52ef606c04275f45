"""Audits of the real mechanisms, as they are: claims hold, and the audits could have told."""

import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from fundusgen.auditing.audit import SUFFICIENT_POWER, audit_mechanism
from fundusgen.auditing.canaries import Observation, coins
from fundusgen.auditing.checks import (
    ALARM,
    Check,
    absence,
    accounted,
    all_checks,
    contribution,
    noise_over_directions,
    noise_over_steps,
    noise_shape,
    noise_size,
    noise_sizes,
    sampling_over_steps,
    sampling_patients,
    sampling_rate,
    sampling_sizes,
)
from fundusgen.auditing.mechanisms import (
    STANDARD,
    STANDARD_DELTA,
    AuditedMechanism,
    joined,
    observe,
)
from fundusgen.errors import PrivacyError
from fundusgen.privacy.accounting import epsilon
from fundusgen.privacy.events import Event
from fundusgen.privacy.noise import FastNoise, SecureNoise

EVERYONE, SAMPLED, VOTES, VOTES_AND_MORE = STANDARD
SMALL = AuditedMechanism("small", "dpsgd", Event("subsampled_gaussian", 1.2, 0.3, 3), rounds=4)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("mechanism", "canaries"),
    [(EVERYONE, 1000), (SAMPLED, 2000), (VOTES, 1000), (VOTES_AND_MORE, 1000)],
    ids=lambda value: getattr(value, "name", value),
)
def test_sound_code_keeps_its_claim_and_the_audit_has_power(
    mechanism: AuditedMechanism, canaries: int
) -> None:
    """Fails by chance three times in ten thousand: the noise cannot be seeded."""
    audit = audit_mechanism(
        mechanism, SecureNoise(), rng(), canaries=canaries, delta=STANDARD_DELTA
    )
    assert 8.0 <= audit.claim <= 8.1
    assert audit.claim == epsilon([mechanism.planned], STANDARD_DELTA)
    assert audit.holds, (audit.exceeding, audit.failed)
    assert all(0 <= bound.certain <= audit.claim for bound in audit.bounds)
    assert audit.power > SUFFICIENT_POWER
    assert audit.sufficient


def test_canaries_are_seen_in_what_is_released_and_nowhere_else() -> None:
    included_M = coins(400, rng(1))
    seen = observe(SMALL, included_M, FastNoise(), 1e-5)
    assert seen.released_TM.shape == (12, 400)
    assert seen.drawn_TP.shape == (12, included_M.sum())
    left = seen.own_TP - seen.drawn_TP
    for noise in (left, seen.noise_TN):
        assert abs(noise.mean()) < 5 * 1.2 / math.sqrt(noise.size)
        assert noise.std() == pytest.approx(1.2, rel=5 / math.sqrt(2 * noise.size))
    assert seen.counted == (SMALL.planned,)
    assert seen.claim == epsilon([SMALL.planned], 1e-5)


@pytest.mark.parametrize("max_grad_norm", [1e-3, 50.0])
def test_the_bound_on_gradients_is_the_unit_of_what_is_seen(max_grad_norm: float) -> None:
    mechanism = AuditedMechanism(
        "scaled", "dpsgd", Event("subsampled_gaussian", 0.01, 1.0, 2), 1, max_grad_norm
    )
    included_M = coins(50, rng(2))
    seen = observe(mechanism, included_M, FastNoise(), 1e-5)
    assert seen.released_TM == pytest.approx(np.stack([included_M] * 2).astype(float), abs=0.06)


def test_the_seed_tosses_the_coins_and_never_the_noise() -> None:
    one, other = (coins(100, rng(5)) for _ in range(2))
    assert (one == other).all()
    first, second = (observe(SMALL, one, SecureNoise(), 1e-5) for _ in range(2))
    assert not (first.released_TM == second.released_TM).any()


def test_runs_are_put_side_by_side() -> None:
    audit = audit_mechanism(VOTES, FastNoise(), rng(6), canaries=90, runs=4)
    assert (audit.canaries, audit.runs) == (90, 4)
    runs = [observe(SMALL, coins(size, rng(size)), FastNoise(), 1e-5) for size in (20, 30)]
    both = joined(runs)
    assert both.released_TM.shape == (12, 50)
    assert both.own_TP.shape == both.drawn_TP.shape
    assert both.counted == runs[0].counted
    # A ledger that lost something in one run is not hidden by the others.
    fewer = replace(runs[1], counted=(replace(SMALL.planned, steps=11),))
    cheaper = replace(fewer, claim=0.9 * fewer.claim)
    for lost in (fewer, cheaper):
        seen = joined([runs[0], lost])
        assert (seen.counted, seen.claim) == (lost.counted, lost.claim)
        assert _fails(accounted(SMALL.planned, len(seen.released_TM), seen.counted))


def test_an_audit_whose_gaussian_bounds_are_far_below_the_claim_saw_little() -> None:
    audit = audit_mechanism(VOTES, FastNoise(), rng(7), canaries=200)
    share = 0.59 * audit.claim
    weak = replace(audit, bounds=tuple(replace(b, epsilon=share) for b in audit.bounds))
    assert weak.power == pytest.approx(0.59)
    assert not weak.sufficient
    assert replace(weak, bounds=(replace(weak.bounds[1], epsilon=1.02 * share),)).sufficient


@pytest.mark.parametrize(
    ("stage", "event", "rounds"),
    [
        ("votes", Event("subsampled_gaussian", 1.0, 1.0, 1), 1),
        ("dpsgd", Event("gaussian", 1.0, 1.0, 1), 1),
        ("votes", Event("gaussian", 1.0, 1.0, 1), 0),
        ("dpsgd", Event("subsampled_gaussian", 1.0, 0.5, 0), 3),
    ],
)
def test_what_no_site_would_reserve_is_not_audited(stage: str, event: Event, rounds: int) -> None:
    with pytest.raises(PrivacyError, match="an audit of"):
        AuditedMechanism("odd", stage, event, rounds)  # type: ignore[arg-type]


def _ideal(steps: int, canaries: int, generator: np.random.Generator) -> Observation:
    included_M = coins(canaries, generator)
    drawn_TM = (generator.random((steps, canaries)) < 0.3) & included_M
    released_TM = generator.normal(0, 1.2, (steps, canaries)) + drawn_TM
    return Observation(included_M, released_TM, drawn_TM[:, included_M], (SMALL.planned,), 0.0)


def test_p_values_of_ideal_mechanisms_are_no_smaller_than_chance_has_them() -> None:
    """Of each check, below p with a probability of p at most: uniform or too large."""
    generator, trials = rng(8), 400
    found: dict[str, list[float]] = {}
    for _ in range(trials):
        for check in all_checks(SMALL, _ideal(12, 80, generator), generator):
            found.setdefault(check.code, []).append(check.p_value)
    assert len(found) == 12
    for code, values in found.items():
        for p in (0.5, 0.1, 0.01):
            below = int((np.array(values) <= p).sum())
            assert below <= stats.binom.ppf(1 - 1e-5, trials, p), (code, p)


def _noise(generator: np.random.Generator) -> NDArray[np.float64]:
    return generator.normal(0, 1.0, (6, 400))


def _fails(check: Check) -> bool:
    return not check.holds


def test_checks_of_noise_see_noise_that_is_not_what_it_should_be() -> None:
    noise = _noise(rng(9))
    assert _fails(noise_size(0.8 * noise, 1.0))
    assert _fails(noise_size(1.2 * noise, 1.0))
    assert _fails(noise_size(np.zeros((3, 50)), 1.0))
    assert _fails(noise_shape(rng(10).laplace(0, math.sqrt(0.5), (6, 400))))
    assert _fails(noise_shape(rng(10).uniform(-1.7, 1.7, (6, 400))))
    assert _fails(noise_shape(np.zeros((3, 50))))
    assert _fails(noise_size(np.full((2, 50), math.nan), 1.0))


def test_checks_of_noise_see_noise_that_comes_again() -> None:
    noise = _noise(rng(11))
    assert _fails(noise_over_steps(noise[[0, 1, 2, 3, 4, 0]]))
    # Half of it is fresh, and half is not.
    assert _fails(noise_over_steps(noise + noise[[1, 2, 3, 4, 5, 0]]))
    assert _fails(noise_over_steps(np.zeros((3, 50))))
    assert _fails(noise_over_directions(np.repeat(noise[:, :200], 2, axis=1)))
    assert _fails(noise_over_directions(np.tile(noise[:, :200], 2)))
    assert not _fails(noise_over_steps(noise))
    assert not _fails(noise_over_directions(noise))


def test_checks_of_samples_see_other_samplers() -> None:
    generator = rng(12)
    patients, steps, rate = 200, 12, 0.25
    poisson = generator.random((steps, patients)) < rate
    fixed = np.argsort(generator.random((steps, patients)), axis=1) < rate * patients
    shuffled = np.zeros((steps, patients), bool)
    for epoch in range(3):
        for step, part in enumerate(np.array_split(generator.permutation(patients), 4)):
            shuffled[4 * epoch + step, part] = True
    by_image = generator.random((steps, patients, 3)).min(axis=2) < rate
    again = np.tile(poisson[:1], (steps, 1))
    in_pairs = np.repeat(generator.random((steps, patients // 40)) < rate, 40, axis=1)

    def failing(drawn: NDArray[np.bool_]) -> set[str]:
        checks = (
            sampling_rate(drawn, rate),
            sampling_sizes(drawn, rate, generator),
            sampling_patients(drawn, rate, generator),
            sampling_over_steps(drawn, rate),
        )
        return {check.code for check in checks if not check.holds}

    assert failing(poisson) == set()
    assert "sampling-sizes" in failing(fixed)
    assert {"sampling-sizes", "sampling-patients"} <= failing(shuffled)
    assert "sampling-rate" in failing(by_image)
    assert {"sampling-patients", "sampling-over-steps"} <= failing(again)
    assert "sampling-sizes" in failing(in_pairs)


def test_checks_see_what_a_patient_adds_and_what_is_counted() -> None:
    noise = rng(13).normal(0, 1, 2000)
    assert contribution(noise + 1, 1.0).holds
    assert contribution(noise, 1.0).holds
    assert _fails(contribution(noise + 1.2, 1.0))
    planned = Event("gaussian", 2.0, 1.0, 10)
    assert accounted(planned, 10, (planned,)).holds
    assert _fails(accounted(planned, 10, (Event("gaussian", 2.0, 1.0, 9),)))
    assert _fails(accounted(planned, 10, (Event("gaussian", 2.5, 1.0, 10),)))
    assert _fails(accounted(planned, 10, ()))


def test_checks_see_what_is_left_of_earlier_steps_and_noise_that_tells_of_the_sample() -> None:
    generator = rng(14)
    noise = generator.normal(0, 1.3, (20, 400))
    assert absence(noise.ravel(), 1.3).holds
    assert _fails(absence(noise.ravel() + 0.1, 1.3))
    assert noise_sizes(noise).holds
    assert _fails(noise_sizes(noise * generator.normal(1, 0.1, (20, 1))))
    assert _fails(noise_sizes(np.zeros((20, 400))))


@pytest.mark.parametrize(("included", "named"), [(False, "contribution"), (True, "noise-size")])
def test_what_nobody_could_see_does_not_hold(included: bool, named: str) -> None:
    """All coins fell alike: there is no canary in, or none out."""
    seen = observe(SMALL, np.full(30, included), FastNoise(), 1e-5)
    checks = {check.code: check for check in all_checks(SMALL, seen, rng(15))}
    assert math.isnan(checks[named].p_value)
    assert not checks[named].holds
    with_nobody = {"contribution", "absence"} | {code for code in checks if "sampling" in code}
    unseen = {code for code, check in checks.items() if math.isnan(check.p_value)}
    assert unseen == ({code for code in checks if "noise" in code} if included else with_nobody)


def test_a_check_of_one_number_sees_nothing() -> None:
    one = rng(16).normal(size=(4, 1))
    assert math.isnan(noise_over_steps(one).p_value)
    assert math.isnan(noise_over_directions(one).p_value)


def test_an_audit_leaves_no_trace_in_the_process() -> None:
    threads, state, environment = torch.get_num_threads(), torch.get_rng_state(), dict(os.environ)
    audit_mechanism(SMALL, SecureNoise(), rng(17), canaries=40)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert dict(os.environ) == environment


def test_the_seeds_of_the_process_do_not_reach_the_noise() -> None:
    seen = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            seen.append(observe(SMALL, coins(40, rng(18)), FastNoise(), 1e-5))
    assert not (seen[0].released_TM == seen[1].released_TM).any()
    assert not (seen[0].drawn_TP == seen[1].drawn_TP).all()


def test_a_check_that_could_not_be_computed_does_not_hold() -> None:
    assert _fails(Check("x", "", "", math.nan))
    assert Check("x", "", "", ALARM).holds
