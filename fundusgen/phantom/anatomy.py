"""What an eye looks like: disc, cup, macula, pigmentation and vessel trees, as parameters.

First step of the simulator. Nothing here is a pixel: positions and sizes are degrees of visual
angle on the retina, x nasal, y downwards in the picture, fovea at (0, 0), so that a left eye is
the same parameters seen in a mirror.

Proportions: the disc is about 1.8 mm or 6.3 degrees across, a seventh of a 45 degree field
(Jonas et al., IOVS 29:1151, 1988); its centre is 15.5 degrees or 2.5 disc diameters nasal of the
fovea and about 1.9 degrees above it (Rohrschneider, IOVS 45:3257, 2004); arteries have about 2/3 of
the width of veins (Wong et al., Ophthalmology 106:2269, 1999: 0.65 to 0.7); cup to disc 0.3 to 0.4.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fundusgen.phantom.exact import bell, uniform, whole
from fundusgen.phantom.vessels import VesselLevel, draw_vessels

Eye = Literal["L", "R"]


@dataclass(frozen=True)
class Traits:
    """What both eyes of a patient share.

    Attributes:
        age_years: 18 to 90.
        pigment: Melanin of the fundus, 0 (fair) to 1 (dark).
        tessellation: How far the choroidal vessels show, 0 to 1.
        disc_radius_deg: Mean radius of the disc.
        cup_ratio: Vertical cup-to-disc ratio.
        calibre: Scale of the vessels' width; 1 is a mean eye.
        artery_to_vein: Ratio of the widths of arteries and veins.
        tortuosity: Scale of the vessels' winding; 1 is a mean eye.
        fovea_drop_deg: How far the fovea lies below the disc's centre.
        lens_density: How yellow and cloudy the lens has become, 0 (clear) to 1; without cataract.
    """

    age_years: int
    pigment: float
    tessellation: float
    disc_radius_deg: float
    cup_ratio: float
    calibre: float
    artery_to_vein: float
    tortuosity: float
    fovea_drop_deg: float
    lens_density: float


@dataclass(frozen=True)
class Disc:
    """The optic disc: centre, half-axes and cup, in degrees."""

    x_deg: float
    y_deg: float
    radius_x_deg: float
    radius_y_deg: float
    cup_ratio: float
    cup_shift_deg: float
    pallor: float
    halo: float


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One healthy eye, before lesions and camera.

    Attributes:
        eye: Left or right; left eyes are drawn in a mirror.
        traits: What this eye shares with its fellow.
        disc: Optic disc and cup.
        macula_radius_deg: Radius at which the macular pigment has fallen to a quarter.
        macula_depth: Optical density that the macula adds, 0.3 to 1.4.
        foveal_reflex: Brightness of the reflex in the fovea, 0 to 1; young eyes.
        nerve_fibre_sheen: Brightness of the nerve-fibre layer's streaks, 0 to 1; young eyes.
        mottling: Contrast of the background's blotches.
        vessels: Trunks, branches and twigs.
        texture_seed: Seed of the background's random fields.
    """

    eye: Eye
    traits: Traits
    disc: Disc
    macula_radius_deg: float
    macula_depth: float
    foveal_reflex: float
    nerve_fibre_sheen: float
    mottling: float
    vessels: tuple[VesselLevel, ...]
    texture_seed: int


def draw_traits(rng: np.random.Generator, age_years: int | None = None) -> Traits:
    """Draw what both eyes of a patient share.

    Args:
        rng: Source of every draw; equal states give equal traits.
        age_years: The age where it is known; drawn from 18 to 88 otherwise.
    """
    age = int(bell(rng, 55.0, 14.0)) if age_years is None else age_years
    pigment = uniform(rng, 0.1, 1.0)
    # Fair and old eyes let the choroid shine through.
    old = min(max((age - 40) / 50, 0.0), 1.0)
    # In most eyes they hardly do: the square of a uniform draw.
    share = uniform(rng, 0.0, 1.0)
    visible = 0.7 * share * share * (1.25 - pigment) + 0.25 * old * uniform(rng, 0.0, 1.0)
    return Traits(
        age_years=min(max(age, 18), 90),
        pigment=pigment,
        tessellation=min(visible, 1.0),
        disc_radius_deg=bell(rng, 3.12, 0.24),
        cup_ratio=min(max(bell(rng, 0.38, 0.10), 0.1), 0.62),
        calibre=bell(rng, 1.0, 0.09),
        artery_to_vein=bell(rng, 0.68, 0.04),
        tortuosity=uniform(rng, 0.5, 1.7),
        fovea_drop_deg=bell(rng, 1.9, 0.6),
        lens_density=_draw_lens(rng, age),
    )


def draw_anatomy(rng: np.random.Generator, eye: Eye, traits: Traits | None = None) -> Anatomy:
    """Draw one healthy eye.

    Args:
        rng: Source of every draw; equal states give equal eyes.
        eye: "L" or "R".
        traits: What the eye shares with its fellow; drawn first where not given.

    Returns:
        Parameters only; `fundusgen.phantom.render` makes a picture of them.
    """
    shared = draw_traits(rng) if traits is None else traits
    disc = _draw_disc(rng, shared)
    youth = min(max((60 - shared.age_years) / 40, 0.0), 1.0)
    return Anatomy(
        eye=eye,
        traits=shared,
        disc=disc,
        macula_radius_deg=uniform(rng, 2.6, 4.2),
        macula_depth=uniform(rng, 0.35, 1.05) + 0.25 * shared.pigment,
        foveal_reflex=uniform(rng, 0.0, 1.0) * youth,
        nerve_fibre_sheen=uniform(rng, 0.15, 1.0) * (0.25 + 0.75 * youth),
        mottling=uniform(rng, 0.4, 1.2),
        vessels=draw_vessels(
            rng,
            (disc.x_deg, disc.y_deg),
            calibre=shared.calibre,
            artery_to_vein=shared.artery_to_vein,
            tortuosity=shared.tortuosity,
            foveal_zone_deg=uniform(rng, 1.0, 1.6),
        ),
        texture_seed=whole(rng, 0, 2**31 - 1),
    )


def _draw_lens(rng: np.random.Generator, age_years: int) -> float:
    # The lens takes more blue light with every year (Pokorny et al., Appl Opt 26:1437, 1987);
    # an artificial one takes none.
    years = min(max((age_years - 20) / 55, 0.0), 1.0)
    density = min(years * uniform(rng, 0.45, 1.35), 1.0)
    is_replaced = float(rng.random()) < 0.3 * years * years
    return 0.05 if is_replaced else density


def _draw_disc(rng: np.random.Generator, traits: Traits) -> Disc:
    radius = traits.disc_radius_deg * uniform(rng, 0.97, 1.03)
    # Vertical ovals: 1.05 to 1.12 times higher than wide (Jonas et al. 1988).
    height = uniform(rng, 1.02, 1.09)
    return Disc(
        x_deg=bell(rng, 15.5, 0.6),
        y_deg=-traits.fovea_drop_deg + bell(rng, 0.0, 0.3),
        radius_x_deg=radius / height,
        radius_y_deg=radius * height,
        cup_ratio=min(max(traits.cup_ratio + bell(rng, 0.0, 0.04), 0.08), 0.95),
        cup_shift_deg=uniform(rng, -0.5, -0.1),
        pallor=uniform(rng, 0.0, 0.5),
        halo=uniform(rng, 0.0, 0.45),
    )
