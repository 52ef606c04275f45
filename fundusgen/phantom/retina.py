"""The light an eye sends back: reflectance of background, disc, macula, vessels and lesions.

Fifth step of the simulator: parameters and a view give a picture of the retina itself, without
camera. Light is linear and relative to a mean fundus, so 1 is the camera's mean colour; vessels,
pigment and blood take light by optical density (Beer and Lambert), pale tissue covers it.

S side of the picture in pixels, C colour channel (red, green, blue).
"""

from dataclasses import dataclass

import numpy as np

from fundusgen.phantom.anatomy import Anatomy
from fundusgen.phantom.exact import Floats, clip01, exp, falloff, hat
from fundusgen.phantom.ink import pour_vessels
from fundusgen.phantom.lesions import Lesions
from fundusgen.phantom.looks import LOOKS
from fundusgen.phantom.spots import quadrants
from fundusgen.phantom.stamps import stamp_spots
from fundusgen.phantom.texture import diamond_angle, mottling, streams
from fundusgen.phantom.vessels import VesselLevel
from fundusgen.phantom.view import View

# Optical density per unit of red, green, blue. Blood and melanin take green and blue first;
# the macular pigment is yellow, it takes blue (Delori and Pflibsen, Appl Opt 28:1061, 1989).
_MELANIN = (0.62, 0.80, 0.85)
_MACULA = (0.55, 0.95, 0.85)
_ARTERY = (0.08, 0.52, 0.30)
_VEIN = (0.20, 0.68, 0.38)
_CHOROID = (-0.38, -0.33, -0.14)
# Reflectance of rim and cup relative to the fundus.
_RIM = (2.4, 2.5, 2.6)
_CUP = (3.8, 4.8, 6.5)


@dataclass(frozen=True, eq=False)
class Retina:
    """The retina in the picture.

    Attributes:
        light_CSS: Reflected light, relative to a mean fundus; float32.
        lesions: Cover of each kind of lesion, (S, S) from 0 to 1: the ground truth.
    """

    light_CSS: Floats
    lesions: dict[str, Floats]


def draw_retina(anatomy: Anatomy, lesions: Lesions, view: View) -> Retina:
    """Draw reflectance and lesion masks of one eye.

    Args:
        anatomy: The eye.
        lesions: What its condition adds.
        view: Which part of it, how large.
    """
    rng = np.random.Generator(np.random.PCG64(anatomy.texture_seed))
    pixels = (np.arange(view.size_px) + 0.5 - view.size_px / 2) / view.px_per_deg
    x_S = (pixels * view.mirror + view.centre_deg[0]).astype(np.float32)
    y_S = (pixels + view.centre_deg[1]).astype(np.float32)
    x, y = x_S[None, :], y_S[:, None]

    # Blotches finer than a pixel average out within it.
    seen = min(view.px_per_deg * (1 / 5), 1.0)
    fine = mottling(rng, 0.6, x_S, y_S) * seen
    rough = 0.45 * fine + 0.8 * mottling(rng, 1.7, x_S, y_S)
    light = exp(-_background_density(rng, anatomy, lesions, x, y, x_S, y_S, fine))
    _add_sheen(light, rng, anatomy, x, y, rough)
    covers = {
        kind: stamp_spots(
            lesions.spots[kind],
            view,
            look.softness,
            rough * look.roughness,
            look.flat_top,
        )
        for kind, look in LOOKS.items()
        if kind in lesions.spots
    }
    _cover_by_lesions(light, covers, under_disc=True)
    disc = _add_disc(light, anatomy, lesions, x, y, rough)
    for kind in covers:
        if LOOKS[kind].under_disc:
            covers[kind] = covers[kind] * (1 - disc)
    _cover_by_lesions(light, covers, under_disc=False)
    density = _vessel_density(anatomy, lesions, view)
    for kind, cover in covers.items():
        if LOOKS[kind].colour is None:
            density += _per_channel(cover, LOOKS[kind].density)
    light *= exp(-density)
    return Retina(light, covers)


