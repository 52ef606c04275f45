"""Retinal vessels in a photograph: dark ridges of the green channel.

One of the parts of `fundus_measures`. Vessels are found by the ridge filter of Sato et al. 1998 at
a few widths that are shares of the side, with one threshold for all images; light is first divided
by that of its surroundings, so that exposure and vignetting do not count. It is a measure for
comparing sets, not a segmentation: fine vessels are lost, most of them below 128 px.

S side in pixels, C colours.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, label
from skimage.filters import apply_hysteresis_threshold, sato
from skimage.morphology import skeletonize

from fundusgen.evaluation.landmarks import Mask

Floats = NDArray[np.floating]

# Added to 0 to 255, so that the noise of dark photographs is not blown up.
_NOISE_FLOOR = 30.0
# Of the surroundings that light is divided by, in sides.
_SURROUNDINGS = 1 / 16
# Of the ridges, in sides, and the least in pixels: half a degree is 1/90 of a side.
_SIGMAS, _LEAST_SIGMA_PX = (0.008, 0.013, 0.02), 0.7
# Of the ridge filter's response to the logarithm of light, and of that itself, by eye.
_LOW, _HIGH = 0.018, 0.036
_LEAST_DEPTH = 0.015
# Shorter ridges are spots, and wide ones the fovea or blood, if not long; in sides and in pixels.
_LEAST_LENGTH, _SURE_LENGTH = 0.14, 0.35
_MOST_WIDTH, _MOST_WIDTH_PX = 0.034, 2.8


@dataclass(frozen=True, eq=False)
class Vessels:
    """The vessels of a photograph.

    Attributes:
        mask_SS: Where they are.
        density: Share of the searched field that they cover.
        width: Mean width as a share of the side, area over length; NaN without vessels.
    """

    mask_SS: Mask
    density: float
    width: float


def flat_light(image_SSC: Floats | NDArray[np.uint8], field_SS: Mask) -> Floats:
    """Compute the logarithm of green light over that of its surroundings.

    Args:
        image_SSC: (S, S, 3) from 0 to 255.
        field_SS: Its field of view, not empty.

    Returns:
        (S, S); 0 outside of the field.
    """
    green_SS = image_SSC[..., 1] + _NOISE_FLOOR
    sigma_px = _SURROUNDINGS * len(green_SS)
    cover_SS = np.maximum(gaussian_filter(field_SS.astype(np.float64), sigma_px), 1e-6)
    around_SS = gaussian_filter(green_SS * field_SS, sigma_px) / cover_SS
    for _ in range(3):
        # Again without what stands out, so that a disc or blood casts no halo.
        usual_SS = np.clip(green_SS, 0.8 * around_SS, 1.1 * around_SS)
        around_SS = gaussian_filter(usual_SS * field_SS, sigma_px) / cover_SS
    flat_SS = np.zeros(green_SS.shape)
    flat_SS[field_SS] = np.log(green_SS[field_SS] / around_SS[field_SS])
    return flat_SS


def find_vessels(flat_SS: Floats, inner_SS: Mask) -> Vessels:
    """Find vessels.

    Args:
        flat_SS: From `flat_light`.
        inner_SS: Where to look: the field without its edge, not empty.
    """
    side = len(flat_SS)
    # Bright things are cut off, since their rims would be ridges.
    ridges_SS = sato(
        np.clip(flat_SS, -0.6, 0.05),
        sigmas=[max(_LEAST_SIGMA_PX, sigma * side) for sigma in _SIGMAS],
        black_ridges=True,
    )
    # The filter's response is wider than the vessel: what is not darker than around is none of it.
    dark_SS = inner_SS & (flat_SS < -_LEAST_DEPTH)
    found_SS = apply_hysteresis_threshold(np.where(dark_SS, ridges_SS, 0), _LOW, _HIGH)
    midline_SS = skeletonize(found_SS)
    parts_SS, count = label(found_SS, np.ones((3, 3)))
    lengths = np.bincount(parts_SS[midline_SS], minlength=count + 1)
    areas = np.bincount(parts_SS.ravel(), minlength=count + 1)
    kept = lengths >= _LEAST_LENGTH * side
    is_wide = areas > max(_MOST_WIDTH * side, _MOST_WIDTH_PX) * lengths
    kept &= ~(is_wide & (lengths < _SURE_LENGTH * side))
    kept[0] = False
    mask_SS: Mask = kept[parts_SS]
    length_px, area_px = int(lengths[kept].sum()), int(mask_SS.sum())
    width = area_px / length_px / side if length_px else float("nan")
    return Vessels(mask_SS, area_px / int(inner_SS.sum()), width)
