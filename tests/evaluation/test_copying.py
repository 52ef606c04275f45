"""Data-copying: the test against a slow version and the authors', and what it is to find."""

from collections.abc import Hashable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import mannwhitneyu

from fundusgen.evaluation.copying import (
    Copying,
    closest_pairs,
    copying,
    copying_test,
    mann_whitney_z,
    nearer_share,
)
from fundusgen.evaluation.patient_features import PatientFeatures, nearest

Floats = NDArray[np.float64]

distances = st.integers(1, 12).flatmap(
    lambda n: arrays(np.float64, n, elements=st.integers(0, 5).map(float))
)


def photographs(features_ND: Floats, patients_N: Sequence[Hashable] = ()) -> PatientFeatures:
    return PatientFeatures(features_ND, patients_N or list(range(len(features_ND))))


def people(count: int, rng: np.random.Generator, images: int = 1) -> PatientFeatures:
    """Patients with so many similar photographs each."""
    faces_PD = np.repeat(rng.standard_normal((count, 4)), images, axis=0)
    noise_ND = 0.05 * rng.standard_normal(faces_PD.shape)
    return PatientFeatures(faces_PD + noise_ND, list(np.repeat(np.arange(count), images)))


def measured(generated_ND: Floats, seed: int = 0, *, train: int = 60, held: int = 60) -> Copying:
    rng = np.random.default_rng(seed)
    return copying(generated_ND, people(train, rng), people(held, rng), rng)


@given(distances, distances)
def test_u_is_that_of_counting_pairs(generated_N: Floats, real_K: Floats) -> None:
    n, k = len(generated_N), len(real_K)
    above = sum(float(g > r) + 0.5 * (g == r) for g in generated_N for r in real_K)
    spread = np.sqrt(n * k * (n + k + 1) / 12)
    assert mann_whitney_z(generated_N, real_K) == pytest.approx((above - n * k / 2) / spread)


def test_the_score_has_the_p_value_of_scipy() -> None:
    rng = np.random.default_rng(1)
    generated_N, real_K = rng.random(90) * 0.9, rng.random(80)
    theirs = mannwhitneyu(
        generated_N, real_K, alternative="less", method="asymptotic", use_continuity=False
    )
    z = mann_whitney_z(generated_N, real_K)
    assert z == pytest.approx((theirs.statistic - 3600) / np.sqrt(7200 * 171 / 12))


def test_it_is_the_statistic_of_the_paper_cell_by_cell() -> None:
    """Two far clusters: k-means finds them, and the sum over cells can be written out."""
    rng = np.random.default_rng(2)
    places = {"left": np.array([-50.0, 0]), "right": np.array([50.0, 0])}
    sizes = {"left": (80, 40, 30), "right": (120, 30, 70)}
    parts = {
        side: [place + rng.standard_normal((count, 2)) for count in sizes[side]]
        for side, place in places.items()
    }
    generated, train, real = (
        np.concatenate([parts["left"][part], parts["right"][part]]) for part in range(3)
    )
    found = copying_test(generated, photographs(train), photographs(real), rng, cells=2)
    scores = {}
    for side, (generated_S, train_S, real_S) in parts.items():
        to_train, from_real = (cdist(x, train_S).min(axis=1) for x in (generated_S, real_S))
        u = mannwhitneyu(to_train, from_real, alternative="less").statistic
        n, k = len(to_train), len(from_real)
        scores[side] = (u - n * k / 2) / np.sqrt(n * k * (n + k + 1) / 12)
    assert found.cells == 2
    assert found.skipped == 0
    assert found.covered == 1
    expected = 0.3 * scores["left"] + 0.7 * scores["right"]
    assert found.c_t == pytest.approx(expected)
    assert found.z == pytest.approx(expected / np.sqrt(0.3**2 + 0.7**2))


def test_cells_with_too_few_points_are_left_out() -> None:
    rng = np.random.default_rng(3)
    left, right = np.array([-50.0, 0]), np.array([50.0, 0])

    def both(on_left: int, on_right: int) -> Floats:
        return np.concatenate(
            [left + rng.standard_normal((on_left, 2)), right + rng.standard_normal((on_right, 2))]
        )

    generated, train, real = both(100, 5), both(40, 40), both(30, 10)
    found = copying_test(generated, photographs(train), photographs(real), rng, cells=2)
    assert (found.cells, found.skipped, found.covered) == (1, 1, 0.75)
    # No cell of many has enough: all images make one.
    scattered = photographs(both(30, 30))
    found = copying_test(both(30, 30), photographs(train), scattered, rng, cells=40)
    assert (found.cells, found.skipped, found.covered) == (1, 0, 1)