def _background_density(
    rng: np.random.Generator,
    anatomy: Anatomy,
    lesions: Lesions,
    x: Floats,
    y: Floats,
    x_S: Floats,
    y_S: Floats,
    fine: Floats,
) -> Floats:
    traits = anatomy.traits
    blotches = mottling(rng, 7.0, x_S, y_S) * 0.11 + mottling(rng, 2.2, x_S, y_S) * 0.09
    melanin = (blotches + fine * 0.07) * anatomy.mottling
    square = x * x + y * y
    # The pigment epithelium is taller and darker all over the macula.
    melanin = melanin + (0.16 + 0.20 * traits.pigment) * falloff(square * (1 / 64))
    near = anatomy.macula_radius_deg * anatomy.macula_radius_deg
    # A dark spot in a wide soft shade.
    spot = 0.62 * falloff(square * (1.7 / near)) + 0.48 * falloff(square * (0.28 / near))
    macula = anatomy.macula_depth * spot
    density = _per_channel(melanin, _MELANIN) + _per_channel(macula, _MACULA)

    shows = min(traits.tessellation + lesions.tessellation, 1.2)
    # Choroidal vessels run to the vortex veins, above and below, and cross about the horizon; they
    # show away from the macula, and here and there more.
    bend = mottling(rng, 6.0, x_S, y_S) * 0.75 + mottling(rng, 2.3, x_S, y_S) * 0.28
    width = mottling(rng, 1.9, x_S, y_S)
    upper = streams(x + 7, y + 40, bend, width) * clip01(0.55 - y * (1 / 14))
    lower = streams(x + 3, 42 - y, 0.4 - bend, width) * clip01(0.55 + y * (1 / 14))
    net = np.maximum(upper, lower)
    away = clip01(square * (1 / 150)) * 0.85 + 0.15
    away = away * clip01(0.75 + 0.8 * mottling(rng, 12.0, x_S, y_S))
    density += _per_channel((net - 0.35) * (away * shows), _CHOROID)
    reflex = hat(square * (1 / 0.35)) * (0.35 * anatomy.foveal_reflex)
    density -= reflex
    return density


def _add_sheen(
    light: Floats, rng: np.random.Generator, anatomy: Anatomy, x: Floats, y: Floats, rough: Floats
) -> None:
    """Brighten the nerve fibres: arcuate bundles, their mass at the disc, and the macula's rim."""
    dx, dy = x - anatomy.disc.x_deg, y - anatomy.disc.y_deg
    square = dx * dx + dy * dy
    streaks = rng.random(99).astype(np.float32)
    angle = diamond_angle(dx + 0 * dy, dy + 0 * dx) * 24
    index = angle.astype(np.int32)
    rest = angle - index
    streak = streaks[index] * (1 - rest) + streaks[index + 1] * rest
    vertical = dy * dy / (square + 0.5)
    sheen = (0.35 + 0.9 * streak) * vertical * falloff(square * (1 / 110))
    sheen = sheen * (0.30 * anatomy.nerve_fibre_sheen)
    # The inner limiting membrane glitters where the retina rises around the macula.
    from_fovea = np.sqrt(x * x + y * y)
    ring = (from_fovea - 7.0) * (1 / 5.0)
    glitter = hat(ring * ring) * clip01(rough) * (0.35 * anatomy.nerve_fibre_sheen)
    light += _per_channel(sheen + glitter, (0.35, 0.7, 1.0))
    # Towards the disc the fibres lie thicker, and all of it is lighter.
    mass = falloff(square * (1 / 90)) * (0.6 + 0.9 * anatomy.nerve_fibre_sheen)
    light *= 1 + _per_channel(mass, (0.24, 0.34, 0.40))


def _cover_by_lesions(light: Floats, covers: dict[str, Floats], *, under_disc: bool) -> None:
    for kind, cover in covers.items():
        look = LOOKS[kind]
        if look.colour is not None and look.under_disc == under_disc:
            _cover(light, cover, look.colour)


