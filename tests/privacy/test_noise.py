"""Noise: distribution, lattice, independence, and what is refused."""

import copy
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from fundusgen.errors import PrivacyError
from fundusgen.privacy.noise import (
    FastNoise,
    NoiseSource,
    SecureNoise,
    add_gaussian_noise,
    lattice_spacing,
    rounding_sensitivity,
)

# A sound source fails one of these tests once in a thousand million runs.
IMPROBABLE = 1e-9
SOURCES = pytest.mark.parametrize("source", [SecureNoise(), FastNoise()], ids=lambda s: s.kind)


class FixedNoise:
    """Gives the noise it was told to give."""

    kind = "test"

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def gaussian(self, shape: tuple[int, ...], standard_deviation: float) -> Tensor:
        return self.noise

    def uniform_uint64(self, count: int) -> np.ndarray:
        raise NotImplementedError


@SOURCES
@pytest.mark.parametrize("deviation", [1e-6, 1.0, 3.7, 5e4])
def test_gaussian_noise_has_the_variance_it_was_asked_for(
    source: NoiseSource, deviation: float
) -> None:
    count = 200_000
    noise = source.gaussian((count,), deviation)
    low, high = stats.chi2.ppf([IMPROBABLE, 1 - IMPROBABLE], count)
    assert low < (noise / deviation).square().sum().item() < high
    assert abs(noise.mean().item()) < 6.2 * deviation / math.sqrt(count)


@SOURCES
def test_gaussian_noise_has_the_shape_of_a_gaussian(source: NoiseSource) -> None:
    noise = source.gaussian((200_000,), 2.0).numpy()
    assert stats.kstest(noise / 2.0, "norm").pvalue > IMPROBABLE


@SOURCES
def test_tails_are_as_heavy_as_a_gaussians(source: NoiseSource) -> None:
    count, bound = 1_000_000, 4.0
    outside = int((source.gaussian((count,), 1.0).abs() > bound).sum())
    expected = 2 * stats.norm.sf(bound)
    assert stats.binomtest(outside, count, expected).pvalue > IMPROBABLE


@SOURCES
@pytest.mark.parametrize("lag", [1, 2, 7, 1 << 16])
def test_coordinates_do_not_covary(source: NoiseSource, lag: int) -> None:
    noise = source.gaussian((300_000,), 1.0)
    for transform in (lambda x: x, lambda x: x.square() - 1):
        values = transform(noise)
        products = values[lag:] * values[:-lag]
        assert abs(products.mean() / products.std()) * math.sqrt(len(products)) < 6.2


@SOURCES
def test_uniform_words_use_all_64_bits_evenly(source: NoiseSource) -> None:
    words = source.uniform_uint64(100_000)
    assert words.dtype == np.uint64
    bits = (words[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    ones = bits.sum(axis=0)
    assert all(stats.binomtest(int(n), 100_000).pvalue > IMPROBABLE / 64 for n in ones)
    counts = np.bincount((words >> np.uint64(56)).astype(int), minlength=256)
    assert stats.chisquare(counts).pvalue > IMPROBABLE


@SOURCES
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3), (1,), (65_537,)])
def test_noise_has_the_shape_it_was_asked_for(source: NoiseSource, shape: tuple[int, ...]) -> None:
    noise = source.gaussian(shape, 1.0)
    assert noise.shape == shape
    assert noise.dtype == torch.float64


@SOURCES
@pytest.mark.parametrize("count", [0, 1, 65_536, 65_537])
def test_words_are_as_many_as_asked_for(source: NoiseSource, count: int) -> None:
    assert len(np.unique(source.uniform_uint64(count))) == count


@SOURCES
def test_a_negative_count_is_refused(source: NoiseSource) -> None:
    with pytest.raises(PrivacyError):
        source.uniform_uint64(-1)


@SOURCES
@pytest.mark.parametrize("deviation", [0.0, -1.0, math.nan, math.inf, 1e-40, 1e40])
def test_a_useless_standard_deviation_is_refused(source: NoiseSource, deviation: float) -> None:
    with pytest.raises(PrivacyError, match="standard deviation"):
        source.gaussian((3,), deviation)


@SOURCES
def test_two_calls_two_instances_and_copies_never_repeat_each_other(source: NoiseSource) -> None:
    others = (source, type(source)(), copy.copy(source), copy.deepcopy(source))
    draws = [tuple(other.uniform_uint64(4)) for other in others]
    assert len(set(draws)) == len(others)
    noises = [tuple(other.gaussian((8,), 1.0).tolist()) for other in others]
    assert len(set(noises)) == len(others)


