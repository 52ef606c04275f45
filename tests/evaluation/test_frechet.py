"""The Frechet distance against torchmetrics, SciPy's root of a matrix, and closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from torchmetrics.image.fid import FrechetInceptionDistance

from fundusgen.evaluation.fidelity import PrincipalAxes, frechet_distance, frechet_estimate
from fundusgen.evaluation.frechet import MOST_AXES

Floats = NDArray[np.float64]


class AsFeatures(torch.nn.Identity):
    num_features = 12


def features(rows: st.SearchStrategy[int]) -> st.SearchStrategy[Floats]:
    values = st.floats(-3, 3, width=32)
    return rows.flatmap(lambda n: arrays(np.float64, (n, 4), elements=values))


def standardised(rows: int, dimensions: int, seed: int) -> Floats:
    """Features whose mean is exactly 0 and whose covariance is exactly the identity."""
    x_ND = np.random.default_rng(seed).standard_normal((rows, dimensions))
    x_ND -= x_ND.mean(axis=0)
    covariance_DD = np.cov(x_ND, rowvar=False)
    whitened_ND: Floats = x_ND @ np.linalg.inv(np.linalg.cholesky(covariance_DD)).T
    return whitened_ND


def test_it_is_the_closed_form_of_gaussians() -> None:
    """Diagonal covariances: |m_x - m_y|^2 + sum of (s_x - s_y)^2; Dowson and Landau 1982."""
    x_ND, y_MD = standardised(400, 5, 1), standardised(300, 5, 2)
    widths_D, mean_D = np.array([0.5, 1, 2, 3, 4.0]), np.array([1, -2, 0, 0.5, 0])
    expected = mean_D @ mean_D + ((widths_D - 1) ** 2).sum()
    assert frechet_distance(x_ND * widths_D + mean_D, y_MD) == pytest.approx(expected, rel=1e-9)


def test_it_is_the_closed_form_of_one_covariance_turned() -> None:
    x_ND = standardised(500, 2, 3) @ np.diag([3.0, 1.0])
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    # Covariances diag(9, 1) and diag(1, 9): the root of their product is 3 I.
    assert frechet_distance(x_ND, x_ND @ turn.T) == pytest.approx(20 - 2 * 6, rel=1e-9)


def test_it_is_that_of_torchmetrics() -> None:
    rng = np.random.default_rng(4)
    mixing_DD = rng.standard_normal((12, 12))
    x_ND = (rng.standard_normal((90, 12)) @ mixing_DD + 0.3).astype(np.float32)
    y_MD = rng.standard_normal((70, 12)).astype(np.float32)
    theirs = FrechetInceptionDistance(feature=AsFeatures())
    theirs.update(torch.from_numpy(y_MD), real=True)
    theirs.update(torch.from_numpy(x_ND), real=False)
    assert frechet_distance(x_ND, y_MD) == pytest.approx(float(theirs.compute()), rel=1e-4)


def test_it_is_that_of_a_general_matrix_root() -> None:
    rng = np.random.default_rng(5)
    x_ND, y_MD = rng.standard_normal((50, 6)) * 2, rng.standard_normal((40, 6)) + 1
    x_DD, y_DD = np.cov(x_ND, rowvar=False), np.cov(y_MD, rowvar=False)
    shift_D = x_ND.mean(axis=0) - y_MD.mean(axis=0)
    root_DD = sqrtm(x_DD @ y_DD).real
    expected = shift_D @ shift_D + np.trace(x_DD + y_DD - 2 * root_DD)
    assert frechet_distance(x_ND, y_MD) == pytest.approx(expected, rel=1e-9)


@given(features(st.integers(2, 9)), features(st.integers(2, 9)))
def test_it_is_symmetric_and_not_negative(x_ND: Floats, y_MD: Floats) -> None:
    found = frechet_distance(x_ND, y_MD)
    assert found >= 0
    assert frechet_distance(y_MD, x_ND) == pytest.approx(found, rel=1e-5, abs=1e-5)


@given(features(st.integers(2, 9)), arrays(np.float64, 4, elements=st.floats(-3, 3, width=32)))
def test_moving_a_set_moves_it_as_far_as_it_was_moved(x_ND: Floats, shift_D: Floats) -> None:
    # Fewer images than features: covariances are singular, and nothing breaks.
    found = frechet_distance(x_ND + shift_D, x_ND)
    assert found == pytest.approx(float(shift_D @ shift_D), rel=1e-6, abs=1e-5)


def test_many_features_are_brought_to_the_axes_of_the_reference() -> None:
    rng = np.random.default_rng(6)
    scale_D = np.geomspace(10, 0.01, 200)
    x_ND, y_MD = (rng.standard_normal((150, 200)) * scale_D for _ in range(2))
    axes = PrincipalAxes.of(y_MD)
    assert axes.axes_DK.shape == (200, MOST_AXES)
    np.testing.assert_allclose(axes.axes_DK.T @ axes.axes_DK, np.eye(MOST_AXES), atol=1e-9)
    widths_K = axes.of_features(y_MD).std(axis=0)
    assert (np.diff(widths_K) <= 1e-9).all()
    own = frechet_distance(x_ND, y_MD)
    assert own == frechet_distance(x_ND, y_MD, axes=axes)
    assert own == pytest.approx(frechet_distance(axes.of_features(x_ND), axes.of_features(y_MD)))


def test_there_are_fewer_axes_than_images() -> None:
    few_ND = np.random.default_rng(7).standard_normal((5, 100))
    assert PrincipalAxes.of(few_ND).axes_DK.shape == (100, 4)
    with pytest.raises(ValueError, match="at least 2"):
        PrincipalAxes.of(few_ND[:1])


def test_intervals_are_around_the_distance_and_resample_patients() -> None:
    rng = np.random.default_rng(8)
    x_ND, y_PD = rng.standard_normal((60, 3)) + 1, rng.standard_normal((40, 3))
    y_MD, groups = np.repeat(y_PD, 3, axis=0), list(np.repeat(np.arange(40), 3))
    by_patient = frechet_estimate(x_ND, y_MD, np.random.default_rng(0), y_groups_M=groups)
    by_image = frechet_estimate(x_ND, y_MD, np.random.default_rng(0))
    low, high = by_patient.interval
    assert low < by_patient.value < high
    assert by_patient.value == by_image.value == frechet_distance(x_ND, y_MD)
    assert by_patient.replicates_B.std() > by_image.replicates_B.std()
