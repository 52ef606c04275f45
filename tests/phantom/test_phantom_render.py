"""From parameters to pixels: determinism, geometry, and what is visible."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fundusgen.errors import DataError
from fundusgen.phantom import SIMULATOR_VERSION
from fundusgen.phantom.camera import CAMERA_STYLES
from fundusgen.phantom.ink import pour_vessels
from fundusgen.phantom.lesions import PHANTOM_CONDITIONS
from fundusgen.phantom.patients import draw_phantom
from fundusgen.phantom.render import Phantom, _view, lesion_masks, render
from fundusgen.phantom.retina import draw_retina
from fundusgen.phantom.vessels import VesselLevel
from fundusgen.phantom.view import View

# SHA-256 of the pixels, first 16 digits, by seed, condition, camera and size. They change when
# the simulator is changed on purpose, and then all together; nothing else may change them.
GOLDEN: dict[str, str] = {
    "1 normal amber 64": "566eb7ac69e278d1",
    "2 dr1 honey 64": "4c3bc0dd70e07148",
    "3 dr2 dusk 64": "061ec9fd99e59fab",
    "4 dr3 salmon 128": "d8d13f90171d854e",
    "5 dr4 ember 64": "0c2f9e9e24ced878",
    "6 amd rose 64": "c99f53cb59811b08",
    "7 glaucoma amber 97": "c93956e35aa3e003",
    "8 cataract dusk 64": "a58c50f9d057f5d8",
    "9 myopia honey 64": "f05bb01d865bae07",
    "10 hypertension salmon 64": "fcc8ff0a63dd0969",
    "11 dr4 rose 256": "04c5181ee1031729",
}

DIGESTS = """
import hashlib, json, os, sys
from numpy._core._multiarray_umath import __cpu_features__ as features
assert not any(features[name] for name in os.environ['NPY_DISABLE_CPU_FEATURES'].split())
from fundusgen.phantom.patients import draw_phantom
from fundusgen.phantom.render import render
digests = {}
for key in json.loads(sys.argv[1]):
    seed, condition, style, size = key.split()
    pixels = render(draw_phantom(int(seed), 0, condition, style), int(size))
    digests[key] = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
