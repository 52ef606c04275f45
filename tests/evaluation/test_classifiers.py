"""What every classifier keeps to, whatever it learns from, and what each does by itself."""

from collections.abc import Hashable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from fundusgen.errors import DataError
from fundusgen.evaluation.classifiers import Classifier, Examples, patients_by_class
from fundusgen.evaluation.colour import ColourFeatures
from fundusgen.evaluation.linear_probe import LinearProbe
from fundusgen.evaluation.small_network import SmallNetwork

Integers = NDArray[np.int64]
SIZE_PX = 32


class Given:
    """An extractor of a test: images stand for features that were given for them."""

    name, version, digest = "given", "1", ""

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions

    def __call__(self, images_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise NotImplementedError


@pytest.fixture(params=["linear", "network"])
def classifier(request: pytest.FixtureRequest) -> Classifier:
    quick = SmallNetwork(steps=50, batch=32, size_px=SIZE_PX)
    return LinearProbe(ColourFeatures()) if request.param == "linear" else quick


def eyes(labels_N: Integers, seed: int) -> NDArray[np.uint8]:
    """Noisy discs with as many pale patches as their label says, anywhere."""
    rng = np.random.default_rng(seed)
    y_SS, x_SS = np.mgrid[:SIZE_PX, :SIZE_PX]
    inside_SS = np.hypot(y_SS - 15.5, x_SS - 15.5) < 15
    images_NSSC = rng.integers(0, 60, (len(labels_N), SIZE_PX, SIZE_PX, 3))
    images_NSSC += np.array([120, 60, 20])
    for image_SSC, label in zip(images_NSSC, labels_N, strict=True):
        for _ in range(2 * label):
            top, left = rng.integers(8, 20, 2)
            image_SSC[top : top + 4, left : left + 4] = 230, 220, 150
    return (images_NSSC * inside_SS[..., None]).astype(np.uint8)


def examples(
    classifier: Classifier,
    labels_N: Integers,
    *,
    classes: int = 2,
    seed: int = 0,
    patients_N: list[Hashable] | None = None,
) -> Examples:
    count = len(labels_N)
    inputs_N = classifier.inputs(eyes(labels_N, seed))
    patients = list(range(count)) if patients_N is None else patients_N
    real_N = np.ones(count, np.bool_)
    return Examples(inputs_N, labels_N, patients, real_N, np.ones(count), classes)


def recalls(classifier: Classifier, learned_from: Examples, labels_N: Integers) -> list[float]:
    """Of each class, the share of new images that are found to be of it."""
    diagnose = classifier.learned(learned_from, 1)
    found_N = diagnose(classifier.inputs(eyes(labels_N, 99))).argmax(axis=1)
    return [float((found_N[labels_N == k] == k).mean()) for k in sorted(set(labels_N.tolist()))]


def test_it_learns_what_plainly_differs(classifier: Classifier) -> None:
    learned_from = examples(classifier, np.arange(160) % 2)
    assert min(recalls(classifier, learned_from, np.arange(80) % 2)) > 0.85


def test_the_few_count_as_much_as_the_many(classifier: Classifier) -> None:
    labels_N = (np.arange(160) % 20 == 0).astype(np.int64)
    assert min(recalls(classifier, examples(classifier, labels_N), np.arange(80) % 2)) > 0.7


def test_two_images_are_enough_to_learn_from(classifier: Classifier) -> None:
    diagnose = classifier.learned(examples(classifier, np.array([0, 1])), 0)
    probabilities_NK = diagnose(classifier.inputs(eyes(np.arange(6) % 2, 5)))
    np.testing.assert_allclose(probabilities_NK.sum(axis=1), 1, rtol=1e-5)


def test_a_class_without_examples_is_never_found(classifier: Classifier) -> None:
    labels_N = np.array([0, 2] * 12)
    diagnose = classifier.learned(examples(classifier, labels_N, classes=4), 0)
    probabilities_NK = diagnose(classifier.inputs(eyes(np.arange(8) % 4, 5)))
    assert probabilities_NK.shape == (8, 4)
    assert (probabilities_NK[:, [1, 3]] == 0).all()
    np.testing.assert_allclose(probabilities_NK.sum(axis=1), 1, rtol=1e-5)


def test_the_same_seed_gives_the_same_diagnoses(classifier: Classifier) -> None:
    learned_from = examples(classifier, np.arange(40) % 2)
    shown = classifier.inputs(eyes(np.arange(10) % 2, 5))
    one_NK, again_NK = (classifier.learned(learned_from, 3)(shown) for _ in range(2))
    np.testing.assert_array_equal(one_NK, again_NK)


def test_no_images_are_no_diagnoses(classifier: Classifier) -> None:
    diagnose = classifier.learned(examples(classifier, np.array([0, 1])), 0)
    none = classifier.inputs(np.empty((0, SIZE_PX, SIZE_PX, 3), np.uint8))
    assert diagnose(none).shape == (0, 2)


def test_images_of_more_weight_are_believed(classifier: Classifier) -> None:
    """Half of the examples are called what they are not, and weigh next to nothing."""
    labels_N = np.arange(160) % 2
    truthful = examples(classifier, labels_N)
    right_N = np.arange(160) < 80
    told_N = np.where(right_N, labels_N, 1 - labels_N)
    mixed = replace(truthful, labels_N=told_N, weights_N=np.where(right_N, 1.0, 0.01))
    assert min(recalls(classifier, mixed, np.arange(80) % 2)) > 0.75


def test_learning_leaves_the_global_generator_alone(classifier: Classifier) -> None:
    state = torch.random.get_rng_state()
    classifier.learned(examples(classifier, np.arange(12) % 2), 0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_images_of_one_class_are_refused(classifier: Classifier) -> None:
    with pytest.raises(DataError, match="one class"):
        examples(classifier, np.zeros(5, np.int64))


def test_parts_that_do_not_fit_are_refused(classifier: Classifier) -> None:
    good = examples(classifier, np.arange(6) % 2)
    with pytest.raises(ValueError, match="one of each"):
        replace(good, weights_N=np.ones(5))
    with pytest.raises(ValueError, match="labels are 0 to 1"):
        replace(good, labels_N=np.arange(6) % 3)
    with pytest.raises(ValueError, match="weights above zero"):
        replace(good, weights_N=np.zeros(6))


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0.1, 10)), min_size=2, max_size=12))
def test_balanced_weights_add_up_to_the_same_for_each_class(
    drawn: list[tuple[int, float]],
) -> None:
    labels_N = np.array([0, 2, *(label for label, _ in drawn)])
    weights_N = np.array([1.0, 1.0, *(weight for _, weight in drawn)])
    count = len(labels_N)
    real_N = np.ones(count, np.bool_)
    found = Examples(labels_N, labels_N, range(count), real_N, weights_N, 3).balanced_weights()
    totals = [found[labels_N == label].sum() for label in set(labels_N.tolist())]
    np.testing.assert_allclose(totals, count / len(totals))
    # Within a class they stay in proportion.
    first = labels_N == 0
    np.testing.assert_allclose(found[first] / found[first][0], weights_N[first])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=30))
