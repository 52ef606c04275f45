"""Whether pictures are fundus photographs: similarity to phantoms, and what is refused."""

import numpy as np
import pytest
import skimage.data
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fundusgen.errors import DataError
from fundusgen.evaluation.features import FeatureExtractor
from fundusgen.evaluation.imagenet import ImageNetFeatures
from fundusgen.evaluation.images import ImageSet
from fundusgen.evaluation.likeness import check_photographs, typical_similarity
from fundusgen.evaluation.raw_phantoms import raw_phantoms
from fundusgen.evaluation.remembered_features import RememberedFeatures
from fundusgen.phantom.lesions import PHANTOM_CONDITIONS
from fundusgen.phantom.population import phantom_images

SIZE_PX = 32


def unlabelled(images_NSSC: NDArray[np.uint8]) -> ImageSet:
    count = len(images_NSSC)
    return ImageSet(images_NSSC, ("unknown",) * count, tuple(map(str, range(count))))


def cats(count: int) -> NDArray[np.uint8]:
    """Parts of a photograph of a cat."""
    rng = np.random.default_rng(0)
    cat_HWC = skimage.data.chelsea()
    corners = rng.integers(0, 100, (count, 2))
    parts = [cat_HWC[top : top + 192 : 6, left : left + 192 : 6] for top, left in corners]
    return np.stack(parts)


@pytest.fixture(scope="module")
def imagenet() -> FeatureExtractor:
    """One that looks at the phantoms of every check once."""
    return RememberedFeatures(ImageNetFeatures())


@pytest.fixture(scope="module")
def eyes() -> NDArray[np.uint8]:
    """Phantoms of another seed, of all conditions and cameras."""
    return phantom_images(40, SIZE_PX, 7, PHANTOM_CONDITIONS)[0]


def test_pictures_of_eyes_pass(imagenet: FeatureExtractor, eyes: NDArray[np.uint8]) -> None:
    check_photographs(unlabelled(eyes), imagenet, "north")


def test_pictures_of_something_else_are_refused(imagenet: FeatureExtractor) -> None:
    with pytest.raises(DataError, match="Most pictures in north do not look like fundus"):
        check_photographs(unlabelled(cats(40)), imagenet, "north")


def test_most_pictures_decide(imagenet: FeatureExtractor, eyes: NDArray[np.uint8]) -> None:
    check_photographs(unlabelled(np.concatenate([eyes[:25], cats(15)])), imagenet, "north")
    with pytest.raises(DataError):
        check_photographs(unlabelled(np.concatenate([eyes[:15], cats(25)])), imagenet, "north")


def slow_similarity(x_ND: NDArray[np.float64], phantoms_MD: NDArray[np.float64]) -> float:
    typical = []
    for x_D in x_ND:
        cosines = [float(x_D @ y_D / np.sqrt((x_D @ x_D) * (y_D @ y_D))) for y_D in phantoms_MD]
        typical.append(sorted(cosines, reverse=True)[4])
    return float(np.median(typical))


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(5, 12), st.floats(0.1, 9))
def test_similarity_is_the_median_cosine_to_the_fifth_nearest(
    seed: int, images: int, phantoms: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    x_ND, phantoms_MD = rng.normal(1, 1, (images, 4)), rng.normal(1, 1, (phantoms, 4))
    found = typical_similarity(x_ND, phantoms_MD)
    assert found == pytest.approx(slow_similarity(x_ND, phantoms_MD))
    assert typical_similarity(scale * x_ND, phantoms_MD) == pytest.approx(found)


def test_one_near_phantom_is_not_enough() -> None:
    x_ND = np.tile([[1.0, 0.0]], (3, 1))
    far_MD = np.tile([[0.0, 1.0]], (20, 1))
    few_MD = np.concatenate([far_MD, x_ND, x_ND[:1]])
    assert typical_similarity(x_ND, few_MD) == pytest.approx(0)
    assert typical_similarity(x_ND, np.concatenate([few_MD, x_ND])) == pytest.approx(1)
    # Without features there is no angle, and no division by zero.
    assert typical_similarity(np.zeros((3, 2)), far_MD) == 0


def test_phantoms_are_the_same_with_any_number_of_workers() -> None:
    counts = {"normal": 50, "unknown": 40}
    steps: list[tuple[int, int]] = []
    one = raw_phantoms(counts, SIZE_PX, lambda done, total: steps.append((done, total)))
    two = raw_phantoms(counts, SIZE_PX, workers=2)
    np.testing.assert_array_equal(one.images_NSSC, two.images_NSSC)
    assert one.conditions_N == ("normal",) * 50 + ("unknown",) * 40
    assert (one.conditions_N, one.patients_N) == (two.conditions_N, two.patients_N)
    assert one.patient_count == 90
    assert steps == [(64, 90), (90, 90)]
    few = raw_phantoms({"normal": 3}, SIZE_PX)
    np.testing.assert_array_equal(few.images_NSSC, one.images_NSSC[:3])
    assert raw_phantoms({}, SIZE_PX).images_NSSC.shape == (0, SIZE_PX, SIZE_PX, 3)
