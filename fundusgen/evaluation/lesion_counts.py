"""Bright and dark spots in a photograph: what exudates and drusen, and bleedings look like.

One of the parts of `fundus_measures`. Spots stand out from openings by lines in all directions,
which keep what is long (vessels and their reflexes) and lose what is compact: the "radial opening"
with which microaneurysms are looked for (Spencer et al. 1996). What is counted is also the fovea,
where it is dark, and ends of vessels. At 64 px, where a spot of a tenth of a disc is smaller than a
pixel, the number of dark ones in public photographs does not follow the grade of retinopathy at
all, and from 128 px weakly; as a property of sets of images it can be compared.

S side in pixels.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, label, maximum_filter, minimum_filter

from fundusgen.evaluation.landmarks import Mask

Floats = NDArray[np.floating]

# Length of the lines and the widest spot, and the smoothing before, in sides.
_LINE, _SMOOTHING = 0.11, 0.006
_DIRECTIONS = 6
# Logarithm of light by which spots stand out: from openings, and from their surroundings. The
# second keeps out what is only brighter than vessels on both sides. Of a grid of values, those
# whose counts rise most clearly with the grade of diabetic retinopathy in public photographs.
_BRIGHT, _DARK = (0.12, 0.15), (0.06, 0.06)


def find_spots(flat_SS: Floats, where_SS: Mask, *, bright: bool) -> tuple[int, Mask]:
    """Find compact spots.

    Args:
        flat_SS: Logarithm of light over its surroundings, from `vessels.flat_light`.
        where_SS: Where to look.
        bright: Spots brighter than around them, or darker.

    Returns:
        How many there are, and where they are (S, S).
    """
    side = len(flat_SS)
    light_SS = gaussian_filter(flat_SS if bright else -flat_SS, _SMOOTHING * side)
    opened_SS = np.full(light_SS.shape, -np.inf)
    for line in _lines(max(3, round(side * _LINE / 2))):
        eroded_SS = minimum_filter(light_SS, footprint=line)
        np.maximum(opened_SS, maximum_filter(eroded_SS, footprint=line), out=opened_SS)
    over_opening, over_surroundings = _BRIGHT if bright else _DARK
    stands_out_SS = (light_SS - opened_SS > over_opening) & (light_SS > over_surroundings)
    spots_SS: Mask = stands_out_SS & where_SS
    _, count = label(spots_SS, np.ones((3, 3)))
    return int(count), spots_SS


@lru_cache(maxsize=8)
def _lines(reach: int) -> tuple[Mask, ...]:
    """Lines of 2 * reach + 1 pixels in all directions, each as a square footprint."""
    lines = []
    for turn in np.arange(_DIRECTIONS) * (np.pi / _DIRECTIONS):
        along = np.linspace(-reach, reach, 4 * reach + 1)
        line = np.zeros((2 * reach + 1, 2 * reach + 1), np.bool_)
        rows, columns = np.rint(along * np.sin(turn)), np.rint(along * np.cos(turn))
        line[rows.astype(np.int64) + reach, columns.astype(np.int64) + reach] = True
        lines.append(line)
    return tuple(lines)