print(json.dumps(digests))
"""


@pytest.mark.parametrize("key", GOLDEN)
def test_a_seed_gives_the_bytes_it_always_gave(key: str) -> None:
    seed, condition, style, size = key.split()
    pixels = render(draw_phantom(int(seed), 0, condition, style), int(size))
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == GOLDEN[key]


def test_a_processor_without_wide_vectors_gives_the_same_bytes() -> None:
    from numpy._core import _multiarray_umath as umath

    present = [name for name in umath.__cpu_dispatch__ if umath.__cpu_features__.get(name)]
    if not present:
        pytest.skip("numpy has nothing to switch off on this processor")
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(present)}
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", DIGESTS, json.dumps(list(GOLDEN))],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(finished.stdout) == GOLDEN


def test_a_phantom_has_the_shape_and_type_of_a_photograph() -> None:
    pixels = render(draw_phantom(1, 0, "normal", "salmon"), 48)
    assert pixels.shape == (48, 48, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("style", CAMERA_STYLES)
def test_outside_the_field_it_is_black_and_inside_it_is_not(style: str) -> None:
    for number in range(4):
        pixels = render(draw_phantom(2, number, "normal", style), 64).astype(int)
        assert pixels[:3, :3].max() < 12
        assert pixels[28:36, 28:36].max() > 25


@pytest.mark.parametrize("size_px", [96, 160])
def test_a_larger_picture_shows_the_same_eye(size_px: int) -> None:
    for condition in ("normal", "dr3", "myopia"):
        phantom = draw_phantom(3, 0, condition, "amber")
        small = render(phantom, size_px // 2).astype(float)
        large = Image.fromarray(render(phantom, size_px)).resize(
            (size_px // 2, size_px // 2), Image.Resampling.BOX
        )
        assert np.abs(small - np.asarray(large, dtype=float)).mean() < 2.5


def test_a_left_eye_is_a_right_eye_in_a_mirror() -> None:
    phantom = draw_phantom(4, 0, "dr2", "salmon")
    views = [View(64, 1.4, mirror, (4.0, 0.0)) for mirror in (1.0, -1.0)]
    right, left = (draw_retina(phantom.anatomy, phantom.lesions, view).light_CSS for view in views)
    assert np.allclose(right, left[:, :, ::-1], atol=2e-3)


def test_the_disc_is_the_brightest_part_and_on_the_nasal_side() -> None:
    hits = 0
    for number in range(30):
        phantom = draw_phantom(5, number, "normal", "salmon")
        calm = replace(
            phantom.camera, crescent=(0.0, 1.0, 0.0), reflex=(0.0, 0.0, 0.0), tilt=(0.0, 0.0)
        )
        pixels = render(replace(phantom, camera=calm), 64).astype(int)[..., 1]
        column = int(np.unravel_index(pixels.argmax(), pixels.shape)[1])
        hits += (column > 32) == (phantom.anatomy.eye == "R")
    assert hits >= 28


def test_every_camera_has_its_own_colour() -> None:
    means = {
        style: np.mean(
            [_mean_colour(render(draw_phantom(6, k, "normal", style), 32)) for k in range(12)],
            axis=0,
        )
        for style in CAMERA_STYLES
    }
    assert len(means) >= 4
    names = list(means)
    gaps = [
        np.abs(means[one] - means[other]).max()
        for i, one in enumerate(names)
        for other in names[i + 1 :]
    ]
    assert min(gaps) > 6


@pytest.mark.parametrize("condition", [c for c in PHANTOM_CONDITIONS if c != "normal"])
def test_a_condition_changes_the_picture(condition: str) -> None:
    changed = 0
    for number in range(8):
        ill = draw_phantom(7, number, condition, "salmon")
        well = Phantom(ill.anatomy, type(ill.lesions)("normal"), ill.camera)
        difference = np.abs(render(ill, 128).astype(int) - render(well, 128)).max()
        changed += difference > 8
    assert changed >= 7


def test_masks_are_where_the_picture_changes() -> None:
    ill = draw_phantom(8, 0, "dr2", "salmon")
    masks = lesion_masks(ill, 128)
    assert set(masks) == set(ill.lesions.spots)
    covered = np.max(list(masks.values()), axis=0)
    well = Phantom(ill.anatomy, type(ill.lesions)("dr2"), ill.camera)
    change = np.abs(render(ill, 128).astype(int) - render(well, 128)).sum(axis=2)
    assert change[covered > 128].mean() > 20
    assert change[covered == 0].mean() < 2


@pytest.mark.parametrize("style", CAMERA_STYLES)
def test_no_mask_reaches_beyond_the_field_of_view(style: str) -> None:
    for number in range(6):
        ill = draw_phantom(number, 1, "dr3", style)
        black = (render(ill, 128) == 0).all(axis=2)
        assert black.any()
        for mask in lesion_masks(ill, 128).values():
            assert mask[black].max() < 128


def test_what_lies_around_the_disc_is_not_masked_behind_it() -> None:
    shrunk = [draw_phantom(number, 1, "myopia", "salmon") for number in range(12)]
    seen = 0
    for eye in shrunk:
        around = lesion_masks(eye, 256).get("peripapillary")
        if around is None:
            continue
        seen += 1
        view = _view(eye, 256)
        disc = eye.anatomy.disc
        column = 128 + view.mirror * (disc.x_deg - view.centre_deg[0]) * view.px_per_deg
        row = 128 + (disc.y_deg - view.centre_deg[1]) * view.px_per_deg
        if 8 < column < 248 and 8 < row < 248:
            middle = around[int(row) - 3 : int(row) + 4, int(column) - 3 : int(column) + 4]
            assert middle.max() == 0
            assert around.max() > 0
    assert seen > 3


def test_an_artery_at_256_px_has_a_light_reflex_and_a_vein_has_none() -> None:
    along = np.stack([np.linspace(-20, 20, 41), np.zeros(41)], axis=1)
    view = View(256, 256 / 50, 1.0, (0.0, -0.5 * 50 / 256))
    both = VesselLevel(
        np.stack([along, along]),
        np.full((2, 41), 0.18),
        np.array([True, False]),
        np.array([-1, -1]),
    )
    artery, vein = (cover[:, 128] for cover in pour_vessels(both, view, np.ones((2, 41))))
    assert artery[128] < 0.7 * artery[127]
    assert vein[128] > vein[127]
    assert artery.sum() < vein.sum()


def test_the_version_of_the_look_changes_with_the_golden_digests() -> None:
    # Who changes the digests above raises the version: priors are cached by it.
    joined = "".join(GOLDEN.values())
    assert (SIMULATOR_VERSION, hashlib.sha256(joined.encode()).hexdigest()[:16]) == (
        "3",
        "c0aff2b3a0101d38",
    )


@pytest.mark.parametrize("size_px", [0, 15, 4096])
def test_a_size_out_of_range_is_refused(size_px: int) -> None:
    with pytest.raises(DataError, match="16 to 2048"):
        render(draw_phantom(1, 0, "normal", "amber"), size_px)


def _mean_colour(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    return pixels[pixels.max(axis=2) > 30].mean(axis=0)
