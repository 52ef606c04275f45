"""The neighbourhood of a phantom: how near, how varied, and what never changes."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fundusgen.errors import DataError
from fundusgen.phantom.camera import CAMERA_STYLES, Camera
from fundusgen.phantom.camera_walks import CAMERA_BOUNDS, CENTRE_X_DEG, CENTRE_Y_DEG, COLOUR_BOUNDS
from fundusgen.phantom.eye_walks import ANATOMY_WALKS, DISC_WALKS, TRAIT_WALKS
from fundusgen.phantom.lesions import PHANTOM_CONDITIONS, meets_4_2_1
from fundusgen.phantom.looks import LOOKS
from fundusgen.phantom.patients import draw_phantom
from fundusgen.phantom.render import Phantom, render
from fundusgen.phantom.variation import Lineage, phantom_of, render_lineages, vary
from fundusgen.phantom.walks import Walk, reflected, walked

SIZE_PX = 32
# SHA-256 of the pixels, first 16 digits; they change when the simulator is changed on purpose.
GOLDEN = {
    ("dr3", "dusk", (5, 6, 7)): "5f018bc5dddd2b90",
    ("normal", "salmon", (1,)): "e969e8429d0f849a",
}

DIGESTS = """
import hashlib, json, sys
from fundusgen.phantom.variation import Lineage, render_lineages
digests = []
for condition, style, variations in json.loads(sys.argv[1]):
    pixels = render_lineages([Lineage(1, 2, condition, style, tuple(variations))], 0.3, 64)
    digests.append(hashlib.sha256(pixels.tobytes()).hexdigest()[:16])
