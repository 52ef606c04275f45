"""From a phantom's parameters to its photograph: the one function that makes pixels.

Guarantee: `render` is a pure function of its arguments, and its bytes do not depend on the
machine. Every operation that decides a pixel is one of + - * / sqrt, a comparison, a rounding or
an integer operation on IEEE 754 numbers, elementwise or summed in a fixed order; so there is no
last bit that a processor's SIMD level or a libm could change, and rounding to 8 bits has nothing
to hide. What the guarantee rests on besides: `numpy.random.PCG64` and `SeedSequence` (their
streams are frozen by numpy's policy) and the rule of `Generator.random` (the top 53 bits of a raw
draw). The golden digests in the tests would show a change in either. A processor without IEEE
754 double precision, or a numpy compiled with fast-math, is outside the guarantee.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fundusgen.errors import DataError
from fundusgen.phantom.anatomy import Anatomy
from fundusgen.phantom.camera import Camera
from fundusgen.phantom.exact import clip01
from fundusgen.phantom.ink import pour_vessels
from fundusgen.phantom.lesions import Lesions
from fundusgen.phantom.optics import frame, photograph
from fundusgen.phantom.retina import draw_retina
from fundusgen.phantom.view import View

_SIZES_PX = (16, 2048)


@dataclass(frozen=True, eq=False)
class Phantom:
    """One photograph without a patient behind it, as parameters."""

    anatomy: Anatomy
    lesions: Lesions
    camera: Camera

    @property
    def condition(self) -> str:
        """The condition that was drawn."""
        return self.lesions.condition


def render(phantom: Phantom, size_px: int) -> NDArray[np.uint8]:
    """Render a phantom.

    Args:
        phantom: Its parameters.
        size_px: Side of the picture, 16 to 2048.

    Returns:
        (size_px, size_px, 3) uint8 RGB, black outside the field of view. Another size shows the
        same eye; only the sensor's noise differs.

    Raises:
        DataError: The size is out of range.
    """
    view = _view(phantom, size_px)
    retina = draw_retina(phantom.anatomy, phantom.lesions, view)
    lens_density = phantom.anatomy.traits.lens_density
    return photograph(retina.light_CSS, phantom.camera, phantom.lesions, lens_density)


def render_as_right(phantom: Phantom, size_px: int) -> NDArray[np.uint8]:
    """Render a phantom as a right eye, as models and measures are shown all eyes.

    Arguments, result and errors as of `render`; a left eye is in the mirror.
    """
    image_SSC = render(phantom, size_px)
    return image_SSC[:, ::-1] if phantom.anatomy.eye == "L" else image_SSC


def lesion_masks(phantom: Phantom, size_px: int) -> dict[str, NDArray[np.uint8]]:
    """Render the ground truth of a phantom's lesions.

    Args:
        phantom: Its parameters.
        size_px: Side of the masks, 16 to 2048.

    Returns:
        (size_px, size_px) uint8 for each kind present: cover from 0 to 255, nothing outside the
        field of view or behind the disc. The kinds are those of `fundusgen.phantom.looks.LOOKS`,
        and `new_vessels` for tufts and IRMA.

    Raises:
        DataError: The size is out of range.
    """
    view = _view(phantom, size_px)
    covers = dict(draw_retina(phantom.anatomy, phantom.lesions, view).lesions)
    tufts = phantom.lesions.new_vessels
    if tufts is not None:
        arteries, veins = pour_vessels(tufts, view, np.ones_like(tufts.radius_VK))
        covers["new_vessels"] = clip01(arteries + veins)
    seen_SS = frame(phantom.camera, size_px)
    return {
        kind: np.floor(cover * seen_SS * 255 + 0.5).astype(np.uint8)
        for kind, cover in covers.items()
    }


def check_size(size_px: int) -> None:
    """Refuse a size that the simulator was not made for.

    Raises:
        DataError: The size is out of range.
    """
    low, high = _SIZES_PX
    if not low <= size_px <= high:
        raise DataError(
            f"a phantom of {size_px} px was asked for",
            expected=f"a size from {low} to {high} px",
            remedy="Choose a size in this range",
        )


def _view(phantom: Phantom, size_px: int) -> View:
    check_size(size_px)
    camera = phantom.camera
    return View(
        size_px=size_px,
        px_per_deg=size_px * camera.field_radius / camera.field_deg,
        mirror=1.0 if phantom.anatomy.eye == "R" else -1.0,
        centre_deg=camera.centre_deg,
    )
