"""Random smooth fields: pigment mottling, choroidal vessels, nerve-fibre streaks, clouds.

Drawn on a coarse grid and read through a quadratic B-spline, so a field is the same whatever the
size of the picture. Coordinates are degrees of visual angle on the retina.
"""

import numpy as np

from fundusgen.phantom.exact import Floats, clip01

# The part of the retina that any field of view can show, in degrees from the fovea.
REACH_DEG = 48.0


def mottling(
    rng: np.random.Generator, cell_deg: float, x_S: Floats, y_S: Floats, cell_y_deg: float = 0.0
) -> Floats:
    """Draw a smooth field of unit-like contrast over the retina.

    Args:
        rng: Source of the grid.
        cell_deg: Size of a grid cell in degrees: the scale of the blotches.
        x_S: Column positions in degrees.
        y_S: Row positions in degrees.
        cell_y_deg: Height of a cell where it differs from its width.

    Returns:
        (S, S) float32, mean about 0, mostly within -1 to 1.
    """
    rows, columns = _cells(cell_y_deg or cell_deg), _cells(cell_deg)
    grid = (rng.random((rows, columns)) * 4 - 2).astype(np.float32)
    along_rows = _spline(grid, (y_S + REACH_DEG) / (cell_y_deg or cell_deg))
    return _spline(along_rows.T, (x_S + REACH_DEG) / cell_deg).T


def streams(x_SS: Floats, y_SS: Floats, bend_SS: Floats, width_SS: Floats) -> Floats:
    """Draw ribbons that run outwards from the origin of the coordinates and wind on their way.

    Args:
        x_SS: Position to the side, in degrees.
        y_SS: Position downwards, in degrees.
        bend_SS: Winding as a share of the ribbons' distance.
        width_SS: Widening and narrowing, -1 to 1; where it is low a ribbon is interrupted.

    Returns:
        (S, S) float32 in 0 to 1, high on the ribbons.
    """
    phase = diamond_angle(x_SS, y_SS) * 17 + bend_SS
    wave = np.abs(2 * (phase - np.floor(phase)) - 1)
    return np.asarray(_ease(clip01(wave * 1.2 - 0.25 + 0.45 * width_SS)))


def diamond_angle(x: Floats, y: Floats) -> Floats:
    """Return the angle of a vector on a scale of 0 to 4: exact, unlike arctan2."""
    length = np.abs(x) + np.abs(y) + 1e-6
    part = x / length
    return np.where(y >= 0, 1 - part, 3 + part)


def _cells(cell_deg: float) -> int:
    return int(2 * REACH_DEG / cell_deg) + 4


def _spline(grid_RN: Floats, at_S: Floats) -> Floats:
    index = np.clip(at_S.astype(np.int32), 0, grid_RN.shape[0] - 3)
    rest = (at_S - index).astype(np.float32)[:, None]
    before = (1 - rest) * (1 - rest) * 0.5
    after = rest * rest * 0.5
    middle = 1 - before - after
    return np.asarray(
        grid_RN[index] * before + grid_RN[index + 1] * middle + grid_RN[index + 2] * after
    )


def _ease(rest: Floats) -> Floats:
    return np.asarray(rest * rest * (3 - 2 * rest))
