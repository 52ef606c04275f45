"""Overlap against loops over images, against known cases, and against what theory expects."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fundusgen.evaluation.manifold import (
    Shares,
    equal_places,
    expected_coverage,
    overlap,
    overlap_estimate,
)
from fundusgen.evaluation.resampling import LEAST_GROUPS, members, resampled

Floats = NDArray[np.float64]


def slow_radii(y_MD: Floats, k: int, groups: list[int]) -> list[float]:
    return [
        sorted(
            float(((one - other) ** 2).sum())
            for other, its in zip(y_MD, groups, strict=True)
            if its != own
        )[k - 1]
        for one, own in zip(y_MD, groups, strict=True)
    ]


def slow_overlap(
    x_ND: Floats,
    y_MD: Floats,
    k: int,
    groups: list[int],
    x_counts: list[float] | None = None,
    y_counts: list[float] | None = None,
) -> tuple[float, float, float, float]:
    """Image by image, each as often as counted."""
    x_counts, y_counts = x_counts or [1.0] * len(x_ND), y_counts or [1.0] * len(y_MD)
    x_radii = slow_radii(x_ND, k, list(range(len(x_ND))))
    y_radii = slow_radii(y_MD, k, groups)
    precise = recalled = balls = covered = 0.0
    for x, x_count in zip(x_ND, x_counts, strict=True):
        inside = [
            y_count
            for y, radius, y_count in zip(y_MD, y_radii, y_counts, strict=True)
            if ((x - y) ** 2).sum() <= radius
        ]
        precise += x_count * (sum(inside) > 0)
        balls += x_count * sum(inside)
    for y, radius, y_count in zip(y_MD, y_radii, y_counts, strict=True):
        there = [
            (x, x_radius)
            for x, x_radius, count in zip(x_ND, x_radii, x_counts, strict=True)
            if count
        ]
        recalled += y_count * any(((x - y) ** 2).sum() <= x_radius for x, x_radius in there)
        covered += y_count * any(((x - y) ** 2).sum() <= radius for x, _ in there)
    x_total, y_total = sum(x_counts), sum(y_counts)
    density = balls / x_total / y_total * len(y_MD) / k
    return precise / x_total, recalled / y_total, density, covered / y_total


def values(shares: Shares) -> tuple[float, float, float, float]:
    return shares.precision, shares.recall, shares.density, shares.coverage


@given(st.integers(0, 2**32 - 1), st.integers(4, 12), st.integers(8, 14), st.integers(1, 3))
def test_it_is_what_loops_give(seed: int, n: int, m: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    # Whole numbers, so that images lie on edges of balls and on one another, without rounding.
    x_ND, y_MD = rng.integers(0, 5, (n, 3)).astype(float), rng.integers(0, 5, (m, 3)).astype(float)
    groups = list(np.arange(m) // 2)
    found = overlap(x_ND, y_MD, k=k, y_groups_M=groups)
    assert values(found) == pytest.approx(slow_overlap(x_ND, y_MD, k, groups))


def test_replicates_are_what_loops_give_for_resampled_patients() -> None:
    rng = np.random.default_rng(1)
    x_ND, y_MD = rng.standard_normal((30, 2)), rng.standard_normal((24, 2))
    groups = list(np.arange(24) // 2)
    found = overlap_estimate(
        x_ND, y_MD, np.random.default_rng(2), k=3, y_groups_M=groups, replicates=20
    )
    again = np.random.default_rng(2)
    y_weights_BM = resampled(12, 20, again) @ members(groups, 24)
    x_weights_BN = resampled(30, 20, again)
    slow_B4 = np.array(
        [
            slow_overlap(x_ND, y_MD, 3, groups, list(x_N), list(y_M))
            for x_N, y_M in zip(x_weights_BN, y_weights_BM, strict=True)
        ]
    )
    estimates = (found.precision, found.recall, found.density, found.coverage)
    for estimate, slow_B in zip(estimates, slow_B4.T, strict=True):
        np.testing.assert_allclose(estimate.replicates_B, slow_B)
    assert [estimate.value for estimate in estimates] == pytest.approx(
        slow_overlap(x_ND, y_MD, 3, groups)
    )


def test_a_set_lies_wholly_over_itself() -> None:
    """Every ball holds its own image and its k neighbours."""
    y_MD = np.random.default_rng(3).standard_normal((40, 6))
    assert values(overlap(y_MD, y_MD, k=4)) == pytest.approx((1, 1, 5 / 4, 1))


def test_sets_far_apart_have_nothing_in_common() -> None:
    y_MD = np.random.default_rng(4).standard_normal((40, 6))
    assert values(overlap(y_MD + 100, y_MD)) == (0, 0, 0, 0)


def test_a_collapsed_generator_is_precise_and_recalls_nothing() -> None:
    rng = np.random.default_rng(5)
    y_MD = rng.standard_normal((300, 4))
    found = overlap(rng.standard_normal((300, 4)) * 0.05, y_MD)
    assert found.precision == 1
    assert found.density > 1.2
    assert found.recall < 0.1
    assert found.coverage < 0.2


def test_a_generator_that_adds_nonsense_recalls_and_is_not_precise() -> None:
    rng = np.random.default_rng(6)
    y_MD = rng.standard_normal((300, 4))
    x_ND = np.concatenate([rng.standard_normal((150, 4)), rng.standard_normal((150, 4)) + 50])
    found = overlap(x_ND, y_MD)
    assert found.precision == pytest.approx(0.5, abs=0.05)
    assert found.recall > 0.8


@pytest.mark.parametrize(("generated", "real"), [(60, 60), (150, 40)])
def test_sets_of_one_population_have_the_coverage_and_density_expected(
    generated: int, real: int
) -> None:
    rng = np.random.default_rng(7)
    found = [
        overlap(rng.standard_normal((generated, 3)), rng.standard_normal((real, 3)), k=3)
        for _ in range(300)
    ]
    coverage = np.array([shares.coverage for shares in found])
    density = np.array([shares.density for shares in found])
    error = 4 / np.sqrt(len(found))
    assert abs(coverage.mean() - expected_coverage(generated, real, 3)) < error * coverage.std()
    assert abs(density.mean() - 1) < error * density.std()


def test_expected_coverage_is_that_of_the_lemma() -> None:
    """By hand: of 3 real and 2 generated images, k = 1: 1 - 2/4."""
    assert expected_coverage(2, 3, 1) == pytest.approx(0.5)
    assert expected_coverage(1000, 1000, 5) == pytest.approx(1 - 0.5**5, abs=2e-3)


def test_fellow_eyes_do_not_shrink_the_balls() -> None:
    """With two nearly equal images a patient, only named patients leave density at 1."""
    rng = np.random.default_rng(8)
    named, unnamed = [], []
    for _ in range(100):
        y_MD = np.repeat(rng.standard_normal((40, 3)), 2, axis=0)
        y_MD += rng.standard_normal(y_MD.shape) * 1e-3
        x_ND = rng.standard_normal((60, 3))
        named.append(overlap(x_ND, y_MD, k=4, y_groups_M=list(np.arange(80) // 2)).density)
        unnamed.append(overlap(x_ND, y_MD, k=3).density)
    assert np.mean(named) == pytest.approx(1, abs=0.1)
    assert np.mean(unnamed) < 0.8


def test_intervals_hold_the_mean_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(9)

    def draw() -> tuple[Floats, Floats]:
        return rng.normal(0.5, 0.8, (80, 3)), rng.standard_normal((80, 3))

    truth = np.mean([values(overlap(*draw())) for _ in range(400)], axis=0)
    held = np.zeros(4)
    for _ in range(150):
        found = overlap_estimate(*draw(), rng, replicates=150)
        estimates = (found.precision, found.recall, found.density, found.coverage)
        for place, estimate in enumerate(estimates):
            low, high = estimate.interval
            held[place] += low <= truth[place] <= high
    assert (held / 150 >= 0.85).all()


def test_equal_numbers_are_taken_and_patients_kept_together() -> None:
    x_groups, y_groups = list(range(50)), list(np.arange(30) // 3)
    x_places, y_places = equal_places(x_groups, y_groups, np.random.default_rng(10))
    np.testing.assert_array_equal(y_places, np.arange(30))
    assert len(set(x_places)) == 30
    few, _ = equal_places(y_groups, [0] * 9, np.random.default_rng(11))
    assert len(few) == 9
    assert len({y_groups[place] for place in few}) == 3
    other, _ = equal_places(y_groups, [0] * 9, np.random.default_rng(12))
    assert list(few) != list(other)


def test_what_has_no_neighbours_is_refused() -> None:
    good = np.random.default_rng(13).standard_normal((12, 3))
    with pytest.raises(ValueError, match="neighbour number 12"):
        overlap(good, good, k=12)
    with pytest.raises(ValueError, match="one patient has 10"):
        overlap(good, good, k=3, y_groups_M=[0] * 10 + [1, 2])
    with pytest.raises(ValueError, match="neighbour number 0"):
        overlap(good, good, k=0)
    with pytest.raises(ValueError, match="not finite"):
        overlap(np.full_like(good, np.nan), good)
    with pytest.raises(ValueError, match="interval"):
        overlap_estimate(good[: LEAST_GROUPS - 1], good, np.random.default_rng(0))
