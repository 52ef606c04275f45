"""KID against torchmetrics, against loops over pairs, and against what is known of it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torchmetrics.image.kid import KernelInceptionDistance

from fundusgen.evaluation.fidelity import fidelity, kid, kid_estimate
from fundusgen.evaluation.resampling import LEAST_GROUPS

Floats = NDArray[np.float64]


def slow_kid(x_ND: Floats, y_MD: Floats, x_groups: list[int], y_groups: list[int]) -> float:
    """Pair by pair."""

    def mean(one: Floats, other: Floats, ones: list[int], others: list[int]) -> float:
        kernels = [
            (float(a @ b) / len(a) + 1) ** 3
            for a, group in zip(one, ones, strict=True)
            for b, group_ in zip(other, others, strict=True)
            if group != group_
        ]
        return sum(kernels) / len(kernels)

    apart = [-1 - group for group in y_groups]
    return (
        mean(x_ND, x_ND, x_groups, x_groups)
        + mean(y_MD, y_MD, y_groups, y_groups)
        - 2 * mean(x_ND, y_MD, x_groups, apart)
    )


def features(rows: st.SearchStrategy[int]) -> st.SearchStrategy[Floats]:
    values = st.floats(-3, 3, width=32)
    return rows.flatmap(lambda n: arrays(np.float64, (n, 4), elements=values))


@given(features(st.integers(3, 9)), features(st.integers(3, 9)), st.data())
def test_it_is_the_mean_over_pairs_of_different_patients(
    x_ND: Floats, y_MD: Floats, data: st.DataObject
) -> None:
    # The first two images are of two patients, so that there are pairs.
    x_groups, y_groups = (
        [0, 1, *data.draw(st.lists(st.integers(0, 3), min_size=n - 2, max_size=n - 2))]
        for n in (len(x_ND), len(y_MD))
    )
    found = kid(x_ND, y_MD, x_groups_N=x_groups, y_groups_M=y_groups)
    assert found == pytest.approx(slow_kid(x_ND, y_MD, x_groups, y_groups), rel=1e-9, abs=1e-7)


@given(features(st.integers(2, 9)), features(st.integers(2, 9)))
def test_it_is_symmetric_and_knows_no_order(x_ND: Floats, y_MD: Floats) -> None:
    found = kid(x_ND, y_MD)
    assert kid(y_MD, x_ND) == pytest.approx(found, rel=1e-9, abs=1e-8)
    assert kid(x_ND[::-1], y_MD[::-1]) == pytest.approx(found, rel=1e-9, abs=1e-8)


@given(features(st.integers(2, 9)), features(st.integers(2, 9)))
def test_without_patients_each_image_is_its_own(x_ND: Floats, y_MD: Floats) -> None:
    own = kid(x_ND, y_MD, x_groups_N=range(len(x_ND)), y_groups_M=range(len(y_MD)))
    assert kid(x_ND, y_MD) == own


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_it_is_that_of_torchmetrics(shift: float) -> None:
    rng = np.random.default_rng(1)
    x_ND = rng.standard_normal((60, 16), np.float32) + np.float32(shift)
    y_MD = rng.standard_normal((60, 16), np.float32)
    with pytest.warns(UserWarning, match="save all extracted features"):
        theirs = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=1, subset_size=60)
    theirs.update(torch.from_numpy(y_MD), real=True)
    theirs.update(torch.from_numpy(x_ND), real=False)
    mean, _ = theirs.compute()
    assert kid(x_ND, y_MD) == pytest.approx(float(mean), abs=1e-4)


def test_it_is_unbiased_for_sets_that_are_alike() -> None:
    """The mean of many estimates is zero, from small and unequal sets as well."""
    rng = np.random.default_rng(2)
    found = [kid(rng.standard_normal((12, 5)), rng.standard_normal((30, 5))) for _ in range(2000)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))
    assert min(found) < 0


def test_it_is_the_closed_form_of_two_known_populations() -> None:
    """In one dimension, E (xy + 1)^3 = 1 + 3 m_x m_y + 3 s_x s_y + t_x t_y of raw moments."""
    rng = np.random.default_rng(3)
    x_ND, y_MD = rng.normal(0.5, 1, (4000, 1)), rng.normal(0, 1, (4000, 1))
    # Raw moments of N(m, 1): m, m^2 + 1, m^3 + 3 m.
    moments = [(m, m * m + 1, m**3 + 3 * m) for m in (0.5, 0.0)]

    def expected(a: tuple[float, ...], b: tuple[float, ...]) -> float:
        return 1 + 3 * a[0] * b[0] + 3 * a[1] * b[1] + a[2] * b[2]

    one, other = moments
    exact = expected(one, one) + expected(other, other) - 2 * expected(one, other)
    assert kid(x_ND, y_MD) == pytest.approx(exact, rel=0.15)


def test_both_eyes_of_patients_do_not_bias_it() -> None:
    """With patients named, the mean over sets of pairs of like eyes stays zero; without, not."""
    rng = np.random.default_rng(4)
    named, unnamed = [], []
    for _ in range(1000):
        patients_PD = rng.standard_normal((8, 3))
        x_ND, groups = np.repeat(patients_PD, 2, axis=0), np.repeat(np.arange(8), 2)
        y_MD = rng.standard_normal((20, 3))
        named.append(kid(x_ND, y_MD, x_groups_N=list(groups)))
        unnamed.append(kid(x_ND, y_MD))
    error = np.std(named) / np.sqrt(len(named))
    assert abs(np.mean(named)) < 4 * error
    assert np.mean(unnamed) > 10 * error


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    truth = kid(rng.normal(0.6, 1, (4000, 3)), rng.normal(0, 1, (4000, 3)))
    held = 0
    for _ in range(200):
        x_ND, y_MD = rng.normal(0.6, 1, (60, 3)), rng.normal(0, 1, (60, 3))
        low, high = kid_estimate(x_ND, y_MD, rng, replicates=200).interval
        held += low <= truth <= high
    assert 0.88 <= held / 200 <= 0.995


def test_patients_with_more_images_make_intervals_no_narrower() -> None:
    rng = np.random.default_rng(6)
    patients_PD, y_MD = rng.standard_normal((30, 4)) + 0.5, rng.standard_normal((200, 4))
    groups = list(np.repeat(np.arange(30), 6))
    repeated_ND = np.repeat(patients_PD, 6, axis=0)
    once = kid_estimate(patients_PD, y_MD, np.random.default_rng(0))
    named = kid_estimate(repeated_ND, y_MD, np.random.default_rng(0), x_groups_N=groups)
    assert named.value == pytest.approx(once.value)
    np.testing.assert_allclose(named.replicates_B, once.replicates_B)


def test_replicates_are_centred_on_the_estimate() -> None:
    rng = np.random.default_rng(7)
    x_ND, y_MD = rng.standard_normal((80, 6)) + 0.2, rng.standard_normal((90, 6))
    estimate = kid_estimate(x_ND, y_MD, rng, replicates=4000)
    error = estimate.replicates_B.std() / np.sqrt(4000)
    assert abs(estimate.replicates_B.mean() - estimate.value) < 5 * error
    low, high = estimate.interval
    assert low < estimate.value < high


def test_the_same_seed_resamples_the_same_patients_of_the_reference() -> None:
    rng = np.random.default_rng(8)
    x_ND, y_MD = rng.standard_normal((40, 3)), rng.standard_normal((25, 3))
    one, again = (fidelity(x_ND, y_MD, 11, replicates=50) for _ in range(2))
    np.testing.assert_array_equal(one.kid.replicates_B, again.kid.replicates_B)
    np.testing.assert_array_equal(one.frechet.replicates_B, again.frechet.replicates_B)
    # Sets that hardly vary leave the reference's patients alone to move the distance.
    near, far = (fidelity(x_ND[:n] / 1000 + 3, y_MD, 11, replicates=50) for n in (40, 20))
    for one_B, other_B in (
        (near.kid.replicates_B, far.kid.replicates_B),
        (near.frechet.replicates_B, far.frechet.replicates_B),
    ):
        assert np.corrcoef(one_B, other_B)[0, 1] > 0.99


def test_what_cannot_be_compared_is_refused() -> None:
    good = np.random.default_rng(9).standard_normal((12, 3))
    with pytest.raises(ValueError, match="at least 2"):
        kid(good[:1], good)
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        kid(good[:, :2], good)
    with pytest.raises(ValueError, match="not finite"):
        kid(np.full_like(good, np.nan), good)
    with pytest.raises(ValueError, match="two patients"):
        kid(good, good, x_groups_N=[0] * 12)
    with pytest.raises(ValueError, match="one for each"):
        kid(good, good, x_groups_N=[0, 1])
    few = LEAST_GROUPS - 1
    with pytest.raises(ValueError, match="interval"):
        kid_estimate(good[:few], good, np.random.default_rng(0))