@SOURCES
def test_a_fork_never_repeats_its_parent(source: NoiseSource) -> None:
    source.uniform_uint64(4)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # Nothing but system calls and the source: a forked child must not run test machinery.
        try:
            os.write(writer, source.uniform_uint64(4).tobytes())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reader, 32)
    os.close(reader)
    os.close(writer)
    assert len(theirs) == 32
    assert theirs != source.uniform_uint64(4).tobytes()


def test_a_seed_set_in_the_process_does_not_reach_the_noise() -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(7)
        for source in (SecureNoise(), FastNoise()):
            draws.append(tuple(source.gaussian((4,), 1.0).tolist()))
    assert len(set(draws)) == 4


def test_a_new_process_never_starts_with_an_old_stream() -> None:
    program = (
        "from fundusgen.privacy.noise import SecureNoise;"
        "print(SecureNoise().uniform_uint64(4).tobytes().hex())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    theirs = run.stdout.decode().strip()
    assert len(theirs) == 64
    assert theirs != SecureNoise().uniform_uint64(4).tobytes().hex()


@given(st.floats(1e-30, 1e30))
def test_lattice_spacing_is_a_power_of_two_far_below_the_noise(deviation: float) -> None:
    spacing = lattice_spacing(deviation)
    assert math.frexp(spacing)[0] == 0.5
    assert 2.0**20 <= deviation / spacing < 2.0**21


@SOURCES
@given(values=st.lists(st.floats(-1e3, 1e3), max_size=20), deviation=st.floats(1e-3, 1e3))
def test_a_release_lies_on_the_lattice_whatever_the_values(
    source: NoiseSource, values: list[float], deviation: float
) -> None:
    released = add_gaussian_noise(torch.tensor(values), deviation, source)
    steps = released / lattice_spacing(deviation)
    assert torch.equal(steps, steps.round())


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30),
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30),
    st.floats(1e-2, 1e2),
)
def test_rounding_moves_neighbours_apart_by_no_more_than_its_bound(
    first: list[float], second: list[float], deviation: float
) -> None:
    count = min(len(first), len(second))
    pair = torch.tensor([first[:count], second[:count]], dtype=torch.float64)
    silent = FixedNoise(torch.zeros(count, dtype=torch.float64))
    rounded = torch.stack([add_gaussian_noise(row, deviation, silent) for row in pair])
    apart = torch.linalg.vector_norm(rounded[0] - rounded[1])
    assert apart <= torch.linalg.vector_norm(pair[0] - pair[1]) + rounding_sensitivity(
        count, deviation
    ) * (1 + 1e-9)


@given(st.integers(-(2**40), 2**40), st.integers(-(2**25), 2**25))
def test_lattice_points_are_added_without_rounding(value: int, noise: int) -> None:
    spacing = lattice_spacing(0.3)
    released = add_gaussian_noise(
        torch.tensor([value * spacing], dtype=torch.float64),
        0.3,
        FixedNoise(torch.tensor([noise * spacing], dtype=torch.float64)),
    )
    assert released.item() == (value + noise) * spacing


def test_the_noise_of_a_release_has_the_variance_it_was_asked_for() -> None:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    noise = (add_gaussian_noise(values, 0.5, SecureNoise()) - values) / 0.5
    low, high = stats.chi2.ppf([IMPROBABLE, 1 - IMPROBABLE], len(values))
    assert low < noise.square().sum().item() < high


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_values_that_no_noise_can_hide_are_refused(value: float) -> None:
    with pytest.raises(PrivacyError, match="too large"):
        add_gaussian_noise(torch.tensor([0.0, value]), 1.0, SecureNoise())


@pytest.mark.parametrize("noise", [torch.zeros(1).double(), torch.zeros(3)])
def test_noise_of_another_shape_or_precision_is_refused(noise: Tensor) -> None:
    with pytest.raises(PrivacyError, match="noise source"):
        add_gaussian_noise(torch.zeros(3), 1.0, FixedNoise(noise))


def test_no_entropy_from_the_system_means_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> bytes:
        raise NotImplementedError

    monkeypatch.setattr(os, "urandom", fail)
    with pytest.raises(NotImplementedError):
        SecureNoise().gaussian((2,), 1.0)


def test_the_ledger_can_tell_the_sources_apart() -> None:
    assert (SecureNoise().kind, FastNoise().kind) == ("secure", "fast")
