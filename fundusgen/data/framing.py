"""Framing: from a photograph in any frame to a round field of view that fills a square.

The step between intake and the cache. Cameras differ in how the round field sits in the frame:
whole with black around it, cut at top and bottom, filling the frame, or stretched by an archive
that made every frame square. After framing all look alike: the circle touches the four sides of
the square, what the frame cut off is black, and so is everything outside of the circle.

Only the image itself is looked at, never another one: preprocessing that learned from several
patients would need a privacy mechanism of its own.

Axis letters: H height, W width, C colours, N points.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy.ndimage import label, maximum_filter

from fundusgen.data.outline import Outline, fit_outline
from fundusgen.errors import ImageError

Pixels = NDArray[np.uint8]

# Raise on every change of the pixels that framing gives: caches of earlier versions are then left.
FRAMING_VERSION = 1

WORKING_PX = 256
# A frame whose brightest hundredth is darker than this shows nothing (0 to 255).
BLACK_LEVEL = 20
WHITE_LEVEL = 240
MIN_FIELD_SHARE = 0.05
MIN_DIAMETER_PX = 16
# Below this share of edge points on it, an outline is chance.
MIN_SUPPORT = 0.25
# From this share on, no other level of light is tried.
CLEAR_SUPPORT = 0.9
LIGHT_SHARES = (0.04, 0.1, 0.2)
# With so few edge points off the frame's border there is no outline to be seen.
MIN_EDGE_SHARE = 0.06


@dataclass(frozen=True)
class FieldOfView:
    """Where the round field is in an image, in pixels of that image.

    Attributes:
        center_x: From the left edge.
        center_y: From the top edge.
        radius: Half of the field's width.
        stretch: Height over width of the field; 1 for a frame that was never distorted.
        cut_left: Share of the field's width that the frame cut off at the left, 0 to 1.
        cut_top: Share of its height at the top.
        cut_right: Share of its width at the right.
        cut_bottom: Share of its height at the bottom.
    """

    center_x: float
    center_y: float
    radius: float
    stretch: float = 1.0
    cut_left: float = 0.0
    cut_top: float = 0.0
    cut_right: float = 0.0
    cut_bottom: float = 0.0

    @property
    def radius_y(self) -> float:
        """Half of the field's height, in pixels."""
        return self.radius * self.stretch


def frame_image(image_HWC: Pixels, size_px: int, field: FieldOfView | None = None) -> Pixels:
    """Bring the field of view of a photograph to the full size of a square.

    Args:
        image_HWC: RGB, uint8.
        size_px: Side of the square, at least 8.
        field: Where the field is, if already known; found otherwise.

    Returns:
        RGB, uint8, (size_px, size_px, 3); black outside of the circle, with a soft edge of one
        pixel.

    Raises:
        ImageError: If the image shows no field of view.
    """
    whole = _on_black(image_HWC)
    if field is None:
        field = _find(whole)
    left, right = field.center_x - field.radius, field.center_x + field.radius
    top, bottom = field.center_y - field.radius_y, field.center_y + field.radius_y
    corner = (int(np.floor(left)), int(np.floor(top)))
    # Pillow crops beyond the frame by padding with black, which is what a cut field needs.
    crop = whole.crop((*corner, int(np.ceil(right)), int(np.ceil(bottom))))
    box = (left - corner[0], top - corner[1], right - corner[0], bottom - corner[1])
    # Hamming weighs by area without the ringing that Lanczos puts along the field's edge.
    shrinks = 2 * field.radius >= size_px
    filter_ = Image.Resampling.HAMMING if shrinks else Image.Resampling.BICUBIC
    square = crop.resize((size_px, size_px), filter_, box=box, reducing_gap=3.0)
    return _masked(np.asarray(square), size_px)


def find_field_of_view(image_HWC: Pixels) -> FieldOfView:
    """Find the round field of a photograph by its mask and a robust fit of its outline.

    A frame that the field fills, without an outline in sight, gives the largest centred circle.

    Args:
        image_HWC: RGB, uint8.

    Returns:
        The field, in pixels of the image; parts of it may lie outside of the frame.

    Raises:
        ImageError: If the frame is black or of one colour, or what is lit is too small.
    """
    whole = _on_black(image_HWC)
    return _find(whole)


