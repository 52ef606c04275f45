"""Intake: from a file on the disk to upright RGB pixels.

The only place that opens images. What it takes and what it makes of it, on purpose:

    8-bit RGB                  as it is
    16-bit RGB                 the upper 8 bits of each value
    8-bit grey                 three equal channels
    16-bit grey                the upper 8 bits of the depth in use (8, 10, 12, 14 or 16 bits,
                               the smallest that holds the largest value), three equal channels
    alpha, grey with alpha     laid over black: transparent means outside of the field
    palette                    its colours
    YCbCr                      converted
    CMYK, Lab, HSV             refused: their colours mean nothing without a profile
    float, 32-bit, 1-bit       refused: their range is not that of a photograph
    several pages              the first page

Files may be JPEG, PNG, TIFF, WebP, BMP or PPM; Pillow's other readers are never tried, as some
of them start other programs. Orientation tags are honoured. Colour profiles are not applied.
Nothing that a file carries beside its pixels (dates, names, places) goes further than here.
"""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from fundusgen.errors import DataError, ImageError

Pixels = NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM")
# The largest fundus cameras make 45 megapixels; a file that claims more is damaged or hostile.
MAX_PIXELS = 80_000_000
MAX_FILE_BYTES = 512 * 2**20
MIN_SIDE_PX = 16
# A field of view fills at least half of the shorter side in nearly every frame; where it does
# not, the caller sees the field and asks again.
FRAME_MARGIN = 2
BLACK_LEVEL = 8
# Pillow's readers meet damage in many ways, depending on where in the file it is.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def decode_image(path: Path, target_px: int) -> Pixels:
    """Read an image at a size that is enough for a field of view of `target_px`.

    JPEG files are decoded at the smallest of the scales 1/8, 1/4, 1/2 and 1 at which the
    shorter side has at least `FRAME_MARGIN * target_px` pixels, and at full size if none has.
    Other files are always decoded at full size.

    Args:
        path: The file.
        target_px: Wanted diameter of the field of view, in pixels.

    Returns:
        RGB, uint8, (H, W, 3), upright.

    Raises:
        ImageError: If the file is missing, empty, truncated, unreadable, too large, black, or of
            a kind that is refused.
    """
    return decode_bytes(read_image_file(path), target_px)


def read_image_file(path: Path) -> bytes:
    """Read the whole file of an image.

    Raises:
        ImageError: If it is missing, no regular file, empty, too large or may not be read.
    """
    try:
        if not path.is_file():
            raise ImageError(
                "not there or not a regular file" if path.exists() else "a file that is missing",
                expected="an image file",
                remedy="Correct the name or add the image",
            )
        size = path.stat().st_size
        if not 0 < size <= MAX_FILE_BYTES:
            raise ImageError(
                f"a file of {size} bytes",
                expected=f"an image of at most {MAX_FILE_BYTES} bytes",
                remedy="Export or copy the image again",
            )
        return path.read_bytes()
    except OSError as error:
        raise ImageError(
            f"a file that cannot be read: {error.strerror}",
            expected="a file that this user may read",
            remedy="Correct its permissions or the disk",
        ) from error


def decode_bytes(content: bytes, target_px: int) -> Pixels:
    """Decode the content of an image file; see `decode_image`."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise DataError(
            "this process told Pillow to accept truncated images",
            expected="truncated images to be refused",
            remedy="Do not set PIL.ImageFile.LOAD_TRUNCATED_IMAGES",
        )
    with warnings.catch_warnings():
        # Pillow warns of odd metadata, which is dropped here anyway, and of size, checked below.
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _check_size(image)
                _choose_scale(image, target_px)
                image.load()
                pixels = np.asarray(_as_rgb(_upright(image)))
        except Image.DecompressionBombError as error:
            raise _too_large(str(error)) from error
        except UnidentifiedImageError as error:
            raise ImageError(
                _kind_of(content),
                expected=f"a file of {', '.join(FORMATS)}",
                remedy="Export the image as JPEG, PNG or TIFF",
            ) from error
        except DAMAGE as error:
            raise ImageError(
                f"a truncated or damaged file: {error}",
                expected="a complete image",
                remedy="Export or copy the image again",
            ) from error
    if pixels.max() < BLACK_LEVEL:
        raise ImageError(
            f"a black frame: its brightest value is {pixels.max()} of 255",
            expected="a photograph of a fundus",
            remedy="Remove the row, or export the image again if it should show something",
        )
    return pixels


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(f"{width} x {height} pixels")
    if min(width, height) < MIN_SIDE_PX:
        raise ImageError(
            f"an image of {width} x {height} pixels",
            expected=f"at least {MIN_SIDE_PX} pixels on each side",
            remedy="Use the original photograph, not its thumbnail",
        )


def _choose_scale(image: Image.Image, target_px: int) -> None:
    """Let the JPEG decoder drop detail that framing would drop; the choice is Pillow's draft.

    Draft takes the largest of 8, 4, 2, 1 that divides both sides to no less than asked for.
    """
    wanted = FRAME_MARGIN * target_px
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        image.draft(image.mode, (wanted, wanted))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except DAMAGE:
        # Metadata that cannot be read says nothing of orientation; the pixels are still good.
        return image


def _as_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode == "RGB":
        return image
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        colours = image.convert("RGBA")
        under = Image.new("RGBA", colours.size, (0, 0, 0, 255))
        return Image.alpha_composite(under, colours).convert("RGB")
    if mode in ("L", "P", "YCbCr"):
        return image.convert("RGB")
    if mode.startswith("I;16"):
        return _from_deep_grey(image)
    if mode == "I" and image.format == "PNG":
        # Older Pillow reads 16-bit PNG into 32-bit numbers.
        return _from_deep_grey(image)
    names = {"1": "black and white, 1 bit", "F": "floating point", "I": "32-bit integers"}
    raise ImageError(
        f"an image in {names.get(mode, mode)}",
        expected="RGB or grey with 8 or 16 bits",
        remedy="Export the image as RGB, with its colour profile applied",
    )


def _from_deep_grey(image: Image.Image) -> Image.Image:
    grey_HW = np.asarray(image).astype(np.int64)
    used = int(grey_HW.max()).bit_length()
    depth = next(bits for bits in (8, 10, 12, 14, 16, 63) if used <= bits)
    if depth > 16 or grey_HW.min() < 0:
        raise ImageError(
            "grey values outside of 0 to 65535",
            expected="16-bit grey",
            remedy="Export the image as 8-bit RGB",
        )
    return Image.fromarray((grey_HW >> (depth - 8)).astype(np.uint8)).convert("RGB")


def _too_large(found: str) -> ImageError:
    return ImageError(
        f"an image that is too large: {found}",
        expected=f"at most {MAX_PIXELS // 10**6} megapixels",
        remedy="Export the image at the camera's resolution",
    )


def _kind_of(content: bytes) -> str:
    if content[128:132] == b"DICM":
        return "a DICOM file"
    if content.startswith(b"%PDF"):
        return "a PDF file"
    if not content.strip(b"\0"):
        return "a file of zeros only"
    return "a file that is no image, or a damaged one"
