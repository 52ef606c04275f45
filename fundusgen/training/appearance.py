"""How photographs look, whatever is on them: light, colour and texture in 24 numbers an image.

Phantoms get it wrong in a way that votes cannot mend: a vote chooses among the appearances that the
simulator has. What patients' photographs have is little enough to be asked for (`privacy.moments`),
and phantoms are developed until theirs has the same mean and variance. That is a change of what a
camera does and not of what it sees, so diseases and anatomy stay.

Of each colour, as the logarithm of its ratio to the rest of the range:
- light, 4 numbers: its mean, and its change with the square of the radius, to the right and down;
- texture, 4 numbers: logarithms of the size of what is left, by how fine it is.

Axis letters: N images, S side, A the 24 numbers, L the 4 of light, T the 4 of texture, C colours.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from fundusgen.privacy.moments import Moments

_LIGHTS, _TEXTURES, _COLOURS = 4, 4, 3
NUMBERS = (_LIGHTS + _TEXTURES) * _COLOURS
# Pixels darker than this in all colours are outside the field of view.
_DARK = 12
# Keeps the logarithms of black and white finite.
_ENDS = 4.0
# Widths that part textures by how fine they are, in 64ths of the side.
_WIDTHS = (1.0, 2.0, 4.0)
_LEAST_SQUARE = 1e-4
# An image's texture grows or shrinks by a factor of exp(1.5) at most.
_MOST_GAIN = 1.5
# Slopes of a development lie between this and its inverse.
_LEAST_SLOPE = 0.25
# How far phantoms are taken to be from patients before anything is known, in public units: with
# noise of this size, half of what it says is believed.
_EXPECTED = 0.5
# Of the distance in texture, that share is taken. The rest may be what is on the pictures: who has
# more lesions, or other vessels, has more texture, and a camera should not make up for it. On
# phantom hospitals all of it makes phantoms worse than none, half of it no worse
# (docs/results/vote-settings.md).
_OF_TEXTURE = 0.5
_PIXELS_AT_ONCE = 1 << 20

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Units:
    """Public units of the 24 numbers: mean and standard deviation among phantoms.

    Attributes:
        mean_A: (24,) finite.
        deviation_A: (24,) finite, above zero.
    """

    mean_A: Floats
    deviation_A: Floats

    def of(self, appearance_NA: Floats) -> Floats:
        """Bring the numbers into these units."""
        with np.errstate(over="ignore"):
            in_units_NA: Floats = (appearance_NA - self.mean_A) / self.deviation_A
        return in_units_NA


@dataclass(frozen=True, eq=False)
class Development:
    """What becomes of an image's 24 numbers: each is stretched and moved by itself.

    Attributes:
        slope_A: (24,).
        offset_A: (24,).
    """

    slope_A: Floats
    offset_A: Floats

    def developed(
        self, images_NSSC: NDArray[np.uint8], small_NSSC: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Develop images.

        Args:
            images_NSSC: (N, S, S, 3) uint8, right eyes; what is black around them stays.
            small_NSSC: The same at the size that the development was found for, where they are of
                another: what is measured on an image depends on its size.

        Returns:
            (N, S, S, 3) uint8.
        """
        measured_NSSC = images_NSSC if small_NSSC is None else small_NSSC
        parts = [images_NSSC[:0]]
        for chosen in _batches(len(images_NSSC), images_NSSC.shape[1]):
            appearance_NA = appearance_of(measured_NSSC[chosen])
            change_NA = appearance_NA * self.slope_A + self.offset_A - appearance_NA
            parts.append(_changed(images_NSSC[chosen], change_NA))
        return np.concatenate(parts)


def appearance_of(images_NSSC: NDArray[np.uint8]) -> Floats:
    """Measure images.

    Guarantee: a row is a function of its image alone, up to the rounding of float64; where that
        matters, pass the images of one patient only.
    Edge cases: an image that is black all over has finite numbers too.

    Args:
        images_NSSC: (N, S, S, 3) uint8, right eyes.

    Returns:
        (N, 24) float64: light of each colour, then texture.
    """
    parts = [np.zeros((0, NUMBERS))]
    for chosen in _batches(len(images_NSSC), images_NSSC.shape[1]):
        light_NLC, textures_NTSSC, inside_NSS = _parted(images_NSSC[chosen])
        count_N = np.maximum(inside_NSS.sum(axis=(1, 2)), 1)
        squares_NTC = (textures_NTSSC**2).sum(axis=(2, 3)) / count_N[:, None, None]
        sizes_NTC = 0.5 * np.log(squares_NTC + _LEAST_SQUARE)
        flat = [numbers.reshape(len(numbers), -1) for numbers in (light_NLC, sizes_NTC)]
        parts.append(np.concatenate(flat, axis=1))
    return np.concatenate(parts)


def units_of(appearance_NA: Floats) -> Units:
    """Take the units from what public images look like.

    Args:
        appearance_NA: (N, 24) of phantoms, at least one.
    """
    return Units(appearance_NA.mean(axis=0), appearance_NA.std(axis=0) + 1e-3)


