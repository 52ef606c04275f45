"""What disease adds to an eye, as parameters: spots, new vessels and changes of the media.

Second step of the simulator: `draw_lesions` takes a condition and a healthy eye. Diabetic grades
follow the international clinical scale (Wilkinson et al., Ophthalmology 110:1677, 2003): dr1
microaneurysms only; dr2 more than that; dr3 the 4-2-1 rule; dr4 new vessels or preretinal blood.

Positions and sizes are degrees of visual angle as in `anatomy`. N spots of a kind.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from fundusgen.errors import DataError
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


@dataclass(frozen=True, eq=False)
class Lesions:
    """Everything a condition adds to an eye.

    Attributes:
        condition: One of `PHANTOM_CONDITIONS`.
        spots: Spots by kind; the kinds are the keys of `fundusgen.phantom.looks.LOOKS`.
        new_vessels: Neovascular tufts and IRMA, or None.
        venous_beading: Relative amplitude of the veins' beading.
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
                remedy="choose one of these, or leave the condition out of the phantoms' mix",
            )


def _normal(rng: np.random.Generator, anatomy: Anatomy) -> Lesions:
    # Normal eyes of the old often have a few hard drusen; they do not make AMD.
    few = whole(rng, 0, 5) if anatomy.traits.age_years > 55 else 0
    return Lesions("normal", _kept(drusen=_round(rng, few, 8.0, (0.08, 0.16), (0.2, 0.5))))


def _dr1(rng: np.random.Generator, anatomy: Anatomy) -> Lesions:
    dots = _scattered(rng, anatomy, whole(rng, 2, 8), (0.16, 0.27), (0.6, 0.95))
    return Lesions("dr1", _kept(microaneurysm=dots))


def _dr2(rng: np.random.Generator, anatomy: Anatomy) -> Lesions:
    return Lesions("dr2", _kept(**_background(rng, anatomy, 1.0)))


def _dr3(rng: np.random.Generator, anatomy: Anatomy) -> Lesions:
    return Lesions(
        "dr3",
        _kept(**_background(rng, anatomy, 2.2)),
        new_vessels=_tufts(rng, anatomy, whole(rng, 1, 3), at_disc=0.0, size_deg=1.6),
        venous_beading=uniform(rng, 0.2, 0.45),
    )


def _dr4(rng: np.random.Generator, anatomy: Anatomy) -> Lesions:
    spots = _background(rng, anatomy, uniform(rng, 0.7, 2.0))
    blood = whole(rng, 0, 2)
    spots["preretinal"] = _scattered(rng, anatomy, blood, (1.6, 4.2), (0.8, 1.0))
    if uniform(rng, 0, 1) < 0.35:
        spots["laser_scar"] = _laser(rng, anatomy)
    return Lesions(
        "dr4",
        _kept(**spots),
        new_vessels=_tufts(rng, anatomy, whole(rng, 2, 5), at_disc=0.5, size_deg=3.2),
        venous_beading=uniform(rng, 0.0, 0.4),
        haze=uniform(rng, 0.0, 0.12),
    )


def _amd(rng: np.random.Generator, anatomy: Anatomy) -> Lesions:
    stage = uniform(rng, 0, 1)
    drusen = _round(rng, whole(rng, 25, 90), 6.5, (0.10, 0.42), (0.35, 0.9))
    if stage < 0.6:
        return Lesions("amd", _kept(drusen=drusen))
    if stage < 0.8:
        patch = _round(rng, whole(rng, 1, 3), 1.6, (1.2, 3.0), (0.6, 0.95))
        return Lesions("amd", _kept(drusen=drusen, atrophy=patch))
    scar = _round(rng, 1, 1.2, (1.4, 3.2), (0.55, 0.9))
    blood = _round(rng, whole(rng, 1, 3), 3.4, (0.8, 2.4), (0.6, 0.95))
    return Lesions("amd", _kept(drusen=drusen, exudate_plaque=scar, haemorrhage=blood))


def _glaucoma(rng: np.random.Generator, anatomy: Anatomy) -> Lesions:
    halo = _at_disc(rng, anatomy, 1, uniform(rng, 1.05, 1.3), shift=0.1, strength=(0.2, 0.6))
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
    crescent = _at_disc(
        rng, anatomy, 1, 1.25 + 0.75 * severe, shift=0.25 + 0.5 * severe, strength=(0.6, 0.95)
    )
    count = whole(rng, 1, 6) if severe > 0.55 else 0
    patches = _round(rng, count, 7.0, (0.6, 1.2 + 2.0 * severe), (0.4, 0.9))
    return Lesions(
        "myopia",
        _kept(peripapillary=crescent, atrophy=patches),
        tessellation=0.45 + 0.5 * severe,
        disc_pallor=uniform(rng, 0.0, 0.5),
    )


