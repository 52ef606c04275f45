"""Where the field of view is in a framed photograph, and where the optic disc.

Two of the parts of `fundus_measures`. The field is what is lit. The disc is found as a bright
round spot: brighter in its middle than in every direction around it, which glare at the rim is
seldom, and near to vessels, which exudates are seldom. No place is preferred, so that a disc that a
generator puts elsewhere is found there. Of photographs in which somebody would see the disc, about
one in ten has something else taken for it.

N images, S side in pixels, C colours, K kernels, F side of padded images in frequencies.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft2, rfft2
from scipy.ndimage import binary_fill_holes, binary_opening, distance_transform_edt, label
from scipy.ndimage import gaussian_filter as gaussian

Mask = NDArray[np.bool_]
Floats = NDArray[np.floating]

# The side at which discs are looked for, whatever that of the photograph: about 9 px a disc.
DISC_SIDE_PX = 64
# A brightness (0 to 255) and a share of the bright parts' from which a pixel counts as lit.
_DARK, _LIT_SHARE = 8, 0.1

# Diameters looked for, in sides: discs are about 1/7 of a field of 45 degrees, less in wider ones.
_DIAMETERS = (0.09, 0.115, 0.145, 0.18)
_SECTORS = 6
# How much the brightest sector counts, and the logarithm of light by which a disc is brighter: of a
# few values, those that find most discs of public photographs and of phantoms in their place.
_BRIGHTEST, _LEAST_CONTRAST = 0.7, 0.07
# Where right eyes have their discs: from photographs centred on the disc to ones on the macula.
_PLACE_X, _PLACE_Y = (0.45, 1.0), (0.25, 0.75)


@dataclass(frozen=True)
class FieldShape:
    """The field of view against the circle that framing gives.

    Attributes:
        area: Its area as a share of the inscribed circle's.
        cut: Share of the circle's height that is missing at top and bottom together.
        fit: Overlap (intersection over union) with the circle, cut as it is; 1 is a clean outline.
    """

    area: float
    cut: float
    fit: float


@dataclass(frozen=True)
class Disc:
    """An optic disc; sizes and places as shares of the picture's side.

    Attributes:
        x: From the left edge.
        y: From the top edge.
        diameter: Of a circle of its area.
        contrast: Logarithm of its light over that around it.
    """

    x: float
    y: float
    diameter: float
    contrast: float

    @property
    def is_in_place(self) -> bool:
        """Whether it is where right eyes have it: on the right or in the middle, not far up."""
        return _PLACE_X[0] <= self.x <= _PLACE_X[1] and _PLACE_Y[0] <= self.y <= _PLACE_Y[1]


def field_mask(image_SSC: Floats | NDArray[np.uint8]) -> Mask:
    """Mark the field of view (S, S): the largest part that is lit, without holes."""
    light_SS = image_SSC.max(axis=2)
    lit_SS = light_SS > max(_DARK, _LIT_SHARE * float(np.percentile(light_SS, 95)))
    # Single rows and columns at the border, which compression leaves, are no field.
    parts_SS, count = label(binary_opening(lit_SS))
    if not count:
        return np.zeros(lit_SS.shape, np.bool_)
    largest = 1 + int(np.argmax(np.bincount(parts_SS.ravel())[1:]))
    filled_SS: Mask = binary_fill_holes(parts_SS == largest)
    return filled_SS


def inner_field(field_SS: Mask, margin_px: float) -> Mask:
    """Mark what is in the field and further from its edge than a margin."""
    depth_SS = distance_transform_edt(np.pad(field_SS, 1))[1:-1, 1:-1]
    inner_SS: Mask = depth_SS > margin_px
    return inner_SS


def field_shape(field_SS: Mask) -> FieldShape:
    """Measure the outline; an empty field has no area, is wholly cut and fits nothing."""
    side = len(field_SS)
    circle_SS = _circle(side)
    # The middle third of columns, where the circle itself hardly curves, says what is cut.
    rows = np.flatnonzero(field_SS[:, side // 3 : side - side // 3].mean(axis=1) > 0.5)
    if not len(rows):
        return FieldShape(0.0, 1.0, 0.0)
    expected_SS = circle_SS.copy()
    expected_SS[: rows[0]] = expected_SS[rows[-1] + 1 :] = False
    # Up to where even the middle third curves away, nothing is cut.
    whole = np.flatnonzero(circle_SS[:, side // 3 : side - side // 3].mean(axis=1) > 0.5)
    cut = max(1 - (rows[-1] - rows[0] + 1) / len(whole), 0.0)
    overlap = float((field_SS & expected_SS).sum() / (field_SS | expected_SS).sum())
    return FieldShape(float(field_SS.sum() / circle_SS.sum()), cut, overlap)


def find_disc(
    image_SSC: Floats | NDArray[np.uint8], field_SS: Mask, vessels_SS: Mask
) -> Disc | None:
    """Find the optic disc.

    Args:
        image_SSC: (S, S, 3) from 0 to 255, with S equal to `DISC_SIDE_PX`.
        field_SS: Its field of view.
        vessels_SS: Its vessels, as `fundusgen.evaluation.vessels.find_vessels` gives them.

    Returns:
        The best candidate, or None where none stands out: photographs without a disc, too blurred,
        or of one colour.

    Raises:
        ValueError: The image has another size.
    """
    if image_SSC.shape[:2] != (DISC_SIDE_PX, DISC_SIDE_PX):
        raise ValueError(f"discs are looked for at {DISC_SIDE_PX} px, not {image_SSC.shape[:2]}")
    light_SS = np.log(0.3 * image_SSC[..., 0] + 0.7 * image_SSC[..., 1] + 8.0)
    contrast_KSS = _contrasts(light_SS, field_SS)
    near_SS = gaussian(vessels_SS.astype(np.float64), 0.08 * DISC_SIDE_PX)
    # A spot without vessels about it has to be twice as clear.
    score_KSS = contrast_KSS * (0.5 + 0.5 * np.minimum(near_SS / 0.12, 1))
    score_KSS[:, ~inner_field(field_SS, 0.04 * DISC_SIDE_PX)] = -np.inf
    size, row, column = np.unravel_index(int(np.argmax(score_KSS)), score_KSS.shape)
    if score_KSS[size, row, column] < _LEAST_CONTRAST:
        return None
    contrast = float(contrast_KSS[size, row, column])
    return _outlined(light_SS, field_SS, (int(row), int(column)), _DIAMETERS[size], contrast)


def _contrasts(light_SS: Floats, field_SS: Mask) -> Floats:
    """Light in the middle less that around it, at each place and diameter (K, S, S).

    Around it: between the mean of the sectors and the brightest one, so that edges and bands, which
    are bright on one side too, count little. Sectors outside the field are left out.
    """
    side = len(light_SS)
    kernels_KFF, sizes_K = _disc_kernels(side)
    padded = kernels_KFF.shape[1]
    weight = rfft2(field_SS.astype(np.float32), (padded, padded))
    light = rfft2((light_SS * field_SS).astype(np.float32), (padded, padded))
    cover_KSS = irfft2(weight * kernels_KFF, (padded, padded))[:, :side, :side]
    sum_KSS = irfft2(light * kernels_KFF, (padded, padded))[:, :side, :side]
    shape = (len(_DIAMETERS), 1 + _SECTORS, side, side)
    mean = (sum_KSS / np.maximum(cover_KSS, 0.5)).reshape(shape)
    seen = (cover_KSS / sizes_K[:, None, None]).reshape(shape)
    inside = seen[:, 1:] > 0.35
    count = inside.sum(axis=1)
    brightest = np.where(inside, mean[:, 1:], -np.inf).max(axis=1)
    around = np.where(inside, mean[:, 1:], 0).sum(axis=1) / np.maximum(count, 1)
    surroundings = _BRIGHTEST * brightest + (1 - _BRIGHTEST) * around
    contrast_KSS: Floats = mean[:, 0] - surroundings
    contrast_KSS[(count < _SECTORS // 2) | (seen[:, 0] < 0.55)] = -np.inf
    return contrast_KSS


def _outlined(
    light_SS: Floats, field_SS: Mask, place: tuple[int, int], diameter: float, contrast: float
) -> Disc:
    """Take what is joined to the place and brighter than halfway between it and around it."""
    side = len(light_SS)
    rows, columns = np.indices(light_SS.shape)
    away_SS = np.hypot(rows - place[0], columns - place[1]) / (diameter * side / 2)
    middle = light_SS[field_SS & (away_SS <= 0.9)].mean()
    around = light_SS[field_SS & (away_SS > 1.2) & (away_SS <= 1.85)].mean()
    bright_SS = field_SS & (away_SS <= 1.85) & (light_SS > (middle + around) / 2)
    parts_SS, _ = label(bright_SS | (away_SS < 0.4))
    own_SS = parts_SS == parts_SS[place]
    rows_N, columns_N = np.nonzero(own_SS)
    return Disc(
        x=float(columns_N.mean() + 0.5) / side,
        y=float(rows_N.mean() + 0.5) / side,
        diameter=float(np.sqrt(len(rows_N) * 4 / np.pi)) / side,
        contrast=contrast,
    )


@lru_cache(maxsize=4)
def _disc_kernels(side: int) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
    """Frequencies (K, F, F/2 + 1) of middles and sectors, and how many pixels each has."""
    reach = int(np.ceil(side * max(_DIAMETERS) * 0.95))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    angle = np.arctan2(rows, columns) / (2 * np.pi) + 0.5
    sector = np.minimum((angle * _SECTORS).astype(np.int64), _SECTORS - 1)
    kernels = []
    for diameter in _DIAMETERS:
        away = np.hypot(rows, columns) / (side * diameter / 2)
        ring = (away > 1.2) & (away <= 1.85)
        kernels += [away <= 0.9, *(ring & (sector == number) for number in range(_SECTORS))]
    stack = np.array(kernels, np.float32)
    padded = np.zeros((len(stack), side + 2 * reach, side + 2 * reach), np.float32)
    # Correlation with the kernel's middle at the origin: mirrored, and wrapped around it.
    padded[:, : 2 * reach + 1, : 2 * reach + 1] = stack[:, ::-1, ::-1]
    frequencies = rfft2(np.roll(padded, (-reach, -reach), (1, 2)))
    return frequencies, stack.sum(axis=(1, 2))


@lru_cache(maxsize=8)
def _circle(side: int) -> Mask:
    offset = np.arange(side) + 0.5 - side / 2
    circle_SS: Mask = np.hypot(offset[:, None], offset) <= side / 2
    return circle_SS
