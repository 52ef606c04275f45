"""All attacks together: copies are told from differences of the two sets of patients."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fundusgen.errors import ModelError
from fundusgen.evaluation.images import ImageSet
from fundusgen.evaluation.leakage import Leakage, leakage

SIDE = 4
Images = NDArray[np.uint8]


class Pixels:
    """Features that are the pixels, or nothing at all."""

    name, version, digest = "pixels", "1", "0" * 64

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, images_NSSC: Images) -> NDArray[np.float32]:
        flat = images_NSSC.reshape(len(images_NSSC), -1)
        return (self.scale * flat).astype(np.float32)


def images(count: int, seed: int, *, brighter: int = 0) -> Images:
    drawn = np.random.default_rng(seed).integers(60, 180, (count, SIDE, SIDE, 3)) + brighter
    return drawn.astype(np.uint8)


def image_set(images_NSSC: Images, kind: str, *, of_each: int = 1) -> ImageSet:
    patients = tuple(f"{kind}{place // of_each}" for place in range(len(images_NSSC)))
    return ImageSet(images_NSSC, ("normal",) * len(images_NSSC), patients)


def found(generated: Images, *, brighter: int = 0, extractor: Pixels | None = None) -> Leakage:
    """Of 60 patients with two photographs each, and 60 others of the same kind."""
    told, closest = leakage(
        extractor or Pixels(),
        image_set(generated, "g"),
        image_set(images(200, 2, brighter=40), "f"),
        image_set(images(120, 0, brighter=brighter), "t", of_each=2),
        image_set(images(120, 1), "h", of_each=2),
        seed=3,
        replicates=100,
    )
    assert len(closest) == 12
    return told


def test_an_honest_generator_is_not_accused() -> None:
    told = found(images(300, 4))
    assert told.copying.closest == told.copying_control.closest == ()
    assert min(told.copying.share.p_value, told.copying.closest_share.p_value) > 0.01
    for one in told.attacks:
        assert one.attack.name == one.control.name
        assert (one.attack.members, one.attack.non_members) == (60, 60)
        for judged in (one.attack, one.control):
            assert judged.auc.interval[0] < 0.5 < judged.auc.interval[1]


def test_copies_are_found_and_the_control_stays_silent() -> None:
    told = found(np.concatenate([images(120, 0), images(180, 4)]))
    assert told.copying.closest_share.p_value < 0.001
    assert told.copying_control.closest_share.p_value > 0.01
    by_name = {one.attack.name: one for one in told.attacks}
    for name in ("distance", "calibrated-distance", "density-ratio"):
        assert by_name[name].attack.auc.value > 0.95
        assert by_name[name].control.auc.interval[0] < 0.5


@pytest.mark.parametrize(("brighter", "side"), [(30, 1), (-30, -1)])
def test_sets_that_differ_show_in_the_control_on_either_side(brighter: int, side: int) -> None:
    """Phantoms are bright: nearer to training patients who are, farther from those who are not."""
    told = found(images(300, 4), brighter=brighter)
    control = {one.control.name: one.control for one in told.attacks}["distance"]
    assert side * (control.auc.value - 0.5) > 0.2
    assert control.auc.interval[0] > 0.6 or control.auc.interval[1] < 0.4


def test_the_same_seed_finds_the_same() -> None:
    one, other = (found(images(100, 4)) for _ in range(2))
    for first, second in zip(one.attacks, other.attacks, strict=True):
        assert first.attack.auc.value == second.attack.auc.value
        assert first.control.auc.interval == second.control.auc.interval


def test_features_that_tell_nobody_apart_are_no_evidence() -> None:
    with pytest.raises(ModelError, match="`pixels` are the same for all photographs"):
        found(images(100, 4), extractor=Pixels(scale=0.0))
