"""What the camera does to the light of the retina: blur, haze, illumination, tone, noise, frame.

Sixth step of the simulator; takes linear light, gives 8-bit pixels.

S side of the picture in pixels, C colour channel.
"""

import numpy as np
from numpy.typing import NDArray

from fundusgen.phantom.camera import Camera
from fundusgen.phantom.exact import Floats, clip01, exp, hat
from fundusgen.phantom.lesions import Lesions

_STRAY_COLOUR = (0.72, 0.74, 0.34)
_HAZE_COLOUR = (0.42, 0.36, 0.25)
_REFLEX_COLOUR = (0.55, 0.54, 0.56)
# The choroid's light is red; the retina in front of it sends back green and blue on its own.
_GLOW = (0.42, 0.14, 0.0)
# What an old but clear lens does: blue and green it takes, haze and blur (degrees) it adds.
_LENS_LOSS = (0.04, 0.16, 0.74)
_LENS_HAZE = 0.08
_LENS_BLUR_DEG = 0.13
# A pixel gathers the light of its area (a box has an sd of 0.29 pixels), and colour filters and the
# resampling of the photograph spread it a little further.
_PIXEL_BLUR_PX = 0.45


def photograph(
    light_CSS: Floats, camera: Camera, lesions: Lesions, lens_density: float
) -> NDArray[np.uint8]:
    """Turn the retina's light into a photograph.

    Args:
        light_CSS: Reflected light relative to a mean fundus, float32.
        camera: The photograph's camera.
        lesions: For what a cataract does.
        lens_density: What age has done to the lens, 0 to 1.

    Returns:
        (S, S, C) uint8, black outside the field of view.
    """
    size = light_CSS.shape[1]
    rng = np.random.Generator(np.random.PCG64(camera.cloud_seed))
    x, y = _in_field(camera, size)
    px_per_deg = size * camera.field_radius / camera.field_deg
    light = light_CSS * _illumination(rng, camera, x, y)
    light *= 1 + _per_colour(_clouds(rng, x, 0.2) - 0.45 * (x * x + y * y), camera.glow)
    # Blurs one after the other add their squares.
    lens_blur_deg = _LENS_BLUR_DEG * lens_density
    spread = camera.blur_deg * camera.blur_deg + lens_blur_deg * lens_blur_deg
    spread += lesions.blur_deg * lesions.blur_deg
    spread_px = spread * px_per_deg * px_per_deg + _PIXEL_BLUR_PX * _PIXEL_BLUR_PX
    light = blur(light, float(np.sqrt(spread_px)))
    yellow = lesions.yellowing
    colour = np.array(camera.colour) * _through_lens(lens_density, yellow)
    light *= colour.astype(np.float32)[:, None, None]
    haze = 1 - (1 - camera.haze) * (1 - lesions.haze) * (1 - _LENS_HAZE * lens_density)
    _add_stray_light(light, camera, haze, colour, lens_density, x, y)
    picture = _tone(light, camera.contrast)
    picture += _noise(camera, size)
    picture *= frame(camera, size)
    return np.ascontiguousarray(
        np.floor(clip01(picture) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
    )


def blur(planes_CSS: Floats, sigma_px: float) -> Floats:
    """Blur by a Gaussian, edges repeated; as shifted sums, which no library may reorder."""
    reach = int(2.6 * sigma_px + 0.5)
    if reach < 1:
        return planes_CSS
    offsets = np.arange(reach + 1)
    weights = exp(-0.5 * (offsets * offsets) / (sigma_px * sigma_px))
    weights = weights / (2 * np.cumsum(weights)[-1] - weights[0])
    size = planes_CSS.shape[1]
    for axis in (1, 2):
        pad = [(0, 0), (0, 0), (0, 0)]
        pad[axis] = (reach, reach)
        wide = np.pad(planes_CSS, pad, mode="edge")
        if axis == 1:
            shifted = [wide[:, i : i + size] for i in range(2 * reach + 1)]
        else:
            shifted = [wide[:, :, i : i + size] for i in range(2 * reach + 1)]
        total = shifted[reach] * float(weights[0])
        for k in range(1, reach + 1):
            total += (shifted[reach - k] + shifted[reach + k]) * float(weights[k])
        planes_CSS = total
    return planes_CSS


def _illumination(rng: np.random.Generator, camera: Camera, x: Floats, y: Floats) -> Floats:
    square = x * x + y * y
    even = 1 - camera.vignetting * square * (0.5 + 0.5 * square)
    slope = camera.tilt[0] * x + camera.tilt[1] * y
    # Bounded: an eye that moved leaves one side dim, not black.
    tilt = 1 + 0.85 * slope / (1 + np.abs(slope))
    clouds = _clouds(rng, x, 0.5) * camera.patchiness
    clouds = clouds / (1 + 0.5 * np.abs(clouds))
    return np.asarray(np.maximum(even * tilt * (1 + clouds), 0.04).astype(np.float32))


def _per_colour(clouds_SS: Floats, glow: float) -> Floats:
    weights = np.array(_GLOW, dtype=np.float32) * glow
    return np.asarray(np.maximum(clouds_SS, -0.9)[None] * weights[:, None, None])


def _clouds(rng: np.random.Generator, x: Floats, brighter: float) -> Floats:
    """Three broad soft patches, from -1.1 to `brighter` deep."""
    depth = np.zeros((x.shape[1], x.shape[1]), dtype=np.float32)
    row = x.reshape(-1)
    for _ in range(3):
        centre = rng.random(2) * 2 - 1
        width = 0.5 + 0.7 * float(rng.random())
        strength = float(rng.random()) * (1.1 + brighter) - 1.1
        dx = (row - float(centre[0])) * (1 / width)
        dy = (row - float(centre[1])) * (1 / width)
        depth += hat(dx * dx)[None, :] * (hat(dy * dy) * strength)[:, None]
    return np.maximum(depth, -0.9)


def _through_lens(lens_density: float, yellowing: float) -> Floats:
    age = 1 - np.array(_LENS_LOSS) * lens_density
    cataract = np.array([1 - 0.1 * yellowing, 1 - 0.25 * yellowing, 1 - 0.6 * yellowing])
    # The light passes the lens twice.
    return np.asarray(age * age * cataract)


def _add_stray_light(
    light: Floats,
    camera: Camera,
    haze: float,
    colour: Floats,
    lens_density: float,
    x: Floats,
    y: Floats,
) -> None:
    square = x * x + y * y
    radius = np.sqrt(square)
    veil_share = haze * (0.5 + 0.5 * np.minimum(square, 1.2))
    strength, cosine, sine = camera.crescent
    facing = clip01((x * cosine + y * sine) * 0.9 + 0.25)
    rim = clip01((radius - 0.55) * 2.2)
    crescent = rim * rim * facing * facing * strength
    spot_strength, spot_x, spot_y = camera.reflex
    dx, dy = (x - spot_x) * 13, (y - spot_y) * 7
    spot = hat((dx * dx + dy * dy) * 0.5) * spot_strength
    # The haze is lit by the fundus itself and by the flash: half its colour is the picture's.
    for channel in range(3):
        veil = 0.25 * _HAZE_COLOUR[channel] * (1 - _LENS_LOSS[channel] * lens_density)
        veil += 0.85 * float(colour[channel])
        plane = light[channel]
        plane += (veil - plane) * veil_share
        plane += (_STRAY_COLOUR[channel] - plane) * crescent
        if spot_strength:
            plane += (_REFLEX_COLOUR[channel] - plane) * spot


def _tone(light: Floats, contrast: float) -> Floats:
    """Encode linear light: a root for gamma, a slope about mid-grey, a shoulder at the top."""
    encoded = np.sqrt(np.maximum(light, 0.0))
    encoded = (encoded - 0.42) * contrast + 0.42
    over = np.maximum(encoded - 0.86, 0.0) * (1 / 0.14)
    return np.asarray(np.minimum(np.maximum(encoded, 0.0), 0.86) + 0.14 * over / (1 + over))


def _noise(camera: Camera, size: int) -> Floats:
    """Grain as the sum of whole random bytes; coarser pictures average more of it away.

    Below 256 px it falls as white noise does, with the side; above, neighbours share their grain,
    so it grows more slowly.
    """
    raw = np.random.PCG64(camera.noise_seed).random_raw(3 * ((size * size + 7) // 8) * 4)
    grain = np.asarray(raw, dtype="<u8").view(np.uint8).reshape(4, 3, -1)[:, :, : size * size]
    total = grain[0].astype(np.int16) + grain[1] + grain[2] + grain[3] - 510
    sd = camera.noise * (size / 256 if size < 256 else float(np.sqrt(size / 256)))
    noise = total.reshape(3, size, size).astype(np.float32) * (sd / 147.8)
    # Neighbouring colours share part of it, as after a Bayer filter.
    shared = (noise[0] + noise[1] + noise[2]) * 0.4
    return np.asarray(noise * 0.7 + shared[None])


def frame(camera: Camera, size: int) -> Floats:
    """How much of each pixel is inside the field of view: (S, S), 0 to 1.

    Args:
        camera: With its field, cut and notch.
        size: S, side of the picture in pixels.
    """
    x, y = _in_field(camera, size)
    per_radius = size * camera.field_radius / 2
    radius = np.sqrt(x * x + y * y)
    share = clip01((1 - radius) * per_radius + 0.5)
    share = share * clip01((camera.cut - np.abs(y)) * per_radius + 0.5)
    if camera.notch:
        dx, dy = x - 0.765, y + 0.635
        share = np.maximum(share, clip01((0.05 - np.sqrt(dx * dx + dy * dy)) * per_radius + 0.5))
    return share


def _in_field(camera: Camera, size: int) -> tuple[Floats, Floats]:
    """Where pixels are, in radii of the field: a row and a column."""
    pixels = (((np.arange(size) + 0.5) / size * 2 - 1) / camera.field_radius).astype(np.float32)
    return pixels[None, :], pixels[:, None]