def _add_disc(
    light: Floats, anatomy: Anatomy, lesions: Lesions, x: Floats, y: Floats, rough: Floats
) -> Floats:
    """Draw the disc; returns how much of each pixel it covers."""
    disc = anatomy.disc
    dx = (x - disc.x_deg) * (1 / disc.radius_x_deg)
    dy = (y - disc.y_deg) * (1 / disc.radius_y_deg)
    radius = np.sqrt(dx * dx + dy * dy) + rough * 0.02
    # A pale ring of thin pigment just outside the rim.
    _cover(light, clip01((1.22 - radius) * 6) * (0.35 * disc.halo), (1.3, 1.9, 2.0))
    pallor = min(disc.pallor + lesions.disc_pallor, 1.0)
    # The nasal rim is pinker: more nerve fibres, more capillaries.
    temporal = clip01(0.5 - 0.5 * dx)
    rim = [
        value * (0.86 + 0.2 * temporal) * (1 + 0.35 * pallor * (value - 1.6) * 0.5)
        for value in _RIM
    ]
    # The nasal edge is veiled by nerve fibres, the temporal one is sharp.
    inside = clip01((1.0 - radius) * (2.6 + 2.6 * temporal) + 0.5)
    for channel, value in enumerate(rim):
        light[channel] += (value - light[channel]) * inside
    ratio = disc.cup_ratio if lesions.cup_ratio is None else lesions.cup_ratio
    cup_x = dx - disc.cup_shift_deg / disc.radius_x_deg * (1 - ratio)
    cup = np.sqrt(cup_x * cup_x + dy * dy) * (1 / ratio) + rough * 0.04
    _cover(light, clip01((1.0 - cup) * 1.5 + 0.5) * 0.9, _CUP)
    return inside


def _vessel_density(anatomy: Anatomy, lesions: Lesions, view: View) -> Floats:
    arteries = np.zeros((view.size_px, view.size_px), dtype=np.float32)
    veins = np.zeros_like(arteries)
    trunks = anatomy.vessels[0]
    for level in anatomy.vessels:
        scale_VK = _radius_scale(level, lesions)
        if level is trunks and lesions.nicking:
            scale_VK = scale_VK * _pinched(trunks, anatomy, lesions.nicking)
        artery, vein = pour_vessels(level, view, scale_VK)
        arteries += artery
        veins += vein
    if lesions.new_vessels is not None:
        artery, vein = pour_vessels(
            lesions.new_vessels, view, np.ones_like(lesions.new_vessels.radius_VK)
        )
        veins += artery + vein
    # Where vessels lie over each other the light meets little more blood than in one.
    density = _per_channel(_soft_limit(arteries), _ARTERY)
    density += _per_channel(_soft_limit(veins), _VEIN)
    # What an old lens scatters veils the finest detail first.
    return np.asarray(density * (1.3 - 0.65 * anatomy.traits.lens_density))


def _radius_scale(level: VesselLevel, lesions: Lesions) -> Floats:
    steps = np.arange(level.radius_VK.shape[1])
    beads = np.where(steps % 3 == 0, 1.0, -0.5) * lesions.venous_beading
    beaded = np.zeros(4)
    beaded[list(lesions.beaded)] = 1.0
    beads_VK = beads[None, :] * beaded[quadrants(level.points_VK2)]
    return np.where(level.artery_V[:, None], lesions.artery_scale, 1 + beads_VK)


def _pinched(trunks: VesselLevel, anatomy: Anatomy, nicking: float) -> Floats:
    """Narrow veins where a stiff artery crosses them, at 5 degrees and more from the disc."""
    arteries_N2 = trunks.points_VK2[trunks.artery_V].reshape(-1, 2)
    veins_M2 = trunks.points_VK2[~trunks.artery_V].reshape(-1, 2)
    dx_MN = veins_M2[:, :1] - arteries_N2[:, 0]
    dy_MN = veins_M2[:, 1:] - arteries_N2[:, 1]
    nearest_M = (dx_MN * dx_MN + dy_MN * dy_MN).min(axis=1)
    dx_M, dy_M = veins_M2[:, 0] - anatomy.disc.x_deg, veins_M2[:, 1] - anatomy.disc.y_deg
    outside_M = dx_M * dx_M + dy_M * dy_M > 25.0
    scale_VK = np.ones_like(trunks.radius_VK)
    pinched_M = 1 - hat(nearest_M * (1 / 0.49)) * outside_M * nicking
    scale_VK[~trunks.artery_V] = pinched_M.reshape(-1, scale_VK.shape[1])
    return scale_VK


def _soft_limit(cover: Floats) -> Floats:
    return np.where(cover < 0.8, cover, 0.8 + (cover - 0.8) / (1 + 2 * np.abs(cover - 0.8)))


def _cover(light: Floats, cover: Floats, colour: tuple[float, float, float]) -> None:
    for channel, value in enumerate(colour):
        light[channel] += (value - light[channel]) * cover


def _per_channel(map_SS: Floats, weights: tuple[float, float, float]) -> Floats:
    return map_SS[None] * np.array(weights, dtype=np.float32)[:, None, None]