def test_a_held_out_patient_counts_once_however_many_photographs_there_are() -> None:
    rng = np.random.default_rng(4)
    train, held_out = people(40, rng), people(40, rng)
    often = PatientFeatures(
        np.repeat(held_out.features_ND, 25, axis=0), list(np.repeat(range(40), 25))
    )
    generated = 0.5 * rng.standard_normal((200, 4))
    once = copying_test(generated, train, held_out, np.random.default_rng(0), cells=1)
    many = copying_test(generated, train, often, np.random.default_rng(0), cells=1)
    assert many == once
    by_image = copying_test(
        generated,
        train,
        PatientFeatures(often.features_ND, range(1000)),
        np.random.default_rng(0),
        cells=1,
    )
    assert abs(by_image.z) > 1.5 * abs(once.z)


def test_one_photograph_of_each_patient_is_drawn_and_any_may_be() -> None:
    rng = np.random.default_rng(5)
    album = photographs(np.arange(6.0)[:, None], ["b", "a", "b", "a", "c", "b"])
    drawn = np.array([album.one_image_each(rng)[:, 0] for _ in range(200)])
    assert set(drawn[:, 0]) == {0, 2, 5}
    assert set(drawn[:, 1]) == {1, 3}
    assert set(drawn[:, 2]) == {4}


def test_copies_are_caught_and_honest_images_are_not() -> None:
    rng = np.random.default_rng(0)
    train = people(60, rng)
    copies = train.features_ND[rng.integers(0, 60, 300)] + 0.01 * rng.standard_normal((300, 4))
    caught = measured(copies)
    assert caught.test.p_value < 1e-6
    assert abs(caught.mirrored.z) < 3
    assert caught.share.share.value == 1
    assert caught.share.p_value < 0.001
    honest = measured(rng.standard_normal((300, 4)))
    assert honest.test.p_value > 0.05
    assert honest.share.p_value > 0.05
    low, high = honest.share.share.interval
    assert low < 0.5 < high


def test_more_copies_are_caught_more_clearly() -> None:
    rng = np.random.default_rng(0)
    train, fresh = people(60, rng), np.random.default_rng(6).standard_normal((400, 4))
    chosen = rng.integers(0, 60, 400)
    found = []
    for copied in (0, 100, 200, 400):
        generated = fresh.copy()
        generated[:copied] = train.features_ND[chosen[:copied]]
        found.append(measured(generated))
    zs, shares = [c.test.z for c in found], [c.share.share.value for c in found]
    assert zs == sorted(zs, reverse=True)
    assert shares == sorted(shares)
    assert shares[-1] > shares[0] + 0.3


def test_a_bland_generator_is_accused_by_the_statistic_but_not_by_the_share() -> None:
    """The middle of a distribution is near to everybody; see the module's note."""
    found = measured(0.3 * np.random.default_rng(7).standard_normal((300, 4)))
    assert found.test.p_value < 0.001
    assert found.mirrored.p_value < 0.001
    assert found.share.p_value > 0.05


def test_a_few_copies_among_many_are_found_among_the_closest() -> None:
    rng = np.random.default_rng(0)
    train = people(60, rng)
    generated = np.random.default_rng(14).standard_normal((300, 4))
    generated[:20] = train.features_ND[:20]
    found = measured(generated)
    assert found.share.p_value > 0.01
    assert found.test.p_value > 0.01
    assert found.closest_share.p_value < 0.001
    assert found.closest_share.share.interval[0] > 0.6


@pytest.mark.parametrize("closest", [0.2, 1])
def test_the_p_value_of_the_share_is_right_for_any_generator(closest: float) -> None:
    rng = np.random.default_rng(8)
    generated = 0.3 * rng.standard_normal((60, 3))
    p_values = []
    for _ in range(150):
        train, held_out = (photographs(rng.standard_normal((n, 3))) for n in (20, 12))
        found = nearer_share(generated, train, held_out, rng, closest=closest, replicates=2)
        p_values.append(found.p_value)
    # 5 % of 150, and three standard deviations of that.
    assert np.mean(np.array(p_values) <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)
    # Few images have few counts between them, which makes p-values larger than need be.
    assert 0.4 < np.mean(p_values) < 0.7


def test_where_everybody_is_copied_alike_nothing_is_found() -> None:
    rng = np.random.default_rng(13)
    train, held_out = people(20, rng), people(20, rng)
    generated = np.concatenate([train.features_ND, held_out.features_ND])
    found = nearer_share(generated, train, held_out, rng)
    assert (found.share.value, found.p_value) == (0.5, 1)


