"""The Renyi divergence of one step, held against plain integration."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fundusgen.privacy.accounting import epsilon_rdp
from fundusgen.privacy.events import Event
from fundusgen.privacy.renyi import step_divergence


def by_integration(noise_multiplier, sample_rate, order, *, removed):
    """Mironov, Talwar & Zhang 2019, Definition 5: an integral over all outputs of the step.

    Of the moment less one, which loses no digits where there is hardly any divergence. The
    trapezoid rule is exact to rounding for such integrands.
    """
    noise = noise_multiplier
    x = np.linspace(-40 * noise - order, 40 * noise + 2 * order, 400_001)
    log_without = -((x / noise) ** 2) / 2 - math.log(noise * math.sqrt(2 * math.pi))
    log_ratio = np.log1p(sample_rate * np.expm1((2 * x - 1) / (2 * noise**2)))
    power = (order if removed else 1 - order) * log_ratio
    # Where the ratio is large the one is lost in it, and a product of both would overflow.
    small = np.exp(log_without) * np.expm1(np.minimum(power, 30.0))
    moment = np.trapezoid(np.where(power < 30.0, small, np.exp(log_without + power)), x)
    return math.log1p(moment) / (order - 1)


@pytest.mark.parametrize("noise_multiplier", [0.6, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("sample_rate", [1e-6, 0.01, 0.2, 0.9])
@pytest.mark.parametrize("order", [1.3, 2.0, 2.7, 5.0, 10.9, 20.0])
def test_the_divergence_of_a_step_bounds_both_directions_tightly(
    noise_multiplier, sample_rate, order
):
    found = step_divergence(noise_multiplier, sample_rate, order)
    removed = by_integration(noise_multiplier, sample_rate, order, removed=True)
    added = by_integration(noise_multiplier, sample_rate, order, removed=False)
    assert found >= max(removed, added) * (1 - 1e-12)
    assert found <= removed * (1 + 1e-9) + 1e-12 / (order - 1)


@settings(max_examples=30, deadline=None)
@given(
    noise_multiplier=st.floats(1e-6, 1e300),
    sample_rate=st.floats(1e-300, 1.0),
    order=st.one_of(st.floats(1.01, 11.0), st.integers(2, 4096).map(float)),
)
def test_a_step_never_costs_more_than_one_with_every_patient(noise_multiplier, sample_rate, order):
    found = step_divergence(noise_multiplier, sample_rate, order)
    full_batch = order / 2 * (1 / noise_multiplier) ** 2
    assert 0.0 <= found <= full_batch


def test_many_different_mechanisms_are_each_counted_as_they_are():
    # Renyi DP adds up: no history is too mixed for it, and none is rounded.
    history = [Event("subsampled_gaussian", 1.5 + 0.01 * i, 0.02, 3) for i in range(60)]
    like_the_dearest = [Event("subsampled_gaussian", 1.5, 0.02, 180)]
    like_the_cheapest = [Event("subsampled_gaussian", 2.09, 0.02, 180)]
    assert epsilon_rdp(like_the_cheapest, 1e-5) < epsilon_rdp(history, 1e-5)
    assert epsilon_rdp(history, 1e-5) < epsilon_rdp(like_the_dearest, 1e-5)
    halves = [Event("subsampled_gaussian", e.noise_multiplier, 0.02, 1) for e in history] * 3
    assert epsilon_rdp(halves, 1e-5) == epsilon_rdp(history, 1e-5)