def test_every_patient_goes_with_the_rarest_class_of_their_images(
    drawn: list[tuple[int, int]],
) -> None:
    labels_N, patients = np.array([label for label, _ in drawn]), [who for _, who in drawn]
    groups = patients_by_class(labels_N, patients)
    assert sorted(who for group in groups for who in group) == sorted(set(patients))
    counts = np.bincount(labels_N, minlength=4)
    for group in groups:
        rarest = [min(counts[label] for label, who in drawn if who == one) for one in group]
        assert len(set(rarest)) == 1


def features_as_examples(
    x_ND: NDArray[np.float64], labels_N: Integers, patients_N: list[Hashable]
) -> Examples:
    count = len(labels_N)
    inputs_ND = x_ND.astype(np.float32)
    return Examples(inputs_ND, labels_N, patients_N, np.ones(count, np.bool_), np.ones(count), 2)


def test_the_probe_is_the_logistic_regression_of_scikit_learn() -> None:
    """With two patients there is nothing to choose by, and the penalty is the usual one, of 2."""
    rng = np.random.default_rng(0)
    x_ND, labels_N = rng.normal(3, 5, (40, 6)), np.arange(40) % 2
    x_ND[:, 0] += 4 * labels_N
    given = features_as_examples(x_ND, labels_N, [n % 2 for n in range(40)])
    scaler = StandardScaler().fit(x_ND)
    model = LogisticRegression(C=1 / (2 * 40)).fit(scaler.transform(x_ND), labels_N)
    expected_NK = model.predict_proba(scaler.transform(x_ND))
    found_NK = LinearProbe(Given(6)).learned(given, 0)(given.inputs_N)
    np.testing.assert_allclose(found_NK, expected_NK, atol=1e-3)