def test_half_is_expected_of_sides_of_unequal_size() -> None:
    shares = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        train, held_out = people(90, rng, images=2), people(30, rng)
        found = nearer_share(rng.standard_normal((200, 4)), train, held_out, rng, replicates=2)
        assert found.patients == 30
        shares.append(found.share.value)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.04)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_the_share_is_that_of_a_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Whole numbers, so that there are ties.
    train, held_out = (
        PatientFeatures(
            rng.integers(0, 4, (25, 2)).astype(float), [*range(10), *rng.integers(0, 10, 15)]
        )
        for _ in range(2)
    )
    generated = rng.integers(0, 4, (15, 2)).astype(float)
    expected = 0.0
    for image in generated:
        near: dict[tuple[int, Hashable], float] = {}
        for kind, side in enumerate((train, held_out)):
            for photograph, patient in zip(side.features_ND, side.patients_N, strict=True):
                distance = float(np.linalg.norm(image - photograph))
                near[kind, patient] = min(distance, near.get((kind, patient), np.inf))
        least = min(near.values())
        kinds = [kind for (kind, _), distance in near.items() if distance == least]
        expected += kinds.count(0) / len(kinds)
    found = nearer_share(generated, train, held_out, rng, replicates=20)
    assert found.share.value == pytest.approx(expected / 15)


def test_the_interval_of_the_share_is_of_patients() -> None:
    """Ten patients near to everything decide, however many images are drawn."""
    rng = np.random.default_rng(9)
    widths = []
    for images in (100, 10_000):
        found = nearer_share(
            0.01 * rng.standard_normal((images, 4)), people(10, rng), people(10, rng), rng
        )
        low, high = found.share.interval
        widths.append(high - low)
    assert widths[1] > 0.3


def test_the_closest_pairs_are_found_and_sorted() -> None:
    train = photographs(np.array([[0.0, 0], [10, 0]]))
    held_out = photographs(np.array([[5.0, 0], [20, 0]]))
    generated = np.array([[9.0, 0], [5, 0], [0, 0], [19, 0]])
    pairs = closest_pairs(generated, train, held_out, 3)
    assert [(pair.generated, pair.train, pair.held_out) for pair in pairs] == [
        (2, 0, 0),
        (0, 1, 0),
        (3, 1, 1),
    ]
    assert [pair.ratio for pair in pairs] == [0, 0.25, 9]
    assert (pairs[1].train_distance, pairs[1].held_out_distance) == (1, 4)
    everything = closest_pairs(generated, train, held_out, 10)
    assert len(everything) == 4
    assert everything[-1].ratio == np.inf


def test_a_photograph_on_both_sides_is_no_copy() -> None:
    same = photographs(np.zeros((1, 2)))
    (pair,) = closest_pairs(np.zeros((1, 2)), same, same, 1)
    assert pair.ratio == 1


def test_distances_are_those_of_scipy_even_of_near_copies() -> None:
    rng = np.random.default_rng(10)
    y_MD = 1000 + rng.standard_normal((50, 30))
    x_ND = y_MD[:20] + 1e-5 * rng.standard_normal((20, 30))
    found_N, places_N = nearest(x_ND, y_MD)
    np.testing.assert_allclose(found_N, cdist(x_ND, y_MD).min(axis=1), rtol=1e-3)
    np.testing.assert_array_equal(places_N, np.arange(20))


def test_patients_are_split_whole() -> None:
    rng = np.random.default_rng(11)
    album = people(31, rng, images=3)
    first, second = album.split(rng)
    assert not set(first.patients_N) & set(second.patients_N)
    assert (first.patient_count, second.patient_count) == (15, 16)
    assert len(first) + len(second) == len(album)
    with pytest.raises(ValueError, match="two halves"):
        people(1, rng).split(rng)


def test_what_cannot_be_tested_is_refused() -> None:
    rng = np.random.default_rng(12)
    some = people(40, rng)
    with pytest.raises(ValueError, match="at least 20 and 8"):
        copying_test(some.features_ND[:19], some, some, rng)
    with pytest.raises(ValueError, match="at least 20 and 8"):
        copying_test(some.features_ND, some, people(7, rng, images=4), rng)
    with pytest.raises(ValueError, match="4 features"):
        copying_test(np.ones((30, 3)), some, some, rng)
    with pytest.raises(ValueError, match="at least 10"):
        nearer_share(some.features_ND, some, people(9, rng), rng)
    with pytest.raises(ValueError, match="at most 1, not 0"):
        nearer_share(some.features_ND, some, some, rng, closest=0)
    with pytest.raises(ValueError, match="not finite"):
        photographs(np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match="1 patients for 2 images"):
        PatientFeatures(np.ones((2, 2)), ["one"])
    with pytest.raises(ValueError, match="at least one image"):
        photographs(np.empty((0, 3)))
