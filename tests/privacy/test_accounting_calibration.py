import math

import pytest

from fundusgen.errors import AccountingError
from fundusgen.privacy import accounting
from fundusgen.privacy.accounting import (
    NOISE_TOLERANCE,
    calibrate_noise_multiplier,
    epsilon,
    epsilon_pld,
)
from fundusgen.privacy.events import Event

VOTES = Event("gaussian", 8.0, 1.0, 4)
EARLIER = Event("subsampled_gaussian", 1.2, 0.05, 300)


@pytest.mark.parametrize(
    ("target_epsilon", "target_delta", "sample_rate", "steps", "spent"),
    [
        (8.0, 1e-5, 0.05, 600, []),
        (8.0, 1e-5, 0.05, 600, [EARLIER, VOTES]),
        (1.0, 1e-6, 0.01, 200, []),
        (3.0, 1e-4, 1.0, 5, [VOTES]),
        (0.05, 1e-6, 0.1, 10, []),
    ],
)
def test_calibrated_noise_meets_the_target_and_is_the_smallest(
    target_epsilon, target_delta, sample_rate, steps, spent
):
    noise_multiplier = calibrate_noise_multiplier(
        target_epsilon=target_epsilon,
        target_delta=target_delta,
        sample_rate=sample_rate,
        steps=steps,
        spent=spent,
    )

    def total(noise, accountant):
        event = Event("subsampled_gaussian", noise, sample_rate, steps)
        return accountant([*spent, event], target_delta)

    assert total(noise_multiplier, epsilon) <= target_epsilon
    assert total(noise_multiplier, epsilon_pld) <= target_epsilon
    assert total(noise_multiplier * (1 - 2 * NOISE_TOLERANCE), epsilon) > target_epsilon


def test_calibration_agrees_with_opacus():
    # opacus/tests/accountants_test.py, test_get_noise_multiplier_rdp_epochs: 1.416 by RDP, which
    # is looser: we need less noise for the same epsilon.
    noise_multiplier = calibrate_noise_multiplier(
        target_epsilon=8.0, target_delta=1e-5, sample_rate=0.04, steps=2250
    )
    assert 0.93 * 1.416 < noise_multiplier < 1.416


def test_calibration_agrees_with_balle_and_wang():
    # One full-batch step is the analytic Gaussian mechanism: invert its exact epsilon.
    noise_multiplier = calibrate_noise_multiplier(
        target_epsilon=1.0, target_delta=1e-5, sample_rate=1.0, steps=1
    )
    # Dwork & Roth 2014, Appendix A: sqrt(2 ln(1.25 / delta)), which the analytic one beats.
    assert noise_multiplier < math.sqrt(2 * math.log(1.25 / 1e-5))
    assert noise_multiplier == pytest.approx(3.7306, rel=NOISE_TOLERANCE)


def test_a_generous_target_gives_the_least_noise_ever_proposed():
    assert (
        calibrate_noise_multiplier(target_epsilon=1e6, target_delta=1e-5, sample_rate=0.1, steps=1)
        == accounting.NOISE_RANGE[0]
    )


def test_an_objection_of_the_second_accountant_raises_the_noise(monkeypatch):
    wanted = {"target_epsilon": 2.0, "target_delta": 1e-5, "sample_rate": 1.0, "steps": 3}
    without = calibrate_noise_multiplier(**wanted)
    monkeypatch.setattr(
        accounting, "epsilon_pld", lambda events, delta: 1.01 * epsilon(events, delta)
    )
    doubted = calibrate_noise_multiplier(**wanted)
    assert without * 1.005 < doubted < without * 1.02


def test_calibration_works_without_the_second_accountant(monkeypatch):
    monkeypatch.setattr(accounting, "pld_is_installed", lambda: False)
    noise_multiplier = calibrate_noise_multiplier(
        target_epsilon=2.0, target_delta=1e-5, sample_rate=1.0, steps=3
    )
    assert epsilon([Event("gaussian", noise_multiplier, 1.0, 3)], 1e-5) <= 2.0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target_epsilon": 0.0}, "target_epsilon"),
        ({"target_epsilon": math.nan}, "target_epsilon"),
        ({"target_epsilon": math.inf}, "target_epsilon"),
        ({"target_delta": 0.0}, "delta"),
        ({"target_delta": 1.0}, "delta"),
        ({"sample_rate": 0.0}, "sample_rate"),
        ({"sample_rate": 1.5}, "sample_rate"),
        ({"steps": 0}, "no steps"),
        ({"steps": -1}, "steps"),
        ({"steps": 1.5}, "whole number"),
        ({"spent": [Event("gaussian", 0.5, 1.0, 1)]}, "spent already"),
    ],
)
def test_impossible_targets_are_errors_that_teach(changed, message):
    wanted = {"target_epsilon": 8.0, "target_delta": 1e-5, "sample_rate": 0.05, "steps": 100}
    with pytest.raises(AccountingError, match=message):
        calibrate_noise_multiplier(**(wanted | changed))


def test_a_target_that_no_noise_meets_is_refused():
    with pytest.raises(AccountingError, match="no noise up to"):
        calibrate_noise_multiplier(
            target_epsilon=1e-4, target_delta=1e-9, sample_rate=1.0, steps=10**9
        )
