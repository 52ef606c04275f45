"""Where lesions lie and how large they are: the placements that conditions are composed of.

Part of the simulator's second step; `lesions` decides how many of what a condition has. Positions
and sizes are degrees of visual angle as in `anatomy`. N spots of a kind.
"""

from dataclasses import dataclass, replace

import numpy as np

from fundusgen.phantom.anatomy import Anatomy
from fundusgen.phantom.exact import Floats, bell, bells, cos_sin, uniform, uniforms, whole
from fundusgen.phantom.vessels import VesselLevel, bezier


@dataclass(frozen=True, eq=False)
class Spots:
    """Lesions of one kind: ellipses whose edge is roughened when drawn.

    Attributes:
        centre_N2: Position in degrees.
        radius_N2: Half-axes in degrees, first along `direction_N2`.
        direction_N2: Unit vector of the first half-axis.
        strength_N: Opacity, 0 to 1.
    """

    centre_N2: Floats
    radius_N2: Floats
    direction_N2: Floats
    strength_N: Floats


def scattered(
    rng: np.random.Generator,
    anatomy: Anatomy,
    count: int,
    radius: tuple[float, float],
    strength: tuple[float, float],
) -> Spots:
    """Draw spots over the posterior pole, as far as a field of 45 degrees shows, off the disc."""
    centre = np.stack([bells(rng, 2.5, 8.6, count), bells(rng, 0.0, 8.0, count)], axis=1)
    return _spots(rng, off_disc(centre, anatomy), radius, strength)


def in_every_quadrant(
    rng: np.random.Generator,
    anatomy: Anatomy,
    each: int,
    radius: tuple[float, float],
    strength: tuple[float, float],
) -> Spots:
    """Draw equally many spots in each quadrant around the fovea, off the disc."""
    x = np.abs(bells(rng, 6.0, 3.6, 4 * each)) + 1.0
    # At 2 degrees and more from the horizon, keeping off the disc changes no quadrant.
    y = np.abs(bells(rng, 4.5, 3.6, 4 * each)) + 2.0
    number = np.arange(4 * each) % 4
    centre = np.stack([np.where(number % 2 == 1, x, -x), np.where(number >= 2, y, -y)], axis=1)
    return _spots(rng, off_disc(centre, anatomy), radius, strength)


def quadrants(centre_N2: Floats) -> Floats:
    """Number the quadrants around the fovea: 1 is added for nasal, 2 for below."""
    return (centre_N2[..., 0] > 0).astype(np.int64) + 2 * (centre_N2[..., 1] > 0)


def around_fovea(
    rng: np.random.Generator,
    count: int,
    spread_deg: float,
    radius: tuple[float, float],
    strength: tuple[float, float],
) -> Spots:
    """Spots about the fovea, denser towards it."""
    return _spots(rng, bells(rng, 0.0, spread_deg * 0.42, count, 2), radius, strength)


def exudates(rng: np.random.Generator, anatomy: Anatomy, clusters: int, load: float) -> Spots:
    """Draw clusters of hard exudates; a load of 2 or more makes them crowded."""
    parts = []
    for _ in range(clusters):
        centre = off_disc(
            np.array([[bell(rng, -0.5, 6.0), bell(rng, 0.0, 5.2)]]), anatomy, margin=1.9
        )
        count = int((0.6 + 0.4 * load) * whole(rng, 5, 26))
        # Circinate: exudates line the rim of a leaking area.
        ring, width = uniform(rng, 0.3, 2.2), uniform(rng, 0.15, 0.7)
        cosine, sine = cos_sin(uniforms(rng, 0.0, 1.0, count) * uniform(rng, 0.4, 1.0))
        away = ring + bells(rng, 0.0, width, count)
        place = centre + np.stack([cosine * away, sine * away], axis=1)
        parts.append(_spots(rng, place, (0.07, 0.34), (0.5, 1.0)))
    return joined(*parts)


def along_fibres(
    rng: np.random.Generator, anatomy: Anatomy, count: int, radius: tuple[float, float]
) -> Spots:
    """Draw flames: blood and swelling of the nerve-fibre layer spread along its fibres."""
    spots = scattered(rng, anatomy, count, radius, (0.5, 0.9))
    # The fibres run away from the disc.
    away = spots.centre_N2 - np.array([anatomy.disc.x_deg, anatomy.disc.y_deg])
    length = np.sqrt(away[:, 0] * away[:, 0] + away[:, 1] * away[:, 1]) + 1e-9
    stretch = uniforms(rng, 0.35, 0.7, count)
    return replace(
        spots,
        direction_N2=away / length[:, None],
        radius_N2=np.stack([spots.radius_N2[:, 0], spots.radius_N2[:, 0] * stretch], axis=1),
    )


