"""What can be read off a photograph: the simulator's parameters as one vector of numbers.

The targets of the vote space (`fundusgen.models.encoder`): a network that gives these back from
pictures of phantoms maps a photograph into the space in which phantoms are varied.

D parameters.
"""

import math

import numpy as np

from fundusgen.phantom.exact import Floats
from fundusgen.phantom.looks import LOOKS
from fundusgen.phantom.render import Phantom

_CAMERA = (
    "log_red", "log_green", "log_blue", "field_deg", "centre_x", "centre_y", "field_radius", "cut",
    "log_blur", "tilt_x", "tilt_y", "vignetting", "patchiness", "haze", "glow", "crescent",
    "crescent_x", "crescent_y", "reflex", "contrast",
)  # fmt: skip
_EYE = (
    "pigment", "tessellation", "disc_x", "disc_y", "disc_radius", "cup_ratio", "disc_pallor",
    "macula_radius", "macula_depth", "nerve_fibre_sheen", "mottling", "calibre", "artery_scale",
    "tortuosity", "lens_density", "nicking", "lens_haze", "lens_blur", "yellowing", "new_vessels",
)  # fmt: skip
PARAMETERS: tuple[str, ...] = (*_CAMERA, *_EYE, *(f"{kind}_area" for kind in LOOKS))
# Keeps the logarithms of what may be zero finite.
_LEAST = 1e-3


def parameters_of(phantom: Phantom) -> Floats:
    """Return what a photograph of a phantom, served as a right eye, shows of its parameters.

    Not for drawing: logarithms differ between machines in the last bit.

    Returns:
        (D,) float64 in the order of `PARAMETERS`, each in its own unit.
    """
    values = [*_camera(phantom), *_eye(phantom), *_lesions(phantom)]
    return np.array(values, dtype=np.float64)


def _camera(phantom: Phantom) -> list[float]:
    camera = phantom.camera
    stray, stray_x, stray_y = camera.crescent
    # Left eyes are served mirrored, and what lies to one side of the picture with them.
    side = 1.0 if phantom.anatomy.eye == "R" else -1.0
    tilt_x, tilt_y = camera.tilt
    return [
        *(math.log(value + _LEAST) for value in camera.colour),
        camera.field_deg, *camera.centre_deg, camera.field_radius, camera.cut,
        math.log(camera.blur_deg + phantom.lesions.blur_deg + _LEAST), side * tilt_x, tilt_y,
        camera.vignetting, camera.patchiness, camera.haze, camera.glow, stray,
        stray * side * stray_x, stray * stray_y, camera.reflex[0], camera.contrast,
    ]  # fmt: skip


def _eye(phantom: Phantom) -> list[float]:
    anatomy, lesions = phantom.anatomy, phantom.lesions
    traits, disc = anatomy.traits, anatomy.disc
    return [
        traits.pigment, traits.tessellation + lesions.tessellation, disc.x_deg, disc.y_deg,
        disc.radius_x_deg, disc.cup_ratio if lesions.cup_ratio is None else lesions.cup_ratio,
        disc.pallor + lesions.disc_pallor, anatomy.macula_radius_deg, anatomy.macula_depth,
        anatomy.nerve_fibre_sheen, anatomy.mottling, traits.calibre,
        traits.artery_to_vein * lesions.artery_scale, traits.tortuosity, traits.lens_density,
        lesions.nicking, lesions.haze, lesions.blur_deg, lesions.yellowing,
        float(lesions.new_vessels is not None),
    ]  # fmt: skip


def _lesions(phantom: Phantom) -> list[float]:
    spots = phantom.lesions.spots
    return [
        math.log1p(float(np.sum(np.prod(spots[kind].radius_N2, axis=1)))) if kind in spots else 0.0
        for kind in LOOKS
    ]
