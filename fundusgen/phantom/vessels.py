"""Trees of retinal arteries and veins as arrays of curves.

Second step of the simulator's anatomy. Trunks follow the two arcades around the fovea and fan out
on the nasal side; branches and twigs are grown from them, level by level and all at once. At every
branching Murray's law holds: the cubes of the radii are kept (Murray, PNAS 12:207, 1926). The
capillary-free zone of the fovea stays empty (Chui et al., IOVS 2012: about 0.6 mm across, shown
larger here because the finest vessels are not drawn).

Positions are degrees of visual angle: x nasal, y downwards in the picture, fovea at (0, 0).
V vessels of a level, K points along each.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fundusgen.phantom.exact import Floats, bells, cos_sin, cube_root, uniforms

# Share of a vessel's cubed radius that is left at its tip, after all branches.
_TIP_SHARE = 0.10
# Diameter of a vein's trunk at the disc about 140 um, of an artery's 2/3 of it; 288 um a degree.
_VEIN_RADIUS_DEG = 0.26
# Finer vessels, below about 25 um across, do not show in a photograph.
_FINEST_RADIUS_DEG = 0.045
# Path of each trunk relative to the disc: three control points after the start and a calibre.
# The arcades first: they leave the disc upwards and downwards and pass about 10 degrees from the
# fovea.
_TRUNKS: tuple[tuple[float, float, float, float, float, float, float], ...] = (
    (0.3, -8.5, -11.0, -11.4, -36.0, -6.0, 1.0),
    (0.3, 10.0, -11.0, 15.8, -36.0, 9.5, 1.0),
    (2.0, -5.5, 5.0, -13.0, 9.0, -27.0, 0.78),
    (2.0, 5.5, 5.0, 13.0, 9.0, 27.0, 0.78),
    (4.0, -0.5, 9.0, -3.5, 20.0, -5.0, 0.5),
    (-3.5, -0.6, -7.0, -1.9, -11.0, 0.4, 0.36),
    (-3.5, 1.3, -7.0, 3.8, -11.5, 3.0, 0.36),
)


@dataclass(frozen=True, eq=False)
class VesselLevel:
    """All vessels of one order of branching.

    Attributes:
        points_VK2: Centre line in degrees.
        radius_VK: Radius in degrees.
        artery_V: True for arteries, False for veins.
        parent_V: Index of the parent in the level above; -1 for trunks.
    """

    points_VK2: Floats
    radius_VK: Floats
    artery_V: NDArray[np.bool_]
    parent_V: NDArray[np.int64]

    @property
    def segments_M5(self) -> Floats:
        """All pieces as rows of x0, y0, x1, y1, radius, in degrees."""
        start, end = self.points_VK2[:, :-1], self.points_VK2[:, 1:]
        radius = (self.radius_VK[:, :-1] + self.radius_VK[:, 1:]) / 2
        return np.concatenate([start, end, radius[..., None]], axis=2).reshape(-1, 5)


def draw_vessels(
    rng: np.random.Generator,
    disc_deg: tuple[float, float],
    *,
    calibre: float,
    artery_to_vein: float,
    tortuosity: float,
    foveal_zone_deg: float,
) -> tuple[VesselLevel, ...]:
    """Draw the vessels of one right eye: trunks, branches and twigs.

    Args:
        rng: Source of every draw.
        disc_deg: Centre of the disc from the fovea, in degrees.
        calibre: Scale of all radii; 1 is a mean eye.
        artery_to_vein: Ratio of the diameters of trunks, about 2/3 in healthy eyes.
        tortuosity: Scale of the winding; 1 is a mean eye.
        foveal_zone_deg: Radius around the fovea that no vessel enters.

    Returns:
        Levels in the order of branching.
    """
    trunks = _draw_trunks(rng, disc_deg, calibre, artery_to_vein, tortuosity)
    trunks, branches = _grow(rng, trunks, 6, (0.10, 0.97), (0.25, 0.55), 17, tortuosity)
    branches, twigs = _grow(rng, branches, 3, (0.22, 0.92), (0.25, 0.60), 9, tortuosity)
    return tuple(_avoid_fovea(level, foveal_zone_deg) for level in (trunks, branches, twigs))


def bezier(controls_V42: Floats, points: int) -> Floats:
    """Return (V, points, 2) positions along cubic curves."""
    t = (np.arange(points) / (points - 1))[None, :, None]
    s = 1 - t
    p0, p1, p2, p3 = (controls_V42[:, None, i] for i in range(4))
    return s * s * s * p0 + 3 * s * s * t * p1 + 3 * s * t * t * p2 + t * t * t * p3


def _draw_trunks(
    rng: np.random.Generator,
    disc_deg: tuple[float, float],
    calibre: float,
    artery_to_vein: float,
    tortuosity: float,
) -> VesselLevel:
    table = np.array(_TRUNKS)
    # Arteries and veins run in loose pairs: the same plan, each with its own deviations.
    plan = np.concatenate([table, table])
    artery_V = np.arange(len(plan)) < len(table)
    controls = np.zeros((len(plan), 4, 2))
    controls[:, 0] = bells(rng, 0.0, 0.35, len(plan), 2)
    # The trunk of the vessels lies on the nasal side of the cup.
    controls[:, 0, 0] += 0.5
    controls[:, 1:] = plan[:, :6].reshape(-1, 3, 2)
    pair = np.concatenate([bells(rng, 0.0, 1.0, len(table), 3, 2)] * 2)
    own = bells(rng, 0.0, 1.0, len(plan), 3, 2)
    spread = np.array([0.5, 1.5, 3.0])[None, :, None] * (0.4 + 0.6 * plan[:, 6])[:, None, None]
    controls[:, 1:] += spread * (0.8 * pair + 0.6 * own)
    # Artery and vein lie side by side: half a gap each to either side of their plan.
    along = _unit(plan[:, 2:4])
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    side = np.where(rng.random(len(table)) < 0.5, 1.0, -1.0) * uniforms(rng, 0.3, 0.8, len(table))
    gap = np.concatenate([side, -side])[:, None] * across
    controls[:, 1:] += gap[:, None] * np.array([0.7, 1.0, 1.2])[None, :, None]
    controls += np.array(disc_deg)
    points = _wind(rng, bezier(controls, 41), 0.62 * tortuosity, 11)
    ratio = np.where(artery_V, artery_to_vein, 1.0)
    radius = _VEIN_RADIUS_DEG * calibre * ratio * plan[:, 6] * uniforms(rng, 0.88, 1.12, len(plan))
    return VesselLevel(
        points,
        np.repeat(radius[:, None], 41, axis=1),
        artery_V,
        np.full(len(plan), -1, dtype=np.int64),
    )


def _grow(
    rng: np.random.Generator,
    parents: VesselLevel,
    children: int,
    span: tuple[float, float],
    reach: tuple[float, float],
    points: int,
    tortuosity: float,
) -> tuple[VesselLevel, VesselLevel]:
    """Grow children from every parent; returns the parents, now narrowing, and the children."""
    count, steps = parents.points_VK2.shape[:2]
    stratified = (np.arange(children) + rng.random((count, children))) / children
    at_VC = span[0] + (span[1] - span[0]) * stratified
    # A few children take much of the flow, most take little.
    draw_VC = rng.random((count, children))
    weight_VC = 0.06 + draw_VC * draw_VC
    share_VC = weight_VC * ((1 - _TIP_SHARE) / np.cumsum(weight_VC, axis=1)[:, -1:])
    # Murray 1926: what the child takes from the cubed radius, the parent loses.
    left_VC = np.concatenate([np.ones((count, 1)), 1 - np.cumsum(share_VC, axis=1)], axis=1)
    passed_VKC = at_VC[:, None, :] < (np.arange(steps) / (steps - 1))[None, :, None]
    left_VK = cube_root(np.take_along_axis(left_VC, np.count_nonzero(passed_VKC, axis=2), axis=1))
    narrowed = VesselLevel(
        parents.points_VK2, parents.radius_VK * left_VK, parents.artery_V, parents.parent_V
    )

    row = np.repeat(np.arange(count), children)
    place = at_VC.reshape(-1) * (steps - 1)
    index = np.minimum(place.astype(np.int64), steps - 2)
    rest = (place - index)[:, None]
    before, after = parents.points_VK2[row, index], parents.points_VK2[row, index + 1]
    start = before + (after - before) * rest
    tangent = _unit(after - before)
    length = _lengths(parents.points_VK2)[row] * uniforms(rng, *reach, len(row))
    length *= 1 - 0.45 * at_VC.reshape(-1)

    side = np.where((np.arange(len(row)) + (rng.random(len(row)) < 0.25)) % 2 == 0, 1.0, -1.0)
    cosine, sine = cos_sin(side * uniforms(rng, 0.06, 0.15, len(row)))
    leave = np.stack(
        [
            tangent[:, 0] * cosine - tangent[:, 1] * sine,
            tangent[:, 0] * sine + tangent[:, 1] * cosine,
        ],
        axis=1,
    )
    # Children on the inner side make for the fovea; the others bend back along their parent.
    distance = np.sqrt(start[:, 0] * start[:, 0] + start[:, 1] * start[:, 1]) + 1e-6
    to_fovea = -start / distance[:, None]
    inward = leave[:, 0] * to_fovea[:, 0] + leave[:, 1] * to_fovea[:, 1]
    aim = np.where((inward > 0.15)[:, None], 0.9 * to_fovea, 0.55 * tangent)
    arrive = _unit(leave + aim + bells(rng, 0.0, 0.22, len(row), 2))
    length = np.where(inward > 0.15, np.minimum(length, 0.93 * distance), length)[:, None]
    controls = np.stack(
        [
            start,
            start + leave * length * 0.33,
            start + (leave * 0.4 + arrive * 0.6) * length * 0.66,
            start + (leave * 0.3 + arrive * 0.7) * length,
        ],
        axis=1,
    )
    curve = _wind(rng, bezier(controls, points), 0.05 * tortuosity * length[:, :, None], 7)
    parent_radius = parents.radius_VK[:, 0][row]
    start_radius = parent_radius * cube_root(np.maximum(share_VC, 1e-3)).reshape(-1)
    radius = np.repeat(start_radius[:, None], points, axis=1)
    seen = start_radius > _FINEST_RADIUS_DEG
    children_level = VesselLevel(curve[seen], radius[seen], parents.artery_V[row][seen], row[seen])
    return narrowed, children_level


def _wind(
    rng: np.random.Generator, points_VK2: Floats, amplitude: float | Floats, knots: int
) -> Floats:
    """Shift curves sideways by a smooth random wave that is zero at the start."""
    count, steps = points_VK2.shape[:2]
    wave_VN = rng.random((count, knots + 3)) * 2 - 1
    wave_VN[:, :2] = 0
    at = np.arange(steps) * (knots / (steps - 1))
    index = np.minimum(at.astype(np.int64), knots)
    rest = at - index
    low, high = 0.5 * (1 - rest) * (1 - rest), 0.5 * rest * rest
    wave_VK = (
        wave_VN[:, index] * low
        + wave_VN[:, index + 1] * (1 - low - high)
        + wave_VN[:, np.minimum(index + 2, knots + 2)] * high
    )
    along = np.empty_like(points_VK2)
    along[:, :-1] = points_VK2[:, 1:] - points_VK2[:, :-1]
    along[:, -1] = along[:, -2]
    tangent = _unit(along.reshape(-1, 2)).reshape(points_VK2.shape)
    normal = np.stack([-tangent[..., 1], tangent[..., 0]], axis=2)
    return np.asarray(points_VK2 + normal * (wave_VK[:, :, None] * amplitude))


def _avoid_fovea(level: VesselLevel, zone_deg: float) -> VesselLevel:
    x, y = level.points_VK2[..., 0], level.points_VK2[..., 1]
    square = x * x + y * y + 1e-9
    # Pushing everything outwards by this rule keeps children on their parents.
    scale = np.sqrt((square + zone_deg * zone_deg) / square)
    pushed = level.points_VK2 * scale[..., None]
    return VesselLevel(pushed, level.radius_VK, level.artery_V, level.parent_V)


def _lengths(points_VK2: Floats) -> Floats:
    step = points_VK2[:, 1:] - points_VK2[:, :-1]
    pieces = np.sqrt(step[..., 0] * step[..., 0] + step[..., 1] * step[..., 1])
    return np.asarray(np.cumsum(pieces, axis=1)[:, -1])


def _unit(vectors_N2: Floats) -> Floats:
    x, y = vectors_N2[:, 0], vectors_N2[:, 1]
    return np.asarray(vectors_N2 / (np.sqrt(x * x + y * y) + 1e-9)[:, None])
