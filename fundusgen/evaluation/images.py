"""Images to evaluate with: framed pixels, whose they are, and which condition they show.

The value that everything in evaluation takes, real images and generated ones alike.

N images, S side in pixels, C colours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fundusgen.evaluation.features import check_images

# The diabetic retinopathy grade (ICDR scale) that a condition says; the others say none.
_GRADES = {"normal": 0, "dr1": 1, "dr2": 2, "dr3": 3, "dr4": 4}
NO_GRADE = -1
# Moderate retinopathy or worse is referred to an ophthalmologist.
REFERABLE_FROM = 2


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Framed images, as right eyes.

    Attributes:
        images_NSSC: (N, S, S, 3) uint8 RGB.
        conditions_N: Of each image, one of the names of `fundusgen.study.Condition`.
        patients_N: Whose each image is; generated images are each their own patient.

    Raises:
        ValueError: Shapes or lengths do not fit.
    """

    images_NSSC: NDArray[np.uint8]
    conditions_N: tuple[str, ...]
    patients_N: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that there is one of each for every image."""
        check_images(self.images_NSSC)
        if not len(self.images_NSSC) == len(self.conditions_N) == len(self.patients_N):
            raise ValueError(
                f"{len(self.images_NSSC)} images, {len(self.conditions_N)} conditions and "
                f"{len(self.patients_N)} patients: one of each is needed for every image"
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images_NSSC)

    @property
    def patient_count(self) -> int:
        """Number of patients."""
        return len(set(self.patients_N))

    @property
    def conditions(self) -> tuple[str, ...]:
        """The conditions there are, each once, in the order of their first image."""
        return tuple(dict.fromkeys(self.conditions_N))

    @property
    def grades_N(self) -> NDArray[np.int64]:
        """(N,) int64: retinopathy grade 0 to 4, `NO_GRADE` where the condition says none."""
        return np.array([_GRADES.get(name, NO_GRADE) for name in self.conditions_N], np.int64)

    def subset(self, places: Sequence[int] | NDArray[np.int64]) -> "ImageSet":
        """Some of the images, in the given order."""
        chosen = np.asarray(places, dtype=np.int64)
        return ImageSet(
            self.images_NSSC[chosen],
            tuple(self.conditions_N[place] for place in chosen),
            tuple(self.patients_N[place] for place in chosen),
        )

    def of_conditions(self, names: Sequence[str]) -> "ImageSet":
        """The images of some conditions."""
        wanted = set(names)
        return self.subset(
            [place for place, name in enumerate(self.conditions_N) if name in wanted]
        )

    def of_patients(self, patients: Sequence[str]) -> "ImageSet":
        """The images of some patients."""
        wanted = set(patients)
        return self.subset([place for place, who in enumerate(self.patients_N) if who in wanted])


def joined(sets: Sequence[ImageSet]) -> ImageSet:
    """Several sets as one, in order.

    Raises:
        ValueError: There is none, or sides differ.
    """
    if not sets:
        raise ValueError("no set to join")
    return ImageSet(
        np.concatenate([images.images_NSSC for images in sets]),
        tuple(name for images in sets for name in images.conditions_N),
        tuple(who for images in sets for who in images.patients_N),
    )