print(json.dumps(digests))
"""

lineages = st.builds(
    Lineage,
    seed=st.integers(0, 1000),
    number=st.integers(0, 1000),
    condition=st.sampled_from(PHANTOM_CONDITIONS),
    camera_style=st.sampled_from(list(CAMERA_STYLES)),
    variations=st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
)


@pytest.mark.parametrize("condition", PHANTOM_CONDITIONS)
def test_strength_zero_is_the_phantom_itself_byte_for_byte(condition: str) -> None:
    phantom = draw_phantom(1, 0, condition, "honey")
    assert (render(vary(phantom, 3, 0.0), 48) == render(phantom, 48)).all()


@pytest.mark.parametrize("key", GOLDEN)
def test_a_lineage_gives_the_bytes_it_always_gave(key: tuple[str, str, tuple[int, ...]]) -> None:
    condition, style, variations = key
    pixels = render_lineages([Lineage(1, 2, condition, style, variations)], 0.3, 64)
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == GOLDEN[key]


def test_a_processor_without_wide_vectors_gives_the_same_variations() -> None:
    from numpy._core import _multiarray_umath as umath

    present = [name for name in umath.__cpu_dispatch__ if umath.__cpu_features__.get(name)]
    if not present:
        pytest.skip("numpy has nothing to switch off on this processor")
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", DIGESTS, json.dumps(list(GOLDEN))],
        env={**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(present)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(finished.stdout) == list(GOLDEN.values())


def test_a_lineage_is_its_first_phantom_and_each_variation_in_turn() -> None:
    first = Lineage(4, 5, "dr2", "rose")
    grandchild = first.child(8).child(9)
    assert grandchild == Lineage(4, 5, "dr2", "rose", (8, 9))
    by_hand = vary(vary(draw_phantom(4, 5, "dr2", "rose"), 8, 0.2), 9, 0.2)
    assert (render(phantom_of(grandchild, 0.2), 32) == render(by_hand, 32)).all()


def test_even_a_tiny_variation_has_new_noise_and_another_seed_is_another_variation() -> None:
    phantom = draw_phantom(1, 0, "normal", "amber")
    one, other = vary(phantom, 1, 0.01), vary(phantom, 2, 0.01)
    assert len({phantom.camera.noise_seed, one.camera.noise_seed, other.camera.noise_seed}) == 3
    assert one.camera.colour != other.camera.colour


def test_every_number_of_the_eye_and_of_the_camera_moves() -> None:
    before = draw_phantom(2, 1, "glaucoma", "dusk")
    after = vary(before, 4, 0.5)
    for one, other in (
        (before.anatomy.traits, after.anatomy.traits),
        (before.anatomy.disc, after.anatomy.disc),
        (before.anatomy, after.anatomy),
        (before.camera, after.camera),
    ):
        for entry in fields(one):
            value = getattr(one, entry.name)
            # A full circle stays one; stray light and reflex may be absent in both.
            if entry.name not in ("cut", "crescent", "reflex") and _is_number(value):
                assert getattr(other, entry.name) != value, entry.name


@given(lineage=lineages, strength=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_facts_stay_and_numbers_keep_within_their_ranges(lineage: Lineage, strength: float) -> None:
    first = phantom_of(
        Lineage(lineage.seed, lineage.number, lineage.condition, lineage.camera_style), 0
    )
    phantom = phantom_of(lineage, strength)
    anatomy, camera = phantom.anatomy, phantom.camera
    assert phantom.condition == lineage.condition
    assert (anatomy.eye, camera.style, camera.notch) == (
        first.anatomy.eye,
        first.camera.style,
        first.camera.notch,
    )
    assert 18 <= anatomy.traits.age_years <= 90
    if lineage.variations and strength > 0:
        _assert_within(anatomy.traits, TRAIT_WALKS)
        _assert_within(anatomy.disc, DISC_WALKS)
        _assert_within(anatomy, ANATOMY_WALKS)
        _assert_camera(camera)
    for level in anatomy.vessels:
        assert (level.radius_VK > 0).all()
        assert np.hypot(level.points_VK2[..., 0], level.points_VK2[..., 1]).min() > 0.99
    _assert_lesions(phantom)


@pytest.mark.parametrize("condition", PHANTOM_CONDITIONS)
def test_descendants_have_what_their_condition_always_has(condition: str) -> None:
    always = set.intersection(
        *(set(draw_phantom(6, k, condition, "amber").lesions.spots) for k in range(30))
    )
    for number in range(10):
        lineage = Lineage(6, number, condition, "amber", (1, 2, 3, number))
        lesions = phantom_of(lineage, 0.4).lesions
        assert always <= set(lesions.spots)
        if condition == "dr1":
            assert set(lesions.spots) == {"microaneurysm"}
        if condition == "dr3":
            assert meets_4_2_1(lesions)
        if condition == "glaucoma":
            assert (lesions.cup_ratio or 0) > 0.6
        if condition == "hypertension":
            assert lesions.artery_scale < 0.8


def test_children_are_nearer_than_strangers_and_the_distance_grows_with_the_strength() -> None:
    means = [_distance(strength) for strength in (0.05, 0.15, 0.4, 1.0)]
    assert means == sorted(means)
    strangers = _distance(None)
    assert means[0] < 0.25 * strangers
    assert means[1] < 0.6 * strangers
    assert 0.75 * strangers < means[-1] < 1.5 * strangers


def test_workers_change_nothing() -> None:
    family = [Lineage(1, k, "dr2", "salmon", (k,)) for k in range(66)]
    assert (render_lineages(family, 0.3, 16) == render_lineages(family, 0.3, 16, workers=2)).all()


def test_no_lineage_gives_no_picture() -> None:
    assert render_lineages([], 0.3, 16).shape == (0, 16, 16, 3)


@pytest.mark.parametrize(("seed", "strength"), [(-1, 0.5), (1, -0.1), (1, 1.1), (1, float("nan"))])
def test_a_variation_that_cannot_be_made_is_refused(seed: int, strength: float) -> None:
    with pytest.raises(DataError, match="Expected:"):
        vary(draw_phantom(1, 0, "normal", "amber"), seed, strength)


@given(value=st.floats(0, 1), step=st.floats(-20, 20))
def test_a_reflected_value_is_inside(value: float, step: float) -> None:
    assert 0 <= reflected(value + step, 0.0, 1.0) <= 1


def test_a_walk_from_the_middle_is_as_wide_as_two_draws_differ() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    steps = [walked(rng, 0.0, Walk(1.0, -100, 100), 0.5) for _ in range(4000)]
    assert np.mean(steps) == pytest.approx(0, abs=0.05)
    assert np.std(steps) == pytest.approx(0.5 * np.sqrt(2), rel=0.05)


def _distance(strength: float | None) -> float:
    """Mean pixel distance to a variation, or without strength to another phantom."""
    gaps = []
    for number in range(60):
        condition = PHANTOM_CONDITIONS[number % 10]
        style = list(CAMERA_STYLES)[number % 6]
        phantom = draw_phantom(3, number + 1000, condition, style)
        if strength is not None:
            phantom = vary(draw_phantom(3, number, condition, style), number, strength)
        gaps.append(np.abs(_picture(number, condition, style) - render(phantom, SIZE_PX)).mean())
    return float(np.mean(gaps))


@cache
def _picture(number: int, condition: str, style: str) -> NDArray[np.float64]:
    return render(draw_phantom(3, number, condition, style), SIZE_PX).astype(float)


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, tuple) and isinstance(value[0], float))


def _assert_within(thing: object, walks: Mapping[str, Walk]) -> None:
    for name, walk in walks.items():
        assert walk.low <= getattr(thing, name) <= walk.high, name


def _assert_camera(camera: Camera) -> None:
    for name, (low, high) in CAMERA_BOUNDS.items():
        if name != "cut" or camera.cut < 1:
            assert low <= getattr(camera, name) <= high, name
    assert all(COLOUR_BOUNDS[0] <= value <= COLOUR_BOUNDS[1] for value in camera.colour)
    for value, (low, high) in zip(camera.centre_deg, (CENTRE_X_DEG, CENTRE_Y_DEG), strict=True):
        assert low <= value <= high
    assert np.hypot(*camera.crescent[1:]) == pytest.approx(1, abs=1e-5)


def _assert_lesions(phantom: Phantom) -> None:
    lesions = phantom.lesions
    assert set(lesions.spots) <= set(LOOKS)
    for spots in lesions.spots.values():
        assert len(spots.strength_N) > 0
        assert (spots.radius_N2 > 0).all()
        assert ((spots.strength_N >= 0) & (spots.strength_N <= 1)).all()
    assert 0 <= lesions.haze < 1
    assert 0 <= lesions.yellowing <= 1
