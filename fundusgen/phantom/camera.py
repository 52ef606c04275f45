"""How a fundus camera and its operator turn an eye into a photograph, as parameters.

Third step of the simulator. A `CameraStyle` is a hospital's device and habits, as ranges; an
`Exposure` is what both photographs of a patient share; a `Camera` is one photograph. Styles show
photographs as `fundusgen.data` frames them: the field fills the width of the picture.

Where the numbers come from: the styles, and the priors of the other modules that cite nothing,
were set by hand, by eye beside sheets of public photographs, with one distance between collections
(KID) as a check, to span what such collections look like; none reproduces a named device. Tone
curves and the pixel's blur (`fundusgen.phantom.optics`) were chosen from a handful of values by
that distance. The collections are public; no patient of a study may serve for this, since a prior
that had learned from them would not be public.

Angles are degrees of visual angle; distances in the picture are in radii of the field of view.
Colours are linear light, 0 to 1, red green blue.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from fundusgen.errors import DataError
from fundusgen.phantom.anatomy import Anatomy
from fundusgen.phantom.exact import bell, bells, cos_sin, exp, uniform, whole

Range = tuple[float, float]
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class CameraStyle:
    """A hospital's camera and habits: ranges from which photographs are drawn.

    Attributes:
        colour: Mean colour of a fundus as sRGB values 0 to 255, seen through a clear lens.
        colour_spread: Sd of the logarithm of exposure, red over green and blue over green, all in
            linear light.
        field_deg: Angle of the field of view.
        centre: What the operator centres on: 0 the fovea, 1 the disc.
        field_radius: Radius of the field in half sides of the picture.
        cut: Share of the radius at which top and bottom are cut off; 1 and more leave a circle.
        notch: Whether the frame has a tab at the upper right.
        blur_deg: Standard deviation of the optics' blur.
        vignetting: Loss of light at the rim.
        unevenness: Tilt and patches of the illumination.
        haze: Share of stray light over the whole field; more towards the rim.
        glow: How unevenly the red light of the choroid comes through.
        crescent: Brightness of stray light along one side of the rim, and its rate.
        reflex_rate: How often the lens leaves a pale spot near the middle.
        fault_rate: How often a photograph is of no use: much too dark, washed out or out of focus.
        contrast: Slope of the tone curve; 1 is neutral.
        noise: Sensor noise (sd) as a share of full scale at 256 px.
    """

    colour: Colour
    colour_spread: Colour
    field_deg: Range = (44.0, 46.0)
    centre: Range = (0.1, 0.4)
    field_radius: Range = (0.98, 1.0)
    cut: Range = (1.0, 1.0)
    notch: bool = False
    blur_deg: Range = (0.05, 0.15)
    vignetting: Range = (0.2, 0.6)
    unevenness: Range = (0.4, 1.2)
    haze: Range = (0.0, 0.08)
    glow: Range = (0.1, 0.5)
    crescent: Range = (0.0, 0.2)
    crescent_rate: float = 0.2
    reflex_rate: float = 0.03
    fault_rate: float = 0.005
    contrast: Range = (0.93, 1.12)
    noise: Range = (0.003, 0.008)


CAMERA_STYLES: Mapping[str, CameraStyle] = MappingProxyType(
    {
        # Orange, sharp, cut above and below, macula in the middle.
        "amber": CameraStyle(
            colour=(188, 97, 58),
            colour_spread=(0.34, 0.18, 0.3),
            field_deg=(48.0, 51.0),
            centre=(-0.1, 0.2),
            cut=(0.82, 0.86),
            contrast=(1.0, 1.25),
            vignetting=(0.3, 0.85),
            crescent_rate=0.12,
        ),
        # Darker and browner, cut, with a pale greenish rim and lens reflexes at times.
        "honey": CameraStyle(
            colour=(168, 80, 42),
            colour_spread=(0.36, 0.2, 0.3),
            field_deg=(44.0, 48.0),
            centre=(0.0, 0.35),
            cut=(0.85, 0.9),
            contrast=(0.98, 1.2),
            vignetting=(0.3, 0.9),
            crescent=(0.05, 0.3),
            crescent_rate=0.25,
            reflex_rate=0.18,
            fault_rate=0.01,
        ),
        # Cream to grey, soft, often uneven, mostly a full circle; some frames are of no use.
        "dusk": CameraStyle(
            colour=(180, 117, 88),
            colour_spread=(0.42, 0.28, 0.3),
            field_deg=(43.0, 50.0),
            centre=(0.0, 0.45),
            cut=(0.82, 1.6),
            field_radius=(0.99, 1.0),
            blur_deg=(0.06, 0.2),
            vignetting=(0.25, 0.9),
            unevenness=(0.5, 1.6),
            haze=(0.0, 0.22),
            glow=(0.25, 1.0),
            crescent=(0.1, 0.75),
            crescent_rate=0.35,
            reflex_rate=0.1,
            fault_rate=0.05,
        ),
        # Bright salmon, sharp, full circle with a tab, greyer towards the rim.
        "salmon": CameraStyle(
            colour=(222, 116, 84),
            colour_spread=(0.22, 0.2, 0.25),
            centre=(0.05, 0.5),
            notch=True,
            vignetting=(0.2, 0.6),
            haze=(0.03, 0.16),
            glow=(0.3, 0.85),
            crescent=(0.05, 0.3),
            crescent_rate=0.35,
        ),
        # Deep red, narrow field on the disc.
        "ember": CameraStyle(
            colour=(214, 84, 34),
            colour_spread=(0.3, 0.2, 0.35),
            field_deg=(29.0, 32.0),
            centre=(0.85, 1.1),
            vignetting=(0.4, 0.9),
            glow=(0.3, 0.9),
            contrast=(0.98, 1.15),
        ),
        # Pale rose, hazy, cut, a little wide.
        "rose": CameraStyle(
            colour=(182, 104, 88),
            colour_spread=(0.3, 0.18, 0.3),
            field_deg=(45.0, 54.0),
            centre=(0.1, 0.6),
            cut=(0.86, 0.96),
            haze=(0.03, 0.2),
            contrast=(0.92, 1.1),
            reflex_rate=0.08,
        ),
    }
)


@dataclass(frozen=True)
class Exposure:
    """What both photographs of a patient share: device, colour and sharpness."""

    style: str
    colour: Colour
    field_deg: float
    field_radius: float
    cut: float
    blur_deg: float
    contrast: float
    noise: float


@dataclass(frozen=True)
class Camera:
    """One photograph's camera.

    Attributes:
        style: Name of the style it was drawn from.
        field_deg: Angle of the field of view.
        centre_deg: What the field is centred on, in degrees nasal and below the fovea.
        field_radius: Radius of the field in half sides of the picture.
        cut: Where top and bottom are cut, in radii.
        notch: Whether there is a tab at the upper right.
        blur_deg: Standard deviation of the optics' blur.
        colour: Colour of a mean fundus in linear light.
        tilt: Change of illumination along x and y over one radius.
        vignetting: Loss of light at the rim.
        patchiness: Depth of the illumination's clouds.
        haze: Share of stray light.
        glow: Unevenness of the choroid's red light.
        crescent: Strength of stray light along the rim, and its direction.
        reflex: Strength and place of the lens' pale spot.
        contrast: Slope of the tone curve.
        noise: Sensor noise at 256 px as a share of full scale.
        noise_seed: Seed of the sensor's noise.
        cloud_seed: Seed of the patches of illumination and of the choroid's light.
    """

    style: str
    field_deg: float
    centre_deg: tuple[float, float]
    field_radius: float
    cut: float
    notch: bool
    blur_deg: float
    colour: Colour
    tilt: tuple[float, float]
    vignetting: float
    patchiness: float
    haze: float
    glow: float
    crescent: tuple[float, float, float]
    reflex: tuple[float, float, float]
    contrast: float
    noise: float
    noise_seed: int
    cloud_seed: int


def camera_style(name: str) -> CameraStyle:
    """Look a style up by name.

    Raises:
        DataError: No such style; names them all.
    """
    if name not in CAMERA_STYLES:
        raise DataError(
            f"there is no camera style {name!r}",
            expected="one of " + ", ".join(CAMERA_STYLES),
            remedy="Choose one of these",
        )
    return CAMERA_STYLES[name]


def draw_exposure(rng: np.random.Generator, style: str) -> Exposure:
    """Draw what both photographs of a patient share.

    Args:
        rng: Source of every draw.
        style: A key of `CAMERA_STYLES`.

    Raises:
        DataError: There is no such style.
    """
    ranges = camera_style(style)
    light, red, blue = (float(exp(bells(rng, 0.0, sd, 1))[0]) for sd in ranges.colour_spread)
    # A fundus may be far redder than the mean, but hardly greener.
    red = max(red, 0.82)
    mean = [value / 255 for value in ranges.colour]
    return Exposure(
        style=style,
        # The tone curve takes the root, so a colour of linear light is the square.
        colour=(
            mean[0] * mean[0] * light * red,
            mean[1] * mean[1] * light,
            mean[2] * mean[2] * light * blue,
        ),
        field_deg=uniform(rng, *ranges.field_deg),
        field_radius=uniform(rng, *ranges.field_radius),
        cut=min(uniform(rng, *ranges.cut), 1.0),
        blur_deg=uniform(rng, *ranges.blur_deg),
        contrast=uniform(rng, *ranges.contrast),
        noise=uniform(rng, *ranges.noise),
    )


def draw_camera(rng: np.random.Generator, exposure: Exposure, anatomy: Anatomy) -> Camera:
    """Draw one photograph's camera.

    Args:
        rng: Source of every draw.
        exposure: What it shares with the photograph of the other eye.
        anatomy: The eye, for the operator to centre on.
    """
    ranges = camera_style(exposure.style)
    aim = uniform(rng, *ranges.centre)
    light = max(bell(rng, 1.0, 0.07), 0.5)
    red, green, blue = exposure.colour
    unevenness = uniform(rng, *ranges.unevenness)
    camera = Camera(
        style=exposure.style,
        field_deg=exposure.field_deg,
        centre_deg=(
            aim * anatomy.disc.x_deg + bell(rng, 0.0, 0.9),
            aim * anatomy.disc.y_deg + bell(rng, 0.0, 0.9),
        ),
        field_radius=exposure.field_radius,
        cut=exposure.cut,
        notch=ranges.notch,
        blur_deg=exposure.blur_deg * uniform(rng, 0.85, 1.4),
        colour=(red * light, green * light, blue * light),
        tilt=(bell(rng, 0.0, 0.9) * unevenness, bell(rng, 0.0, 0.9) * unevenness),
        vignetting=uniform(rng, *ranges.vignetting),
        patchiness=unevenness * uniform(rng, 0.2, 1.0),
        haze=uniform(rng, *ranges.haze),
        glow=uniform(rng, *ranges.glow),
        crescent=draw_crescent(rng, ranges),
        reflex=draw_reflex(rng, ranges),
        contrast=exposure.contrast,
        noise=exposure.noise,
        noise_seed=whole(rng, 0, 2**31 - 1),
        cloud_seed=whole(rng, 0, 2**31 - 1),
    )
    return _spoilt(rng, camera) if float(rng.random()) < ranges.fault_rate else camera


def draw_crescent(rng: np.random.Generator, style: CameraStyle) -> tuple[float, float, float]:
    """Draw the strength of stray light along the rim, mostly 0, and cosine and sine of its side."""
    cosine, sine = (float(part[0]) for part in cos_sin(rng.random(1)))
    strength = uniform(rng, *style.crescent)
    return (strength if float(rng.random()) < style.crescent_rate else 0.0, cosine, sine)


def draw_reflex(rng: np.random.Generator, style: CameraStyle) -> tuple[float, float, float]:
    """Draw the strength of the lens' pale spot, mostly 0, and its place in radii of the field."""
    is_seen = float(rng.random()) < style.reflex_rate
    strength = uniform(rng, 0.05, 0.3)
    return (strength if is_seen else 0.0, bell(rng, 0.0, 0.09), bell(rng, 0.0, 0.09))


def _spoilt(rng: np.random.Generator, camera: Camera) -> Camera:
    """Make a photograph that a grader would call unusable: dark, washed out or out of focus."""
    fault = whole(rng, 0, 2)
    if fault == 0:
        light = uniform(rng, 0.04, 0.25)
        red, green, blue = camera.colour
        return replace(camera, colour=(red * light, green * light, blue * light))
    if fault == 1:
        return replace(
            camera, haze=uniform(rng, 0.55, 0.85), blur_deg=camera.blur_deg + uniform(rng, 0.1, 0.6)
        )
    return replace(camera, blur_deg=uniform(rng, 0.5, 2.0))