def _hypertension(rng: np.random.Generator, anatomy: Anatomy) -> Lesions:
    flames = _flames(rng, anatomy, whole(rng, 0, 5), (0.4, 1.0))
    wool = _flames(rng, anatomy, whole(rng, 0, 4), (0.5, 1.0))
    return Lesions(
        "hypertension",
        _kept(haemorrhage=flames, cotton_wool=wool),
        artery_scale=uniform(rng, 0.55, 0.78),
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
    blots = _scattered(rng, anatomy, int(load * whole(rng, 4, 14)), (0.18, 0.75), (0.55, 0.95))
    flames = _flames(rng, anatomy, int(load * whole(rng, 0, 5)), (0.35, 0.95))
    wool = int(load * uniform(rng, 0.0, 3.0))
    return {
        "microaneurysm": _scattered(
            rng, anatomy, int(load * whole(rng, 6, 22)), (0.14, 0.28), (0.5, 0.95)
        ),
        "haemorrhage": _joined(blots, flames),
        "exudate": _exudates(rng, anatomy, whole(rng, 0, 2 + int(2 * load)), load),
        "cotton_wool": _flames(rng, anatomy, wool, (0.55, 1.1)),
    }


def _scattered(
    rng: np.random.Generator,
    anatomy: Anatomy,
    count: int,
    radius: tuple[float, float],
    strength: tuple[float, float],
) -> Spots:
    # Around the posterior pole, as far as a field of 45 to 50 degrees shows, off the disc.
    centre = np.stack([bells(rng, 2.5, 8.6, count), bells(rng, 0.0, 8.0, count)], axis=1)
    return _spots(rng, _off_disc(centre, anatomy), radius, strength)


def _round(
    rng: np.random.Generator,
    count: int,
    spread_deg: float,
    radius: tuple[float, float],
    strength: tuple[float, float],
) -> Spots:
    """Spots about the fovea, denser towards it."""
    return _spots(rng, bells(rng, 0.0, spread_deg * 0.42, count, 2), radius, strength)


def _exudates(rng: np.random.Generator, anatomy: Anatomy, clusters: int, load: float) -> Spots:
    parts = []
    for _ in range(clusters):
        centre = _off_disc(
            np.array([[bell(rng, -0.5, 6.0), bell(rng, 0.0, 5.2)]]), anatomy, margin=1.9
        )
        count = int((0.6 + 0.4 * load) * whole(rng, 5, 26))
        # Circinate: exudates line the rim of a leaking area.
        ring, width = uniform(rng, 0.3, 2.2), uniform(rng, 0.15, 0.7)
        cosine, sine = cos_sin(uniforms(rng, 0.0, 1.0, count) * uniform(rng, 0.4, 1.0))
        away = ring + bells(rng, 0.0, width, count)
        place = centre + np.stack([cosine * away, sine * away], axis=1)
        parts.append(_spots(rng, place, (0.07, 0.34), (0.5, 1.0)))
    return _joined(*parts)


def _flames(
    rng: np.random.Generator, anatomy: Anatomy, count: int, radius: tuple[float, float]
) -> Spots:
    spots = _scattered(rng, anatomy, count, radius, (0.5, 0.9))
    # Blood and swelling in the nerve-fibre layer spread along the fibres, away from the disc.
    away = spots.centre_N2 - np.array([anatomy.disc.x_deg, anatomy.disc.y_deg])
    length = np.sqrt(away[:, 0] * away[:, 0] + away[:, 1] * away[:, 1]) + 1e-9
    stretch = uniforms(rng, 0.35, 0.7, count)
    return replace(
        spots,
        direction_N2=away / length[:, None],
        radius_N2=np.stack([spots.radius_N2[:, 0], spots.radius_N2[:, 0] * stretch], axis=1),
    )


def _laser(rng: np.random.Generator, anatomy: Anatomy) -> Spots:
    count = whole(rng, 20, 60)
    cosine, sine = cos_sin(uniforms(rng, 0.0, 1.0, count))
    away = uniforms(rng, 11.5, 23.0, count)
    centre = np.stack([2.0 + cosine * away, sine * away], axis=1)
    return _spots(rng, _off_disc(centre, anatomy, margin=1.8), (0.35, 0.65), (0.35, 0.8))


def _at_disc(
    rng: np.random.Generator,
    anatomy: Anatomy,
    count: int,
    scale: float,
    *,
    shift: float,
    strength: tuple[float, float],
) -> Spots:
    disc = anatomy.disc
    centre = np.array([[disc.x_deg - shift * disc.radius_x_deg, disc.y_deg]] * count)
    spots = _spots(rng, centre, (1.0, 1.01), strength)
    half_axes = np.array([[disc.radius_x_deg * scale, disc.radius_y_deg * scale]] * count)
    return replace(
        spots, radius_N2=half_axes, direction_N2=np.array([[1.0, 0.0]] * count).reshape(-1, 2)
    )


def _tufts(
    rng: np.random.Generator, anatomy: Anatomy, count: int, *, at_disc: float, size_deg: float
) -> VesselLevel:
    """Fans of fine, winding vessels without the order of a tree."""
    strands = 9
    foci = _off_disc(
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
    controls = controls + spread * bells(rng, 0.0, 0.75, len(start), 4, 2)
    radius = np.repeat(uniforms(rng, 0.05, 0.10, len(start))[:, None], 13, axis=1)
    return VesselLevel(
        bezier(controls, 13),
        radius,
        np.zeros(len(start), dtype=np.bool_),
        np.full(len(start), -1, dtype=np.int64),
    )


def _off_disc(centre_N2: Floats, anatomy: Anatomy, margin: float = 1.35) -> Floats:
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


def _joined(*parts: Spots) -> Spots:
    if not parts:
        nothing = np.zeros((0, 2))
        return Spots(nothing, nothing, nothing, np.zeros(0))
    return Spots(
        np.concatenate([part.centre_N2 for part in parts]),
        np.concatenate([part.radius_N2 for part in parts]),
        np.concatenate([part.direction_N2 for part in parts]),
        np.concatenate([part.strength_N for part in parts]),
    )


def _kept(**spots: Spots) -> Mapping[str, Spots]:
    return MappingProxyType({kind: part for kind, part in spots.items() if len(part.strength_N)})
