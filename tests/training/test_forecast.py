import pytest
from small_study import small_study

from fundusgen.training.forecast import forecast
from fundusgen.training.mechanisms import noise_for


def test_noise_over_signal_is_the_formula_written_out() -> None:
    study = small_study()
    found = forecast(study, [100, 300])
    one = noise_for(study, "dpsgd") * found.private_parameters**0.5 / (0.5 * 400)
    assert found.noise_over_signal == pytest.approx(2**0.5 * one)


def test_fewer_private_parameters_and_more_patients_raise_the_signal() -> None:
    private = {"width": 4, "latent": 4, "private": ["decoder.*modulation*"]}
    everything, few = small_study(), small_study(model=private)
    assert forecast(few, [100]).noise_over_signal < forecast(everything, [100]).noise_over_signal
    assert forecast(everything, [200]).noise_over_signal == pytest.approx(
        forecast(everything, [100]).noise_over_signal / 2
    )