def development(phantoms_NA: Floats, wanted: Moments, units: Units) -> Development:
    """Find what gives phantoms the mean and the variance that patients' photographs have.

    Light is matched, and texture half the way.

    The less is known, the less is changed: by the noise in a mean or a variance, its distance from
    the phantoms' own is shortened, as for a prior of Gaussians.

    Args:
        phantoms_NA: (N, 24) of phantoms that are to be developed, at least two.
        wanted: Of patients, in `units`.
        units: Public.
    """
    phantoms_NA = units.of(phantoms_NA)
    mean_A = phantoms_NA.mean(axis=0)
    variance_A = phantoms_NA.var(axis=0) + 1e-6
    taken_A = np.repeat([1.0, _OF_TEXTURE], [_LIGHTS * _COLOURS, _TEXTURES * _COLOURS])
    powers_A = taken_A * _belief(wanted.variance_deviation)
    slope_A = np.sqrt(wanted.variance_D / variance_A) ** powers_A
    slope_A = slope_A.clip(_LEAST_SLOPE, 1 / _LEAST_SLOPE)
    moved_A = mean_A + (wanted.mean_D - mean_A) * taken_A * _belief(wanted.mean_deviation)
    offset_A = units.mean_A * (1 - slope_A) + units.deviation_A * (moved_A - slope_A * mean_A)
    return Development(slope_A, offset_A)


def _belief(deviation: float) -> float:
    return 1 / (1 + (deviation / _EXPECTED) ** 2)


def _changed(images_NSSC: NDArray[np.uint8], change_NA: Floats) -> NDArray[np.uint8]:
    count = len(images_NSSC)
    _, textures_NTSSC, inside_NSS = _parted(images_NSSC)
    split = _LIGHTS * _COLOURS
    light_NLC = change_NA[:, :split].reshape(count, _LIGHTS, _COLOURS)
    gain_NTC = change_NA[:, split:].reshape(count, _TEXTURES, _COLOURS)
    gain_NTC = np.exp(gain_NTC.clip(-_MOST_GAIN, _MOST_GAIN)) - 1
    ratios_NSSC = _log_ratios(images_NSSC)
    ratios_NSSC += np.einsum("hwl,nlc->nhwc", _shapes(images_NSSC.shape[1]), light_NLC)
    ratios_NSSC += np.einsum("nthwc,ntc->nhwc", textures_NTSSC, gain_NTC)
    ratios_NSSC = np.exp(ratios_NSSC.clip(-20, 20))
    levels_NSSC = ((255 + _ENDS) * ratios_NSSC - _ENDS) / (1 + ratios_NSSC)
    levels_NSSC[~inside_NSS] = images_NSSC[~inside_NSS]
    changed_NSSC: NDArray[np.uint8] = levels_NSSC.round().clip(0, 255).astype(np.uint8)
    return changed_NSSC


def _parted(images_NSSC: NDArray[np.uint8]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Part images into light (N, L, C) and textures (N, T, S, S, C), inside the field of view."""
    side = images_NSSC.shape[1]
    inside_NSS = images_NSSC.max(axis=3) > _DARK
    weight_NSS = inside_NSS.astype(np.float64)
    shapes_SSL, ratios_NSSC = _shapes(side), _log_ratios(images_NSSC)
    # Least squares of the pixels inside; a little of a ridge, for images that have none.
    gram_NLL = np.einsum("nhw,hwl,hwk->nlk", weight_NSS, shapes_SSL, shapes_SSL, optimize=True)
    right_NLC = np.einsum("nhw,hwl,nhwc->nlc", weight_NSS, shapes_SSL, ratios_NSSC, optimize=True)
    light_NLC = np.linalg.solve(gram_NLL + 1e-3 * np.eye(_LIGHTS), right_NLC)
    left_NSSC = ratios_NSSC - np.einsum("hwl,nlc->nhwc", shapes_SSL, light_NLC)
    left_NSSC *= weight_NSS[..., None]
    coarser, textures = left_NSSC, []
    for width in _WIDTHS:
        sigma = width * side / 64
        share_NSS = gaussian_filter(weight_NSS, (0, sigma, sigma)).clip(1e-3)
        blurred_NSSC = gaussian_filter(left_NSSC, (0, sigma, sigma, 0))
        blurred_NSSC *= (weight_NSS / share_NSS)[..., None]
        textures.append(coarser - blurred_NSSC)
        coarser = blurred_NSSC
    return light_NLC, np.stack([*textures, coarser], axis=1), inside_NSS


def _log_ratios(images_NSSC: NDArray[np.uint8]) -> Floats:
    levels_NSSC = images_NSSC.astype(np.float64)
    ratios_NSSC: Floats = np.log((levels_NSSC + _ENDS) / (255 + _ENDS - levels_NSSC))
    return ratios_NSSC


def _shapes(side: int) -> Floats:
    """The shapes of light: constant, square of the radius, to the right, down: (S, S, L)."""
    axis_S = (np.arange(side) + 0.5) / side * 2 - 1
    down_SS, right_SS = np.meshgrid(axis_S, axis_S, indexing="ij")
    radius_SS = right_SS**2 + down_SS**2 - 0.5
    return np.stack([np.ones_like(right_SS), radius_SS, right_SS, down_SS], axis=-1)


def _batches(count: int, side: int) -> Iterator[slice]:
    at_once = max(1, _PIXELS_AT_ONCE // side**2)
    for start in range(0, count, at_once):
        yield slice(start, start + at_once)