def laser_scars(rng: np.random.Generator, anatomy: Anatomy) -> Spots:
    """Draw the scars of panretinal photocoagulation, outside the arcades."""
    count = whole(rng, 20, 60)
    cosine, sine = cos_sin(uniforms(rng, 0.0, 1.0, count))
    away = uniforms(rng, 11.5, 23.0, count)
    centre = np.stack([2.0 + cosine * away, sine * away], axis=1)
    return _spots(rng, off_disc(centre, anatomy, margin=1.8), (0.35, 0.65), (0.35, 0.8))


def around_disc(
    rng: np.random.Generator,
    anatomy: Anatomy,
    count: int,
    scale: float,
    *,
    shift: float,
    strength: tuple[float, float],
) -> Spots:
    """Draw ellipses about the disc, `scale` times as large and shifted towards the fovea."""
    disc = anatomy.disc
    centre = np.array([[disc.x_deg - shift * disc.radius_x_deg, disc.y_deg]] * count)
    spots = _spots(rng, centre, (1.0, 1.01), strength)
    half_axes = np.array([[disc.radius_x_deg * scale, disc.radius_y_deg * scale]] * count)
    return replace(
        spots, radius_N2=half_axes, direction_N2=np.array([[1.0, 0.0]] * count).reshape(-1, 2)
    )


def new_vessel_tufts(
    rng: np.random.Generator, anatomy: Anatomy, count: int, *, at_disc: float, size_deg: float
) -> VesselLevel:
    """Fans of fine, winding vessels without the order of a tree."""
    strands = 14
    foci = off_disc(
        np.stack([bells(rng, 5.0, 8.0, count), bells(rng, 0.0, 8.5, count)], axis=1), anatomy
    )
    foci = np.where(
        (rng.random(count) < at_disc)[:, None],
        np.array([[anatomy.disc.x_deg, anatomy.disc.y_deg]]) + bells(rng, 0.0, 1.2, count, 2),
        foci,
    )
    start = np.repeat(foci, strands, axis=0)
    controls = np.repeat(start[:, None], 4, axis=1)
    spread = size_deg * np.array([0.15, 0.45, 0.6, 0.7])[None, :, None]
    controls = controls + spread * bells(rng, 0.0, 0.8, len(start), 4, 2)
    radius = np.repeat(uniforms(rng, 0.055, 0.12, len(start))[:, None], 13, axis=1)
    return VesselLevel(
        bezier(controls, 13),
        radius,
        np.zeros(len(start), dtype=np.bool_),
        np.full(len(start), -1, dtype=np.int64),
    )


def off_disc(centre_N2: Floats, anatomy: Anatomy, margin: float = 1.35) -> Floats:
    """Move points that lie on the disc to its rim and beyond."""
    middle = np.array([anatomy.disc.x_deg, anatomy.disc.y_deg])
    away = centre_N2 - middle
    length = np.sqrt(away[:, 0] * away[:, 0] + away[:, 1] * away[:, 1]) + 1e-6
    least = margin * anatomy.disc.radius_y_deg
    return np.asarray(middle + away * (np.maximum(length, least) / length)[:, None])


def _spots(
    rng: np.random.Generator,
    centre_N2: Floats,
    radius: tuple[float, float],
    strength: tuple[float, float],
) -> Spots:
    count = len(centre_N2)
    # Small ones are the rule: the square of a uniform draw.
    share = rng.random(count)
    first = radius[0] + (radius[1] - radius[0]) * share * share
    second = first * uniforms(rng, 0.65, 1.0, count)
    cosine, sine = cos_sin(rng.random(count))
    return Spots(
        centre_N2,
        np.stack([first, second], axis=1),
        np.stack([cosine, sine], axis=1),
        uniforms(rng, *strength, count),
    )


def joined(*parts: Spots) -> Spots:
    """Put several groups of spots together."""
    if not parts:
        nothing = np.zeros((0, 2))
        return Spots(nothing, nothing, nothing, np.zeros(0))
    return Spots(
        np.concatenate([part.centre_N2 for part in parts]),
        np.concatenate([part.radius_N2 for part in parts]),
        np.concatenate([part.direction_N2 for part in parts]),
        np.concatenate([part.strength_N for part in parts]),
    )