def _find(whole: Image.Image) -> FieldOfView:
    factor = -(-max(whole.size) // WORKING_PX)
    small = whole.reduce(factor) if factor > 1 else whole
    light_HW = np.asarray(small).max(axis=2)
    _refuse_blank(light_HW)
    outline, mask_HW = _best_outline(light_HW)
    if mask_HW.mean() < MIN_FIELD_SHARE:
        raise ImageError(
            f"only {mask_HW.mean():.1%} of the frame is lit",
            expected=f"a field of view over at least {MIN_FIELD_SHARE:.0%} of the frame",
            remedy="Check the photograph; it may show a label or a reflection only",
        )
    field = _as_field(outline, mask_HW, factor)
    if 2 * min(field.radius, field.radius_y) < MIN_DIAMETER_PX:
        raise ImageError(
            f"a field of view of {2 * field.radius:.0f} pixels",
            expected=f"at least {MIN_DIAMETER_PX} pixels across",
            remedy="Use the original photograph, not its thumbnail",
        )
    return field


def _refuse_blank(light_HW: Pixels) -> None:
    brightest, darkest = np.percentile(light_HW, (99, 1))
    if brightest < BLACK_LEVEL:
        raise ImageError(
            f"a black frame: its brightest parts have the value {brightest:.0f} of 255",
            expected="a photograph of a fundus",
            remedy="Remove the row, or export the image again if it should show something",
        )
    if brightest - darkest < 3:
        raise _one_colour(f"all values are about {brightest:.0f} of 255")


def _best_outline(light_HW: Pixels) -> tuple[Outline, NDArray[np.bool_]]:
    """Fit at the lowest level of light that gives a clear outline.

    Dim and vignetted fields need a low level; where light spills over the edge, only a higher
    one separates the field from it. With no outline at any level, what is lit is all there is.
    """
    lit_HW = _field_mask(light_HW, LIGHT_SHARES[0])
    best, best_HW = _lit_part(lit_HW), lit_HW
    for share in LIGHT_SHARES:
        mask_HW = lit_HW if share == LIGHT_SHARES[0] else _field_mask(light_HW, share)
        outline = _outline(mask_HW)
        if outline is not None and outline.support > best.support + 0.03:
            best, best_HW = outline, mask_HW
        if best.support > CLEAR_SUPPORT:
            break
    return best, best_HW


def _field_mask(light_HW: Pixels, share: float) -> NDArray[np.bool_]:
    """Mark what is lit: brighter than the dark corners, by a share of the brightest."""
    high, wide = (max(2, side // 24) for side in light_HW.shape)
    corners = [light_HW[y, x] for y in _ends(high) for x in _ends(wide)]
    dark = [corner for corner in corners if np.median(corner) < BLACK_LEVEL]
    background = max((float(np.percentile(corner, 98)) for corner in dark), default=0.0)
    brightest = float(np.percentile(light_HW, 95))
    threshold = background + max(4.0, share * brightest)
    lit_HW = np.pad((light_HW > threshold).astype(np.uint8), 1, mode="edge")
    rows = lit_HW[:-2] + lit_HW[1:-1] + lit_HW[2:]
    neighbours_HW = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    # The majority of nine pixels: single bright specks and dark holes go, edges stay.
    majority_HW: NDArray[np.bool_] = neighbours_HW >= 5
    return majority_HW


def _ends(length: int) -> tuple[slice, slice]:
    return slice(None, length), slice(-length, None)


def _outline(mask_HW: NDArray[np.bool_]) -> Outline | None:
    height, width = mask_HW.shape
    points_N2 = _edge_points(mask_HW)
    if len(points_N2) < MIN_EDGE_SHARE * 2 * (height + width):
        return None
    outline = fit_outline(points_N2, (0.15 * min(height, width), 1.2 * max(height, width)))
    return outline if outline is not None and outline.support >= MIN_SUPPORT else None


def _lit_part(mask_HW: NDArray[np.bool_]) -> Outline:
    """Take the largest circle in the middle of what is lit, which may be the whole frame."""
    left, right = _span(mask_HW.any(axis=0))
    top, bottom = _span(mask_HW.any(axis=1))
    radius = min(right - left, bottom - top) / 2
    return Outline((left + right) / 2, (top + bottom) / 2, radius, radius, 0.0)


def _edge_points(mask_HW: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Take the outermost lit pixels of each row and column, but for those at the frame's edge."""
    across_N2 = _outermost(mask_HW)
    down_N2 = _outermost(mask_HW.T)[:, ::-1]
    points_N2 = np.concatenate([across_N2, down_N2])
    height, width = mask_HW.shape
    inside_N = ((points_N2 > 2) & (points_N2 < (width - 2, height - 2))).all(axis=1)
    return points_N2[inside_N]


def _outermost(mask_HW: NDArray[np.bool_]) -> NDArray[np.float64]:
    rows = np.flatnonzero(mask_HW.any(axis=1))
    first = mask_HW[rows].argmax(axis=1)
    last = mask_HW.shape[1] - 1 - mask_HW[rows, ::-1].argmax(axis=1)
    x = np.concatenate([first, last]) + 0.5
    y = np.concatenate([rows, rows]) + 0.5
    return np.stack([x, y], axis=1)


def _as_field(outline: Outline, mask_HW: NDArray[np.bool_], factor: int) -> FieldOfView:
    # A row or column counts as shown if more than a speck of it is lit.
    left, right = _span(mask_HW.sum(axis=0) > 2)
    top, bottom = _span(mask_HW.sum(axis=1) > 2)
    x, y, radius_x, radius_y = (
        outline.center_x,
        outline.center_y,
        outline.radius_x,
        outline.radius_y,
    )
    return FieldOfView(
        center_x=x * factor,
        center_y=y * factor,
        radius=radius_x * factor,
        stretch=radius_y / radius_x,
        cut_left=_share(left - (x - radius_x), radius_x),
        cut_top=_share(top - (y - radius_y), radius_y),
        cut_right=_share(x + radius_x - right, radius_x),
        cut_bottom=_share(y + radius_y - bottom, radius_y),
    )


def _span(shown: ArrayLike) -> tuple[int, int]:
    places = np.flatnonzero(shown)
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)


def _share(cut: float, radius: float) -> float:
    share = min(max(cut / (2 * radius), 0.0), 1.0)
    # The outline is known to about a pixel; less than that is no cut.
    return share if share > 0.01 else 0.0


def _on_black(image_HWC: Pixels) -> Image.Image:
    """Blacken the white paper around frames that were exported with it."""
    whole = Image.fromarray(image_HWC)
    width, height = whole.size
    corners = [whole.getpixel((x, y)) for x in (0, width - 1) for y in (0, height - 1)]
    if sum(min(corner) > WHITE_LEVEL for corner in corners if isinstance(corner, tuple)) < 2:
        return whole
    # Paper reaches the frame's border; what is overexposed inside of the field stays.
    parts_HW, _ = label(image_HWC.min(axis=2) > WHITE_LEVEL)
    border = (parts_HW[0], parts_HW[-1], parts_HW[:, 0], parts_HW[:, -1])
    white_HW = (parts_HW > 0) & np.isin(parts_HW, np.concatenate(border))
    if white_HW.mean() > 1 - MIN_FIELD_SHARE:
        raise _one_colour("white")
    # Grow by the width of the soft edge, which would else look like a thin lit line.
    reach = 2 + max(whole.size) // 200
    grown_HW = maximum_filter(white_HW, size=2 * reach + 1)
    whole.paste((0, 0, 0), mask=Image.fromarray(grown_HW))
    return whole


def _one_colour(colour: str) -> ImageError:
    return ImageError(
        f"a frame of one colour: {colour}",
        expected="a photograph of a fundus",
        remedy="Remove the row, or export the image again if it should show something",
    )


def _masked(square_HWC: Pixels, size_px: int) -> Pixels:
    weight_HW1 = _disc(size_px)
    return ((square_HWC * weight_HW1 + 128) >> 8).astype(np.uint8)


@lru_cache(maxsize=8)
def _disc(size_px: int) -> NDArray[np.uint16]:
    """Coverage of each pixel by the inscribed disc, 0 to 256, with an edge of one pixel."""
    offset = np.arange(size_px) + 0.5 - size_px / 2
    distance_HW = np.hypot(offset[:, None], offset[None, :])
    coverage_HW = np.clip(size_px / 2 - distance_HW + 0.5, 0, 1)
    disc: NDArray[np.uint16] = np.round(256 * coverage_HW[..., None]).astype(np.uint16)
    disc.flags.writeable = False
    return disc