def test_features_that_never_vary_do_no_harm() -> None:
    x_ND = np.random.default_rng(0).normal(size=(40, 3))
    x_ND[:, 1] = 1e6
    given = features_as_examples(x_ND, np.arange(40) % 2, list(range(40)))
    assert np.isfinite(LinearProbe(Given(3)).learned(given, 0)(given.inputs_N)).all()


def test_the_penalty_is_chosen_by_patients_left_out() -> None:
    """Ten like photographs of each patient tell who it is, and nothing of any other patient.

    By photographs left out, the weakest penalty would be best, by patients, the strongest.
    """
    rng = np.random.default_rng(1)
    x_ND = np.repeat(rng.normal(size=(24, 30)), 10, axis=0) + 0.01 * rng.normal(size=(240, 30))
    labels_N = np.repeat(rng.permutation(24) % 2, 10)
    of_patients = features_as_examples(x_ND, labels_N, np.repeat(np.arange(24), 10).tolist())
    of_photographs = replace(of_patients, patients_N=list(range(240)))
    probe = LinearProbe(Given(30))
    unsure_NK, sure_NK = (
        probe.learned(one, 0)(of_patients.inputs_N) for one in (of_patients, of_photographs)
    )
    assert unsure_NK.max(axis=1).mean() < 0.75
    assert sure_NK.max(axis=1).mean() > 0.85


def test_the_penalty_is_chosen_by_photographs_where_there_are_some() -> None:
    """What generated images teach well, and is false of photographs, is held down."""
    rng = np.random.default_rng(2)
    labels_N = np.arange(400) % 2
    x_ND = rng.normal(size=(400, 5))
    real_N = np.arange(400) < 200
    x_ND[:, 0] += 3 * np.where(real_N, 0, labels_N)
    alone = features_as_examples(x_ND, labels_N, list(range(400)))
    marked = replace(alone, real_N=real_N)
    probe = LinearProbe(Given(5))
    sure_NK, unsure_NK = (probe.learned(one, 0)(alone.inputs_N) for one in (alone, marked))
    assert unsure_NK.max(axis=1).mean() < sure_NK.max(axis=1).mean() - 0.02


def test_the_network_looks_at_images_at_its_own_size() -> None:
    network = SmallNetwork(size_px=16)
    images_NSSC = eyes(np.arange(20) % 2, 0)
    small_NSSC = network.inputs(images_NSSC)
    assert small_NSSC.shape == (20, 16, 16, 3)
    expected = images_NSSC.reshape(20, 16, 2, 16, 2, 3).mean(axis=(2, 4))
    assert np.abs(small_NSSC - expected).mean() < 6
    assert SmallNetwork(size_px=SIZE_PX).inputs(images_NSSC) is images_NSSC
    with pytest.raises(ValueError, match="uint8"):
        network.inputs(images_NSSC.astype(np.float32))


def test_the_network_can_tell_left_from_right_and_not_above_from_below() -> None:
    """Flips keep the disc of a right eye on its side."""
    rng = np.random.default_rng(0)
    quick = SmallNetwork(steps=50, batch=32, size_px=SIZE_PX)
    labels_N = np.arange(64) % 2
    dark_NSSC = rng.integers(0, 60, (64, SIZE_PX, SIZE_PX, 3)).astype(np.uint8)
    beside_NSSC, above_NSSC = dark_NSSC.copy(), dark_NSSC.copy()
    for place, label in enumerate(labels_N):
        edge = slice(4, 10) if label else slice(22, 28)
        beside_NSSC[place, 12:20, edge] = 220
        above_NSSC[place, edge, 12:20] = 220
    patients = list(range(64))
    right = []
    for images_NSSC in (beside_NSSC, above_NSSC):
        given = Examples(images_NSSC, labels_N, patients, labels_N >= 0, np.ones(64), 2)
        right.append((quick.learned(given, 0)(images_NSSC).argmax(axis=1) == labels_N).mean())
    assert right[0] > 0.9
    assert right[1] < 0.75


def test_other_seeds_train_other_networks() -> None:
    quick = SmallNetwork(steps=4, batch=8, size_px=SIZE_PX)
    learned_from = examples(quick, np.arange(12) % 2)
    one_NK, other_NK = (quick.learned(learned_from, seed)(learned_from.inputs_N) for seed in (0, 1))
    assert np.abs(one_NK - other_NK).max() > 1e-4
