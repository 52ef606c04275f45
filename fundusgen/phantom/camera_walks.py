"""Small random steps of a photograph's camera: colour, light, sharpness, framing, noise.

Beside the simulator's third step, for `variation`. How far a number walks is set by the range of
the camera's style; where it turns back, by what photographs of any style look like. So a chain of
steps may leave the ranges of its style, for a hospital whose camera is none of ours.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from fundusgen.phantom.anatomy import Anatomy
from fundusgen.phantom.camera import (
    Camera,
    CameraStyle,
    Colour,
    camera_style,
    draw_crescent,
    draw_reflex,
)
from fundusgen.phantom.exact import bell, bells, cos_sin, exp, whole
from fundusgen.phantom.walks import Walk, growth_sd, moved, spread, walked

# Lowest and highest values; the width of a step comes from the camera's style.
CAMERA_BOUNDS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "field_deg": (25.0, 60.0),
        "field_radius": (0.88, 1.0),
        "cut": (0.75, 0.995),
        "blur_deg": (0.03, 2.5),
        "vignetting": (0.0, 0.95),
        "haze": (0.0, 0.9),
        "glow": (0.0, 1.2),
        "contrast": (0.85, 1.35),
        "noise": (0.001, 0.02),
    }
)
COLOUR_BOUNDS = (0.0005, 2.0)
CENTRE_X_DEG, CENTRE_Y_DEG = (-6.0, 22.0), (-9.0, 9.0)
TILT_BOUNDS = (-2.5, 2.5)
PATCHINESS_BOUNDS = (0.0, 1.5)
CRESCENT_BOUNDS, REFLEX_BOUNDS = (0.0, 0.9), (0.0, 0.7)
# A step is at least this share of the way between the bounds, where a style leaves no range.
_LEAST_SD = 0.02
# At full strength: how far stray light turns around the rim, and the lens' spot wanders.
_CRESCENT_TURNS = 0.15
_REFLEX_SHIFT = 0.06


def walk_camera(
    rng: np.random.Generator, camera: Camera, before: Anatomy, after: Anatomy, strength: float
) -> Camera:
    """Move a photograph's camera; its style and notch stay, and a full circle stays one.

    Args:
        rng: Source of every draw.
        camera: Where to start.
        before: The eye it looked at.
        after: What the eye has become; the operator's aim follows its disc.
        strength: 0 to 1.
    """
    style = camera_style(camera.style)
    calm = moved(rng, camera, _walks(style, camera), strength)
    uneven = (style.unevenness[0] + style.unevenness[1]) / 2
    tilt = Walk(0.9 * uneven, *TILT_BOUNDS)
    patches = Walk(0.25 * uneven, *PATCHINESS_BOUNDS)
    cloud_seed, noise_seed = whole(rng, 0, 2**31 - 1), whole(rng, 0, 2**31 - 1)
    is_new_cloud = float(rng.random()) < strength
    return replace(
        calm,
        colour=_colour(rng, camera.colour, style, strength),
        centre_deg=_centre(rng, camera, style, before, after, strength),
        tilt=(
            walked(rng, camera.tilt[0], tilt, strength),
            walked(rng, camera.tilt[1], tilt, strength),
        ),
        patchiness=walked(rng, camera.patchiness, patches, strength),
        crescent=_crescent(rng, camera.crescent, style, strength),
        reflex=_reflex(rng, camera.reflex, style, strength),
        cloud_seed=cloud_seed if is_new_cloud else camera.cloud_seed,
        noise_seed=noise_seed,
    )


def _walks(style: CameraStyle, camera: Camera) -> dict[str, Walk]:
    walks = {}
    for name, (low, high) in CAMERA_BOUNDS.items():
        if name != "cut" or camera.cut < 1.0:
            sd = max(spread(getattr(style, name)), _LEAST_SD * (high - low))
            walks[name] = Walk(sd, low, high)
    return walks


def _colour(
    rng: np.random.Generator, colour: Colour, style: CameraStyle, strength: float
) -> Colour:
    sds = np.array([growth_sd(sd) for sd in style.colour_spread])
    light, red, blue = exp(bells(rng, 0.0, 1.0, 3) * sds * strength).tolist()
    low, high = COLOUR_BOUNDS
    return (
        min(max(colour[0] * light * red, low), high),
        min(max(colour[1] * light, low), high),
        min(max(colour[2] * light * blue, low), high),
    )


def _centre(
    rng: np.random.Generator,
    camera: Camera,
    style: CameraStyle,
    before: Anatomy,
    after: Anatomy,
    strength: float,
) -> tuple[float, float]:
    aim = (style.centre[0] + style.centre[1]) / 2
    x = camera.centre_deg[0] + aim * (after.disc.x_deg - before.disc.x_deg)
    y = camera.centre_deg[1] + aim * (after.disc.y_deg - before.disc.y_deg)
    across = spread(style.centre) * after.disc.x_deg + 0.9
    return (
        walked(rng, x, Walk(across, *CENTRE_X_DEG), strength),
        walked(rng, y, Walk(0.9, *CENTRE_Y_DEG), strength),
    )


def _crescent(
    rng: np.random.Generator, crescent: Colour, style: CameraStyle, strength: float
) -> Colour:
    brightness, cosine, sine = crescent
    fresh = draw_crescent(rng, style)
    turn = bells(rng, 0.0, _CRESCENT_TURNS, 1) * strength
    along, across = (float(part[0]) for part in cos_sin(turn))
    walk = Walk(spread(style.crescent), *CRESCENT_BOUNDS)
    brighter = walked(rng, brightness, walk, strength)
    if float(rng.random()) < strength:
        return fresh
    return (
        brighter if brightness else 0.0,
        cosine * along - sine * across,
        cosine * across + sine * along,
    )


def _reflex(
    rng: np.random.Generator, reflex: Colour, style: CameraStyle, strength: float
) -> Colour:
    brightness, x, y = reflex
    fresh = draw_reflex(rng, style)
    brighter = walked(rng, brightness, Walk(0.13, *REFLEX_BOUNDS), strength)
    x += bell(rng, 0.0, _REFLEX_SHIFT) * strength
    y += bell(rng, 0.0, _REFLEX_SHIFT) * strength
    if float(rng.random()) < strength:
        return fresh
    return (brighter if brightness else 0.0, x, y)
