"""How each kind of lesion looks: colour, edge and roughness. Read by `fundusgen.phantom.retina`."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Look:
    """Appearance of one kind of lesion.

    Attributes:
        density: Optical density added for red, green, blue; blood and pigment.
        colour: Reflectance relative to the fundus where the lesion covers it; pale lesions.
        softness: Width of the edge as a share of the radius.
        roughness: How far the edge wanders, as a share of the radius.
        flat_top: Settled blood has a level surface.
        under_disc: The disc is painted over it.
    """

    density: tuple[float, float, float] = (0.0, 0.0, 0.0)
    colour: tuple[float, float, float] | None = None
    softness: float = 0.4
    roughness: float = 0.15
    flat_top: bool = False
    under_disc: bool = False


# Pale lesions lie under the blood, so they come first; the order is the order of painting.
LOOKS: Mapping[str, Look] = MappingProxyType(
    {
        "peripapillary": Look(colour=(1.9, 2.6, 3.2), softness=0.3, roughness=0.1, under_disc=True),
        "atrophy": Look(colour=(1.8, 2.5, 3.0), softness=0.15, roughness=0.35),
        "laser_scar": Look(colour=(1.3, 2.0, 1.9), softness=0.5, roughness=0.2),
        "drusen": Look(colour=(1.25, 1.75, 1.5), softness=0.7, roughness=0.2),
        "exudate_plaque": Look(colour=(1.4, 2.6, 2.2), softness=0.5, roughness=0.35),
        "cotton_wool": Look(colour=(1.35, 2.3, 3.4), softness=0.9, roughness=0.3),
        "exudate": Look(colour=(1.6, 3.2, 1.9), softness=0.35, roughness=0.2),
        "pigment": Look(density=(0.5, 0.8, 0.7), softness=0.7, roughness=0.35),
        "microaneurysm": Look(density=(0.45, 1.1, 0.7), softness=0.6, roughness=0.0),
        "haemorrhage": Look(density=(0.75, 1.4, 1.0), softness=0.45, roughness=0.4),
        "preretinal": Look(density=(0.6, 1.5, 1.0), softness=0.3, roughness=0.08, flat_top=True),
    }
)
