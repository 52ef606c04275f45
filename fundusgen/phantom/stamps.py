"""Rasterising lesions: from spots in degrees to how much of each pixel they cover.

Fourth step of the simulator, beside `ink`. Spots are drawn in batches of equal window, since a
diabetic eye has a hundred of them and most are a pixel or two wide.

S side of the picture in pixels, N spots, P side of a window.
"""

import numpy as np

from fundusgen.phantom.exact import Floats, clip01
from fundusgen.phantom.spots import Spots
from fundusgen.phantom.view import View

_WINDOWS_PX = (6, 10, 16, 32, 64, 128, 256, 512, 1024, 2048)
# Pixels in a batch: bounds the memory of large windows.
_BATCH_PIXELS = 1 << 18


def stamp_spots(
    spots: Spots, view: View, softness: float, roughness_SS: Floats, flat_top: bool = False
) -> Floats:
    """Return how much spots cover each pixel.

    Args:
        spots: Lesions of one kind.
        view: Where they lie in the picture.
        softness: Width of the edge as a share of the radius, 0 to 1.
        roughness_SS: Field that moves the edge in and out, as a share of the radius.
        flat_top: Cut the upper part, as blood that has settled.

    Returns:
        (S, S) float32, 0 to 1; where spots overlap, the one that covers more.
    """
    size = view.size_px
    x_N, y_N = view.to_px(spots.centre_N2)
    radius_N2 = spots.radius_N2 * view.px_per_deg
    half_N = np.maximum(radius_N2[:, 0], radius_N2[:, 1]) * 1.5 + 1.5
    in_sight_N = (np.abs(x_N - size / 2) < size / 2 + half_N) & (
        np.abs(y_N - size / 2) < size / 2 + half_N
    )
    canvas = np.zeros(size * size, dtype=np.float32)
    smaller = 0
    for window in _WINDOWS_PX:
        fits_N = (2 * half_N <= window) & (2 * half_N > smaller)
        if window == _WINDOWS_PX[-1]:
            fits_N = 2 * half_N > smaller
        chosen = np.flatnonzero(fits_N & in_sight_N)
        smaller = window
        step = max(_BATCH_PIXELS // (window * window), 1)
        for start in range(0, len(chosen), step):
            part = chosen[start : start + step]
            _stamp(canvas, spots, view, part, window, softness, roughness_SS, flat_top)
    return canvas.reshape(size, size)


def _stamp(
    canvas: Floats,
    spots: Spots,
    view: View,
    part: Floats,
    window: int,
    softness: float,
    roughness_SS: Floats,
    flat_top: bool,
) -> None:
    size = view.size_px
    x_N, y_N = view.to_px(spots.centre_N2[part])
    radius_N2 = spots.radius_N2[part] * view.px_per_deg
    # Finer than a pixel: drawn a pixel wide and as much fainter.
    drawn_N2 = np.maximum(radius_N2, 0.6)
    faint_N = radius_N2[:, 0] * radius_N2[:, 1] / (drawn_N2[:, 0] * drawn_N2[:, 1])
    opacity_N = faint_N * spots.strength_N[part]
    smaller_N = np.minimum(drawn_N2[:, 0], drawn_N2[:, 1])
    edge_N = 1 / np.maximum(softness, 1 / smaller_N)

    offsets = np.arange(window)
    column_NP = np.floor(x_N - window / 2 + 0.5).astype(np.int64)[:, None] + offsets
    row_NP = np.floor(y_N - window / 2 + 0.5).astype(np.int64)[:, None] + offsets
    dx = (column_NP + 0.5 - x_N[:, None]).astype(np.float32)[:, None, :]
    dy = (row_NP + 0.5 - y_N[:, None]).astype(np.float32)[:, :, None]
    cosine, sine = (
        _each(spots.direction_N2[part, 0] * view.mirror),
        _each(spots.direction_N2[part, 1]),
    )
    u = (dx * cosine + dy * sine) * _each(1 / drawn_N2[:, 0])
    v = (dy * cosine - dx * sine) * _each(1 / drawn_N2[:, 1])
    inside_row, inside_column = _within(row_NP, size), _within(column_NP, size)
    place = inside_row[0][:, :, None] * size + inside_column[0][:, None, :]
    rough = roughness_SS.reshape(-1)[place]
    cover = clip01((1 - np.sqrt(u * u + v * v) + rough) * _each(edge_N) + 0.5)
    if flat_top:
        cover = cover * clip01(dy + _each(0.2 * smaller_N + 0.5))
    cover = cover * _each(opacity_N) * (inside_row[1][:, :, None] & inside_column[1][:, None, :])
    # The largest of several is the same in any order.
    np.maximum.at(canvas, place.reshape(-1), cover.reshape(-1))


def _each(values_N: Floats) -> Floats:
    return np.asarray(values_N, dtype=np.float32)[:, None, None]


def _within(index_NP: Floats, size: int) -> tuple[Floats, Floats]:
    clipped = np.minimum(np.maximum(index_NP, 0), size - 1)
    return clipped, clipped == index_NP
