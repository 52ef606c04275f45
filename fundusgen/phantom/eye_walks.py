"""Small random steps of an eye: its traits, disc, macula, vessels and lesions.

Beside the simulator's second step, for `variation`. Numbers walk (`walks`); what is not a number,
such as a vessel tree, a texture or a spot, is exchanged for another draw with the probability
`strength`.

N spots of a kind, V vessels, K points along each.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from fundusgen.phantom.anatomy import Anatomy, Disc, Traits
from fundusgen.phantom.exact import Floats, bells, exp, uniform, whole
from fundusgen.phantom.lesions import Lesions, draw_lesions, meets_4_2_1
from fundusgen.phantom.spots import Spots, joined
from fundusgen.phantom.vessels import VesselLevel, draw_vessels
from fundusgen.phantom.walks import Walk, moved, walked

_AGE_YEARS = Walk(9.0, 18.0, 90.0)
TRAIT_WALKS: Mapping[str, Walk] = MappingProxyType(
    {
        "pigment": Walk(0.26, 0.0, 1.0),
        "tessellation": Walk(0.18, 0.0, 1.0),
        "disc_radius_deg": Walk(0.24, 2.3, 4.0),
        "cup_ratio": Walk(0.10, 0.1, 0.62),
        "calibre": Walk(0.09, 0.7, 1.35),
        "artery_to_vein": Walk(0.04, 0.54, 0.82),
        "tortuosity": Walk(0.35, 0.3, 2.0),
        "fovea_drop_deg": Walk(0.6, -0.3, 4.1),
        "lens_density": Walk(0.2, 0.0, 1.0),
    }
)
DISC_WALKS: Mapping[str, Walk] = MappingProxyType(
    {
        "x_deg": Walk(0.6, 13.3, 17.7),
        "y_deg": Walk(0.3, -5.2, 1.4),
        "radius_x_deg": Walk(0.06, 2.0, 4.2),
        "radius_y_deg": Walk(0.06, 2.2, 4.6),
        "cup_ratio": Walk(0.04, 0.08, 0.95),
        "cup_shift_deg": Walk(0.12, -0.6, 0.0),
        "pallor": Walk(0.14, 0.0, 0.6),
        "halo": Walk(0.13, 0.0, 0.5),
    }
)
ANATOMY_WALKS: Mapping[str, Walk] = MappingProxyType(
    {
        "macula_radius_deg": Walk(0.46, 2.2, 4.6),
        "macula_depth": Walk(0.21, 0.3, 1.4),
        "foveal_reflex": Walk(0.2, 0.0, 1.0),
        "nerve_fibre_sheen": Walk(0.2, 0.0, 1.0),
        "mottling": Walk(0.23, 0.3, 1.4),
    }
)
_FOVEAL_ZONE_DEG = (1.0, 1.6)
# At full strength: how far spots move, how much they grow, how far the arcades open or close.
_SPOT_SHIFT_DEG = 1.2
_SPOT_GROWTH = 0.25
_ARCADE_GROWTH = 0.08
# These lie around the disc and go where it goes.
_AROUND_DISC = ("peripapillary",)
_BLENDED = (
    "venous_beading",
    "nicking",
    "artery_scale",
    "tessellation",
    "cup_ratio",
    "disc_pallor",
    "haze",
    "blur_deg",
    "yellowing",
)


def walk_traits(rng: np.random.Generator, traits: Traits, strength: float) -> Traits:
    """Move what both eyes of a patient share.

    Args:
        rng: Source of every draw.
        traits: Where to start.
        strength: 0 to 1.
    """
    age = walked(rng, float(traits.age_years), _AGE_YEARS, strength)
    return replace(moved(rng, traits, TRAIT_WALKS, strength), age_years=int(age + 0.5))


def walk_anatomy(
    rng: np.random.Generator, anatomy: Anatomy, traits: Traits, strength: float
) -> Anatomy:
    """Move a healthy eye along with its traits; the side stays.

    Args:
        rng: Source of every draw.
        anatomy: Where to start.
        traits: What its traits have become.
        strength: 0 to 1.
    """
    before = anatomy.traits
    growth = traits.disc_radius_deg / before.disc_radius_deg
    followed = replace(
        anatomy.disc,
        y_deg=anatomy.disc.y_deg + before.fovea_drop_deg - traits.fovea_drop_deg,
        radius_x_deg=anatomy.disc.radius_x_deg * growth,
        radius_y_deg=anatomy.disc.radius_y_deg * growth,
        cup_ratio=anatomy.disc.cup_ratio + traits.cup_ratio - before.cup_ratio,
    )
    disc = moved(rng, followed, DISC_WALKS, strength)
    opening = 1 + strength * bells(rng, 0.0, _ARCADE_GROWTH, 2)
    texture_seed = whole(rng, 0, 2**31 - 1)
    is_new_texture, is_new_tree = (rng.random(2) < strength).tolist()
    calm = moved(rng, anatomy, ANATOMY_WALKS, strength)
    return replace(
        calm,
        traits=traits,
        disc=disc,
        vessels=_new_tree(rng, disc, traits)
        if is_new_tree
        else tuple(_carried(level, anatomy, disc, traits, opening) for level in anatomy.vessels),
        texture_seed=texture_seed if is_new_texture else anatomy.texture_seed,
    )


def walk_lesions(
    rng: np.random.Generator, lesions: Lesions, before: Anatomy, after: Anatomy, strength: float
) -> Lesions:
    """Move, drop and add lesions; the condition stays.

    Args:
        rng: Source of every draw.
        lesions: Where to start.
        before: The eye they belong to.
        after: What the eye has become; lesions around the disc follow it.
        strength: 0 to 1.
    """
    one = draw_lesions(rng, lesions.condition, after)
    spots = {}
    for kind in sorted({*lesions.spots, *one.spots}):
        old, new = lesions.spots.get(kind, joined()), one.spots.get(kind, joined())
        old = _follow(old, before, after) if kind in _AROUND_DISC else _jitter(rng, old, strength)
        part = _exchanged(rng, old, new, strength)
        if len(part.strength_N):
            spots[kind] = part
    is_new_tuft = float(rng.random()) < strength
    blended: dict[str, Any] = {}
    if any(getattr(lesions, name) != getattr(one, name) for name in _BLENDED):
        two = draw_lesions(rng, lesions.condition, after)
        blended = {
            name: _between(getattr(lesions, name), getattr(one, name), getattr(two, name), strength)
            for name in _BLENDED
        }
    walked_lesions = replace(
        lesions,
        spots=MappingProxyType(spots),
        new_vessels=one.new_vessels if is_new_tuft else lesions.new_vessels,
        beaded=one.beaded if is_new_tuft else lesions.beaded,
        **blended,
    )
    if lesions.condition == "dr3" and not meets_4_2_1(walked_lesions):
        # Blood has left a quadrant; with the new draw's the eye is as severe as before.
        blood = MappingProxyType({**spots, "haemorrhage": one.spots["haemorrhage"]})
        return replace(walked_lesions, spots=blood)
    return walked_lesions


def _new_tree(rng: np.random.Generator, disc: Disc, traits: Traits) -> tuple[VesselLevel, ...]:
    return draw_vessels(
        rng,
        (disc.x_deg, disc.y_deg),
        calibre=traits.calibre,
        artery_to_vein=traits.artery_to_vein,
        tortuosity=traits.tortuosity,
        foveal_zone_deg=uniform(rng, *_FOVEAL_ZONE_DEG),
    )


def _carried(
    level: VesselLevel, before: Anatomy, disc: Disc, traits: Traits, opening: Floats
) -> VesselLevel:
    """Pull a tree along with its disc; a function of the place alone, so branches stay attached."""
    x, y = level.points_VK2[..., 0], level.points_VK2[..., 1]
    # All of the disc's shift at the disc, none at the fovea and beyond.
    share = np.minimum(np.maximum(x * (1 / before.disc.x_deg), 0.0), 1.2)
    x = x + share * (disc.x_deg - before.disc.x_deg)
    y = y * np.where(y < 0, opening[0], opening[1]) + share * (disc.y_deg - before.disc.y_deg)
    distance = np.sqrt(x * x + y * y) + 1e-9
    outwards = np.maximum(_FOVEAL_ZONE_DEG[0] / distance, 1.0)
    width = traits.calibre / before.traits.calibre
    arteries = width * traits.artery_to_vein / before.traits.artery_to_vein
    factor_V = np.where(level.artery_V, arteries, width)
    return replace(
        level,
        points_VK2=np.stack([x * outwards, y * outwards], axis=2),
        radius_VK=level.radius_VK * factor_V[:, None],
    )


def _jitter(rng: np.random.Generator, spots: Spots, strength: float) -> Spots:
    count = len(spots.strength_N)
    size = exp(bells(rng, 0.0, _SPOT_GROWTH, count) * strength)
    return replace(
        spots,
        centre_N2=spots.centre_N2 + bells(rng, 0.0, _SPOT_SHIFT_DEG, count, 2) * strength,
        radius_N2=spots.radius_N2 * size[:, None],
    )


def _follow(spots: Spots, before: Anatomy, after: Anatomy) -> Spots:
    was, now = before.disc, after.disc
    growth = np.array([now.radius_x_deg / was.radius_x_deg, now.radius_y_deg / was.radius_y_deg])
    offset = spots.centre_N2 - np.array([was.x_deg, was.y_deg])
    return replace(
        spots,
        centre_N2=offset * growth + np.array([now.x_deg, now.y_deg]),
        radius_N2=spots.radius_N2 * growth,
    )


def _exchanged(rng: np.random.Generator, old: Spots, new: Spots, strength: float) -> Spots:
    """Drop each old spot and take each new one with the probability of the strength."""
    kept = rng.random(len(old.strength_N)) >= strength
    taken = rng.random(len(new.strength_N)) < strength
    part = joined(_chosen(old, kept), _chosen(new, taken))
    # A condition needs what it always draws: an exchange may not leave it without.
    if not len(part.strength_N) and len(old.strength_N) and len(new.strength_N):
        return new
    return part


def _chosen(spots: Spots, chosen_N: Floats) -> Spots:
    return Spots(
        spots.centre_N2[chosen_N],
        spots.radius_N2[chosen_N],
        spots.direction_N2[chosen_N],
        spots.strength_N[chosen_N],
    )


def _between(
    value: float | None, one: float | None, two: float | None, strength: float
) -> float | None:
    """Step by the difference of two draws, within what the condition itself has given."""
    if value is None or one is None or two is None:
        return value
    step = value + (one - two) * strength
    return min(max(step, min(value, one, two)), max(value, one, two))
