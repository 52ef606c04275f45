"""Rasterising vessels: from curves in degrees to how much blood each pixel shows.

Fourth step of the simulator. A vessel is narrower than a pixel at 64 px, so it is not drawn as a
line but poured: sample points along and across it each leave their area in the four pixels around
them. Coverage is then right at every size without supersampling, and the additions happen in a
fixed order (bincount), so the sum is the same everywhere.

S side of the picture in pixels, V vessels, K points along each.
"""

import numpy as np

from fundusgen.phantom.exact import Floats, clip01
from fundusgen.phantom.vessels import VesselLevel
from fundusgen.phantom.view import View

# Distance between sample points, in pixels.
_STEP_PX = 0.9
# A vessel's depth at which it shows half the density of an endlessly wide one, by eye; and the
# factor that gives a vein's trunk the density of 1.
_HALF_DENSITY_DEG = 0.60
_TRUNK_DENSITY = 2.4
# What its reflex leaves of an artery's density.
_ARTERY_SHARE = 0.8


def pour_vessels(level: VesselLevel, view: View, radius_scale_VK: Floats) -> tuple[Floats, Floats]:
    """Return how much arteries and veins cover each pixel.

    Args:
        level: Vessels of one order.
        view: Where they lie in the picture.
        radius_scale_VK: Factor on every radius.

    Returns:
        Arteries (S, S) and veins (S, S), float32, 0 to about 1; the middle of a vessel, where the
        light passes most blood, counts more than its edge.
    """
    x_VK, y_VK = view.to_px(level.points_VK2)
    radius_VK = level.radius_VK * radius_scale_VK * view.px_per_deg
    kept = _in_sight(x_VK, y_VK, view.size_px, 4.0)
    x_VK, y_VK, radius_VK, artery_V = x_VK[kept], y_VK[kept], radius_VK[kept], level.artery_V[kept]
    if not len(x_VK):
        empty = np.zeros((view.size_px, view.size_px), dtype=np.float32)
        return empty, empty
    dx, dy = x_VK[:, 1:] - x_VK[:, :-1], y_VK[:, 1:] - y_VK[:, :-1]
    length = np.sqrt(dx * dx + dy * dy) + 1e-9
    along = max(int(float(length.max()) / _STEP_PX) + 1, 1)
    across = max(int(2 * float(radius_VK.max()) / _STEP_PX) + 1, 1)
    t = (np.arange(along) + 0.5) / along
    lane = (np.arange(across) + 0.5) / across * 2 - 1
    # Chord through a cylinder, scaled so that its mean over the width is 1.
    depth = np.sqrt(1 - lane * lane)
    depth = depth * (across / np.cumsum(depth)[-1])
    # Arteries reflect the flash along their middle (the central light reflex): the profile has a
    # dip there, and as a whole they are paler, however many lanes draw them.
    profile = depth * (1 - 1.4 * clip01(1 - lane * lane * 6))
    profile = profile * (_ARTERY_SHARE * across / np.cumsum(profile)[-1])

    rest = t[None, None, :]
    radius = radius_VK[:, :-1, None] * (1 - rest) + radius_VK[:, 1:, None] * rest
    area = radius * (length * (2 / (along * across)))[:, :, None]
    shift = (radius / length[:, :, None])[..., None] * lane
    x = (x_VK[:, :-1, None] + dx[:, :, None] * rest)[..., None] - dy[:, :, None, None] * shift
    y = (y_VK[:, :-1, None] + dy[:, :, None] * rest)[..., None] + dx[:, :, None, None] * shift
    # Beer and Lambert: a thin vessel is not only narrower but paler, its path of light is shorter.
    thin = radius * (1.6 / view.px_per_deg)
    weight = (area * (thin / (thin + _HALF_DENSITY_DEG) * _TRUNK_DENSITY))[..., None]
    weight = weight * np.where(artery_V[:, None, None, None], profile, depth)
    canvas = np.broadcast_to(~artery_V[:, None, None, None], weight.shape)
    arteries_SS, veins_SS = _pour(x, y, weight, canvas, view.size_px)
    # The reflex is light that has met no blood, and no brighter than that.
    return np.maximum(arteries_SS, 0.0), veins_SS


def _pour(x: Floats, y: Floats, weight: Floats, second: Floats, size: int) -> tuple[Floats, Floats]:
    """Share weights among the four pixels around each point, on the first or second canvas."""
    x, y, weight, second = (
        x.reshape(-1) + 0.5,
        y.reshape(-1) + 0.5,
        weight.reshape(-1),
        second.reshape(-1),
    )
    # One pixel of border takes what falls outside.
    kept = (x > 0) & (x < size + 1) & (y > 0) & (y < size + 1)
    x, y, weight, second = x[kept], y[kept], weight[kept], second[kept]
    column, row = x.astype(np.int64), y.astype(np.int64)
    right, below = x - column, y - row
    stride = size + 2
    place = (second * stride + row) * stride + column
    lower, upper = weight * below, weight * (1 - below)
    canvas = np.zeros(2 * stride * stride)
    for offset, part in (
        (0, upper * (1 - right)),
        (1, upper * right),
        (stride, lower * (1 - right)),
        (stride + 1, lower * right),
    ):
        canvas += np.bincount(place + offset, part, minlength=2 * stride * stride)
    both = canvas.reshape(2, stride, stride)[:, 1:-1, 1:-1].astype(np.float32)
    return both[0], both[1]


def _in_sight(x_VK: Floats, y_VK: Floats, size: int, margin: float) -> Floats:
    return np.asarray(
        (x_VK.max(axis=1) > -margin)
        & (x_VK.min(axis=1) < size + margin)
        & (y_VK.max(axis=1) > -margin)
        & (y_VK.min(axis=1) < size + margin)
    )
