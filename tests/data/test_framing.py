from pathlib import Path

import numpy as np
import pytest
from drawn_fundus import drawn_fundus
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fundusgen.data.framing import find_field_of_view, frame_image
from fundusgen.data.manifest import ManifestSettings, read_manifest
from fundusgen.errors import ImageError


@settings(deadline=None, max_examples=60)
@given(
    x=st.floats(140, 180),
    y=st.floats(110, 146),
    radius=st.floats(60, 150),
    light=st.floats(40, 255),
    background=st.floats(0, 9),
)
def test_a_round_field_is_found_wherever_it_is_cut(
    x: float, y: float, radius: float, light: float, background: float
) -> None:
    image = drawn_fundus(320, 256, (x, y), radius, light=light, background=background)
    field = find_field_of_view(image)
    tolerance = 0.02 * radius + 1
    assert abs(field.center_x - x) < tolerance
    assert abs(field.center_y - y) < tolerance
    assert abs(field.radius - radius) < tolerance
    assert field.stretch == pytest.approx(1, abs=0.03)
    assert field.cut_top == pytest.approx(max(0, radius - y) / (2 * radius), abs=0.02)
    assert field.cut_bottom == pytest.approx(max(0, y + radius - 256) / (2 * radius), abs=0.02)


@pytest.mark.parametrize("stretch", [0.75, 1.2, 1.5])
@pytest.mark.parametrize("radius", [70.0, 95.0])
def test_a_stretched_field_is_made_round_again(stretch: float, radius: float) -> None:
    image = drawn_fundus(256, 256, (128.0, 128.0), radius, stretch)
    field = find_field_of_view(image)
    assert field.stretch == pytest.approx(stretch, rel=0.03)
    assert field.radius == pytest.approx(radius, rel=0.03)
    lit = frame_image(image, 64, field).max(axis=2) > 40
    assert (
        abs(lit.any(axis=0).sum() - min(64, lit.any(axis=1).sum())) <= 2 or radius * stretch > 128
    )


def test_the_field_is_found_at_any_scale() -> None:
    small = find_field_of_view(drawn_fundus(64, 64, (32.0, 32.0), 28.0))
    large = find_field_of_view(drawn_fundus(1280, 1280, (640.0, 640.0), 560.0))
    assert small.radius == pytest.approx(28, abs=1)
    assert large.radius == pytest.approx(560, abs=8)


def test_shadows_notches_and_flat_cuts_do_not_move_the_field() -> None:
    image = drawn_fundus()
    image[:, :110] //= 40
    image[20:45, 225:240] = 180
    image[:40] = 2
    field = find_field_of_view(image)
    assert field.radius == pytest.approx(100, abs=3)
    assert field.center_x == pytest.approx(160, abs=3)
    assert field.center_y == pytest.approx(128, abs=3)


def test_light_that_spills_over_the_edge_is_not_part_of_the_field() -> None:
    image = drawn_fundus()
    y, x = np.mgrid[:256, :320] + 0.5
    beyond = np.hypot(x - 160, y - 128) - 100
    glow = np.where(beyond > 0, 24 * np.exp(-beyond / 12) * (x > 160), 0)[..., None]
    field = find_field_of_view(np.clip(image + glow, 0, 255).astype(np.uint8))
    assert field.radius == pytest.approx(100, abs=2)
    assert field.center_x == pytest.approx(160, abs=2)


def test_a_field_that_fills_the_frame_gives_the_largest_centred_circle() -> None:
    image = drawn_fundus(320, 256, (160.0, 128.0), 400.0)
    field = find_field_of_view(image)
    assert (field.center_x, field.center_y, field.radius) == (160, 128, 128)
    assert (frame_image(image, 64)[32, 1:-1].max(axis=1) > 60).all()


def test_white_paper_around_a_frame_becomes_black() -> None:
    image = np.full((320, 400, 3), 255, np.uint8)
    image[32:288, 40:360] = drawn_fundus(center=(160.0, 128.0), radius=110.0)
    image[150:170, 190:210] = 255
    field = find_field_of_view(image)
    assert field.radius == pytest.approx(110, abs=3)
    framed = frame_image(image, 64)
    framed_disc, framed_rest = framed[28:38, 26:40], framed[:, :20]
    assert framed_disc.min(axis=2).max() > 240
    assert framed_rest.min(axis=2).max() < 100


def test_a_framed_image_touches_all_sides_and_is_black_outside() -> None:
    framed = frame_image(drawn_fundus(background=30), 64)
    assert framed.shape == (64, 64, 3)
    assert framed.dtype == np.uint8
    y, x = np.mgrid[:64, :64] + 0.5
    distance = np.hypot(x - 32, y - 32)
    assert (framed[distance > 32.8] == 0).all()
    assert (framed[distance < 31].max(axis=1) > 60).all()


def test_what_the_frame_cut_off_is_black() -> None:
    framed = frame_image(drawn_fundus(320, 160, (160.0, 80.0), 100.0), 100)
    assert (framed[:9] == 0).all()
    assert (framed[-9:] == 0).all()
    assert framed[12, 50].max() > 60


def test_framing_again_changes_little() -> None:
    once = frame_image(drawn_fundus(640, 512, (330.0, 250.0), 210.0), 128)
    twice = frame_image(once, 128)
    assert np.abs(once.astype(int) - twice).mean() < 6


def test_framing_gives_the_same_pixels_every_time_and_leaves_its_input_alone() -> None:
    image = drawn_fundus()
    image.flags.writeable = False
    before = image.copy()
    assert (frame_image(image, 64) == frame_image(image, 64)).all()
    assert (image == before).all()


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (np.zeros((200, 200, 3), np.uint8), "black"),
        (np.full((200, 200, 3), 128, np.uint8), "one colour"),
        (np.full((200, 200, 3), 255, np.uint8), "one colour"),
        (np.random.default_rng(0).integers(0, 12, (200, 200, 3), np.uint8), "black"),
        (drawn_fundus(400, 400, (200.0, 200.0), 25.0), "of the frame is lit"),
        (drawn_fundus(30, 30, (15.0, 15.0), 6.0), "pixels"),
    ],
    ids=["zeros", "grey", "white", "noise", "spot", "thumbnail"],
)
def test_a_frame_without_a_field_is_an_error(image: np.ndarray, word: str) -> None:
    with pytest.raises(ImageError) as caught:
        find_field_of_view(image)
    assert word in caught.value.found
    assert caught.value.remedy


def test_cameras_of_one_site_give_one_field(real_data: Path) -> None:
    # One camera each, always with the same field: what varies is only what it photographed.
    for site, share in (("drive_netherlands", 0.475), ("chase_uk", 0.478), ("idrid_india", 0.602)):
        folder = real_data / site
        settings_ = ManifestSettings(
            folder / "manifest.csv", folder, one_image_per_patient=site == "idrid_india"
        )
        for row in read_manifest(settings_).rows[::12]:
            image = np.asarray(Image.open(row.path).convert("RGB"))
            field = find_field_of_view(image)
            assert field.stretch == 1
            assert field.radius / min(image.shape[:2]) == pytest.approx(share, abs=0.012)
