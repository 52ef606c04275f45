"""What disease adds to an eye, as parameters: spots, new vessels and changes of the media.

Second step of the simulator: `draw_lesions` takes a condition and a healthy eye. Diabetic grades
follow the international clinical scale (Wilkinson et al., Ophthalmology 110:1677, 2003): dr1
microaneurysms only; dr2 more than that, without what makes dr3; dr3 the 4-2-1 rule, of which one
part would do and all are drawn: blood in four quadrants, venous beading in two or more,
intraretinal microvascular abnormalities (IRMA) in one or more; dr4 new vessels, with or without
preretinal blood. Macular degeneration has the stages of the Beckman classification (Ferris et al.,
Ophthalmology 120:844, 2013), with drusen of 63 and 125 um as borders; 288 um are a degree.

Positions and sizes are degrees of visual angle as in `anatomy`. N spots of a kind.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from fundusgen.errors import DataError
from fundusgen.phantom.anatomy import Anatomy
from fundusgen.phantom.exact import uniform, whole
from fundusgen.phantom.spots import (
    Spots,
    along_fibres,
    around_disc,
    around_fovea,
    exudates,
    in_every_quadrant,
    joined,
    laser_scars,
    new_vessel_tufts,
    quadrants,
    scattered,
)
from fundusgen.phantom.vessels import VesselLevel


@dataclass(frozen=True, eq=False)
class Lesions:
    """Everything a condition adds to an eye.

    Attributes:
        condition: One of `PHANTOM_CONDITIONS`.
        spots: Spots by kind; the kinds are the keys of `fundusgen.phantom.looks.LOOKS`.
        new_vessels: Neovascular tufts and IRMA, or None.
        venous_beading: Relative amplitude of the veins' beading.
        beaded: Quadrants with beaded veins, numbered as by `fundusgen.phantom.spots.quadrants`.
        nicking: How far veins are pinched where an artery crosses them, 0 to 1.
        artery_scale: Factor on the arteries' width.
        tessellation: Added to the patient's; myopia thins the pigment.
        cup_ratio: Cup-to-disc ratio where disease sets it.
        disc_pallor: Added to the disc's pallor.
        haze: Share of stray light from a cloudy lens, 0 to 1.
        blur_deg: Standard deviation of the lens' blur in degrees.
        yellowing: Loss of blue and green in the lens, 0 to 1.
    """

    condition: str
    spots: Mapping[str, Spots] = field(default_factory=lambda: MappingProxyType({}))
    new_vessels: VesselLevel | None = None
    venous_beading: float = 0.0
    beaded: tuple[int, ...] = ()
    nicking: float = 0.0
    artery_scale: float = 1.0
    tessellation: float = 0.0
    cup_ratio: float | None = None
    disc_pallor: float = 0.0
    haze: float = 0.0
    blur_deg: float = 0.0
    yellowing: float = 0.0


def draw_lesions(rng: np.random.Generator, condition: str, anatomy: Anatomy) -> Lesions:
    """Draw what a condition adds to one eye.

    Args:
        rng: Source of every draw.
        condition: One of `PHANTOM_CONDITIONS`.
        anatomy: The eye; lesions keep off its disc and follow its nerve fibres.

    Raises:
        DataError: The condition is not one that the simulator can draw.
    """
    check_conditions([condition])
    return _DRAW[condition](rng, anatomy)


def meets_4_2_1(lesions: Lesions) -> bool:
    """Say whether lesions are severe by all three parts of the 4-2-1 rule, short of new vessels.

    Two haemorrhages a quadrant are asked for, not the twenty of the original: a photograph shows
    the posterior pole alone, and at most 256 px of it.
    """
    blood = lesions.spots.get("haemorrhage")
    if blood is None or lesions.new_vessels is None:
        return False
    counts = np.bincount(quadrants(blood.centre_N2), minlength=4)
    return bool((counts >= 2).all()) and lesions.venous_beading > 0 and len(lesions.beaded) >= 2


def check_conditions(conditions: object) -> None:
    """Refuse conditions that the simulator cannot draw.

    Args:
        conditions: An iterable of names.

    Raises:
        DataError: Names the first unknown condition and all known ones.
    """
    for condition in conditions:  # type: ignore[attr-defined]
        if condition not in _DRAW:
            raise DataError(
                f"the condition {condition!r} cannot be drawn as a phantom",
                expected="one of " + ", ".join(PHANTOM_CONDITIONS),
                remedy="Choose one of these, or leave the condition out of the phantoms' mix",
            )


def _normal(rng: np.random.Generator, anatomy: Anatomy) -> Lesions:
    # Normal eyes of the old often have a few hard drusen; they do not make AMD.
    few = whole(rng, 0, 5) if anatomy.traits.age_years > 55 else 0
    return Lesions("normal", _kept(drusen=around_fovea(rng, few, 8.0, (0.08, 0.16), (0.2, 0.5))))


def _dr1(rng: np.random.Generator, anatomy: Anatomy) -> Lesions:
    dots = scattered(rng, anatomy, whole(rng, 2, 8), (0.16, 0.27), (0.6, 0.95))
    return Lesions("dr1", _kept(microaneurysm=dots))


def _dr2(rng: np.random.Generator, anatomy: Anatomy) -> Lesions:
    return Lesions("dr2", _kept(**_background(rng, anatomy, 1.0)))


def _dr3(rng: np.random.Generator, anatomy: Anatomy) -> Lesions:
    spots = _background(rng, anatomy, 1.6)
    blots = in_every_quadrant(rng, anatomy, whole(rng, 2, 7), (0.2, 0.7), (0.55, 0.95))
    spots["haemorrhage"] = joined(spots["haemorrhage"], blots)
    return Lesions(
        "dr3",
        _kept(**spots),
        new_vessels=new_vessel_tufts(rng, anatomy, whole(rng, 1, 3), at_disc=0.0, size_deg=1.6),
        venous_beading=uniform(rng, 0.2, 0.45),
        beaded=_beaded(rng, whole(rng, 2, 4)),
    )


def _dr4(rng: np.random.Generator, anatomy: Anatomy) -> Lesions:
    spots = _background(rng, anatomy, uniform(rng, 0.7, 2.0))
    blood = max(whole(rng, -1, 2), 0)
    spots["preretinal"] = scattered(rng, anatomy, blood, (1.6, 4.5), (0.65, 1.0))
    if uniform(rng, 0, 1) < 0.35:
        spots["laser_scar"] = laser_scars(rng, anatomy)
    return Lesions(
        "dr4",
        _kept(**spots),
        new_vessels=new_vessel_tufts(rng, anatomy, whole(rng, 2, 5), at_disc=0.5, size_deg=3.2),
        venous_beading=uniform(rng, 0.0, 0.4),
        beaded=_beaded(rng, whole(rng, 1, 4)),
        haze=uniform(rng, 0.0, 0.12),
    )


def _amd(rng: np.random.Generator, anatomy: Anatomy) -> Lesions:
    stage = uniform(rng, 0, 1)
    if stage < 0.3:
        # Early: drusen of medium size and no change of the pigment.
        medium = around_fovea(rng, whole(rng, 10, 45), 6.0, (0.11, 0.22), (0.35, 0.85))
        return Lesions("amd", _kept(drusen=medium))
    drusen = around_fovea(rng, whole(rng, 25, 90), 6.5, (0.12, 0.45), (0.35, 0.9))
    pigment = around_fovea(rng, whole(rng, 0, 8), 4.0, (0.12, 0.4), (0.3, 0.8))
    if stage < 0.65:
        return Lesions("amd", _kept(drusen=drusen, pigment=pigment))
    # Late: atrophy, or a scar with blood of vessels that grew under the macula.
    if stage < 0.82:
        patch = around_fovea(rng, whole(rng, 1, 3), 1.6, (1.2, 3.0), (0.6, 0.95))
        return Lesions("amd", _kept(drusen=drusen, pigment=pigment, atrophy=patch))
    scar = around_fovea(rng, 1, 1.2, (1.4, 3.2), (0.55, 0.9))
    blood = around_fovea(rng, whole(rng, 1, 3), 3.4, (0.8, 2.4), (0.6, 0.95))
    return Lesions("amd", _kept(drusen=drusen, exudate_plaque=scar, haemorrhage=blood))


def _glaucoma(rng: np.random.Generator, anatomy: Anatomy) -> Lesions:
    halo = around_disc(rng, anatomy, 1, uniform(rng, 1.05, 1.3), shift=0.1, strength=(0.2, 0.6))
    return Lesions(
        "glaucoma",
        _kept(peripapillary=halo),
        cup_ratio=uniform(rng, 0.66, 0.92),
        disc_pallor=uniform(rng, 0.2, 0.6),
    )


def _cataract(rng: np.random.Generator, anatomy: Anatomy) -> Lesions:
    density = uniform(rng, 0.25, 1.0)
    return Lesions(
        "cataract",
        haze=0.12 + 0.5 * density * uniform(rng, 0.6, 1.0),
        blur_deg=0.15 + 0.75 * density * density,
        yellowing=density * uniform(rng, 0.2, 0.9),
    )


def _myopia(rng: np.random.Generator, anatomy: Anatomy) -> Lesions:
    severe = uniform(rng, 0, 1)
    crescent = around_disc(
        rng, anatomy, 1, 1.25 + 0.75 * severe, shift=0.25 + 0.5 * severe, strength=(0.6, 0.95)
    )
    count = whole(rng, 1, 6) if severe > 0.55 else 0
    patches = around_fovea(rng, count, 7.0, (0.6, 1.2 + 2.0 * severe), (0.4, 0.9))
    return Lesions(
        "myopia",
        _kept(peripapillary=crescent, atrophy=patches),
        tessellation=0.45 + 0.5 * severe,
        disc_pallor=uniform(rng, 0.0, 0.5),
    )


def _hypertension(rng: np.random.Generator, anatomy: Anatomy) -> Lesions:
    flames = along_fibres(rng, anatomy, whole(rng, 0, 5), (0.4, 1.0))
    wool = along_fibres(rng, anatomy, whole(rng, 0, 4), (0.5, 1.0))
    return Lesions(
        "hypertension",
        _kept(haemorrhage=flames, cotton_wool=wool),
        artery_scale=uniform(rng, 0.55, 0.78),
        nicking=uniform(rng, 0.3, 0.8),
    )


_DRAW: Mapping[str, Callable[[np.random.Generator, Anatomy], Lesions]] = MappingProxyType(
    {
        "normal": _normal,
        "dr1": _dr1,
        "dr2": _dr2,
        "dr3": _dr3,
        "dr4": _dr4,
        "amd": _amd,
        "glaucoma": _glaucoma,
        "cataract": _cataract,
        "myopia": _myopia,
        "hypertension": _hypertension,
    }
)
PHANTOM_CONDITIONS: tuple[str, ...] = tuple(_DRAW)


def _background(rng: np.random.Generator, anatomy: Anatomy, load: float) -> dict[str, Spots]:
    """Microaneurysms, haemorrhages, exudates and cotton wool of a diabetic retina."""
    blots = scattered(rng, anatomy, int(load * whole(rng, 4, 14)), (0.18, 0.75), (0.55, 0.95))
    flames = along_fibres(rng, anatomy, int(load * whole(rng, 0, 5)), (0.35, 0.95))
    wool = int(load * uniform(rng, 0.0, 3.0))
    return {
        "microaneurysm": scattered(
            rng, anatomy, int(load * whole(rng, 6, 22)), (0.14, 0.28), (0.5, 0.95)
        ),
        "haemorrhage": joined(blots, flames),
        "exudate": exudates(rng, anatomy, whole(rng, 0, 2 + int(2 * load)), load),
        "cotton_wool": along_fibres(rng, anatomy, wool, (0.55, 1.1)),
    }


def _beaded(rng: np.random.Generator, count: int) -> tuple[int, ...]:
    order = np.argsort(rng.random(4), kind="stable")
    return tuple(sorted(order[:count].tolist()))


def _kept(**spots: Spots) -> Mapping[str, Spots]:
    return MappingProxyType({kind: part for kind, part in spots.items() if len(part.strength_N)})
