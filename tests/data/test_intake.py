import contextlib
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from drawn_fundus import drawn_fundus, encoded
from PIL import Image, ImageFile

from fundusgen.data.intake import MAX_PIXELS, decode_image
from fundusgen.data.preparation import prepare_image
from fundusgen.errors import DataError, ImageError


def saved(folder: Path, image: Image.Image, name: str, **options: object) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


def refusal(path: Path) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_image(path, 64)
    assert caught.value.expected
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    ("side", "target", "decoded"),
    [
        (1024, 64, 128),
        (1023, 64, 256),
        (1024, 65, 256),
        (512, 64, 128),
        (511, 64, 256),
        (256, 64, 128),
        (255, 64, 255),
        (100, 64, 100),
    ],
)
def test_a_jpeg_is_reduced_to_twice_the_target_and_never_below(
    tmp_path: Path, side: int, target: int, decoded: int
) -> None:
    image = Image.fromarray(drawn_fundus(side + 40, side))
    path = saved(tmp_path, image, "a.jpg")
    assert decode_image(path, target).shape[0] == decoded


def test_a_field_that_is_small_in_its_frame_is_decoded_larger() -> None:
    image = drawn_fundus(2048, 2048, (1024.0, 1024.0), radius=280.0)
    sharp = prepare_image(encoded(image, "JPEG", quality=95), 128)
    exact = prepare_image(encoded(image), 128)
    assert np.abs(sharp.astype(int) - exact).mean() < 2.5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_orientation_tags_are_honoured(tmp_path: Path, orientation: int, name: str) -> None:
    upright = np.zeros((64, 96, 3), np.uint8)
    upright[:32, :48] = (250, 20, 20)
    upright[:32, 48:] = (20, 250, 20)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = Image.fromarray(upright)
    if orientation in undo:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode_image(saved(tmp_path, stored, name, exif=exif), 64)
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).mean() < 5


def test_unreadable_metadata_does_not_cost_an_image(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(drawn_fundus()), "a.jpg", exif=b"Exif\0\0MM\0*\xff")
    assert decode_image(path, 64).shape == (128, 160, 3)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    grey = Image.fromarray(drawn_fundus()).convert("L")
    for name in ("a.png", "a.jpg", "a.tif"):
        pixels = decode_image(saved(tmp_path, grey, name), 128)
        assert (pixels[..., :1] == pixels).all()
        assert np.abs(pixels[..., 0].astype(int) - np.asarray(grey)).mean() < 2


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_deep_grey_keeps_its_upper_eight_bits(tmp_path: Path, bits: int, name: str) -> None:
    grey = np.asarray(Image.fromarray(drawn_fundus(light=255)).convert("L")).astype(np.uint16)
    grey[0, 0] = 255
    path = saved(tmp_path, Image.fromarray(grey << (bits - 8)), name)
    assert (decode_image(path, 64)[..., 0] == grey).all()


def test_deep_rgb_keeps_its_upper_eight_bits(tmp_path: Path) -> None:
    image = drawn_fundus(64, 48, (32.0, 24.0), 20.0)
    path = tmp_path / "a.png"
    path.write_bytes(deep_png(image.astype(np.uint16) * 256 + 17))
    assert (decode_image(path, 64) == image).all()


def deep_png(image_HWC: np.ndarray) -> bytes:
    """A PNG of three 16-bit channels, which Pillow reads but does not write."""
    height, width, _ = image_HWC.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in image_HWC)

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def test_what_is_transparent_becomes_black(tmp_path: Path) -> None:
    image = drawn_fundus(background=255)
    y, x = np.mgrid[:256, :320] + 0.5
    alpha = np.where(np.hypot(x - 160, y - 128) < 98, 255, 0).astype(np.uint8)
    path = saved(tmp_path, Image.fromarray(np.dstack([image, alpha])), "a.png")
    pixels = decode_image(path, 64)
    assert (pixels[alpha == 0] == 0).all()
    assert (pixels[alpha == 255] == image[alpha == 255]).all()


def test_a_palette_becomes_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(drawn_fundus()).quantize(200)
    pixels = decode_image(saved(tmp_path, image, "a.png"), 64)
    assert (pixels == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize(
    ("mode", "name"), [("CMYK", "a.jpg"), ("CMYK", "a.tif"), ("F", "a.tif"), ("1", "a.png")]
)
def test_modes_without_a_clear_meaning_are_refused(tmp_path: Path, mode: str, name: str) -> None:
    error = refusal(saved(tmp_path, Image.fromarray(drawn_fundus()).convert(mode), name))
    assert "RGB" in error.expected


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "0 bytes"),
        (b"\0" * 5000, "zeros only"),
        (b"not an image at all", "no image"),
        (b"\0" * 128 + b"DICM" + b"\0" * 50, "DICOM"),
        (b"%PDF-1.7", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
    ],
)
def test_files_that_are_no_images_are_refused(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert word in refusal(path).found


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    content = encoded(noise, kind)
    path = tmp_path / "a.img"
    path.write_bytes(content[: int(share * len(content))])
    refusal(path)


def test_a_jpeg_whose_end_was_never_transferred_is_refused(tmp_path: Path) -> None:
    content = encoded(drawn_fundus(1024, 1024, (512.0, 512.0), 500.0), "JPEG")
    half = len(content) // 2
    path = tmp_path / "a.jpg"
    path.write_bytes(content[:half] + bytes(len(content) - half))
    refusal(path)


def test_damage_anywhere_gives_an_image_or_an_image_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    path = tmp_path / "a.img"
    for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        content = bytearray(encoded(drawn_fundus(96, 80, (48.0, 40.0), 36.0), kind))
        for _ in range(60):
            damaged = bytearray(content)
            for place in rng.integers(0, min(len(damaged), 400), 4):
                damaged[place] = rng.integers(256)
            path.write_bytes(damaged)
            with contextlib.suppress(ImageError):
                assert decode_image(path, 64).shape[2] == 3


def test_missing_files_folders_and_pipes_are_refused(tmp_path: Path) -> None:
    assert "missing" in refusal(tmp_path / "a.jpg").found
    assert "regular" in refusal(tmp_path).found
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "regular" in refusal(tmp_path / "pipe.jpg").found


def test_a_small_file_that_unpacks_to_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(stream, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(stream.getvalue())
    assert MAX_PIXELS < 30_000**2
    assert "too large" in refusal(path).found


def test_black_and_tiny_frames_are_refused(tmp_path: Path) -> None:
    black = Image.new("RGB", (640, 480), (2, 3, 1))
    assert "black frame" in refusal(saved(tmp_path, black, "a.jpg")).found
    tiny = Image.fromarray(drawn_fundus(12, 10, (6.0, 5.0), 4.0))
    assert "12 x 10" in refusal(saved(tmp_path, tiny, "a.png")).found


def test_truncated_files_are_not_accepted_behind_our_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, Image.fromarray(drawn_fundus()), "a.jpg")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(DataError, match="truncated"):
        decode_image(path, 64)
