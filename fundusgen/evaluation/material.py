"""The images that an evaluation is made of: drawn ones, raw phantoms and photographs.

The first step of `evaluation`, after `subject` and `real_images` have found out what there is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fundusgen.evaluation.images import ImageSet
from fundusgen.evaluation.raw_phantoms import raw_phantoms
from fundusgen.evaluation.real_images import RealImages
from fundusgen.evaluation.resampling import REPLICATES
from fundusgen.evaluation.subject import Subject, draw, mixed_counts

# Told what is being done, how much of it is done and how much there is.
Show = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EvaluationSettings:
    """What figures depend on, besides the images.

    Attributes:
        images: Generated images, in the real ones' mix of conditions.
        per_condition: At least so many of each condition, for what is measured by condition.
        phantoms: Raw phantoms beside them.
        seed: Of drawing, halving and resampling.
        training_seeds: Classifiers are trained once with each.
        network_steps: Of each training of the small network, which takes longest of all.
        replicates: Of every bootstrap.
        workers: Processes, where work is shared.
    """

    images: int = 5000
    per_condition: int = 300
    phantoms: int = 2000
    seed: int = 0
    training_seeds: tuple[int, ...] = (0, 1, 2)
    network_steps: int = 300
    replicates: int = REPLICATES
    workers: int = 1


@dataclass(frozen=True)
class Counts:
    """How many there are.

    Attributes:
        images: Of all conditions.
        patients: The same; generated images have none.
        images_of: Images of each condition.
    """

    images: int
    patients: int
    images_of: Mapping[str, int]

    @classmethod
    def of(cls, images: ImageSet) -> "Counts":
        """Count."""
        each = {name: images.conditions_N.count(name) for name in sorted(images.conditions)}
        return cls(len(images), images.patient_count, each)


@dataclass(frozen=True, eq=False)
class Material:
    """The images that an evaluation is made of.

    Attributes:
        generated: All that was drawn.
        mixed: Of these, those in the real images' mix of conditions.
        phantoms: Raw phantoms in the same mix.
        real: Test photographs of the generator's conditions.
        train: Training photographs of the same; None where they are elsewhere.
    """

    generated: ImageSet
    mixed: ImageSet
    phantoms: ImageSet
    real: ImageSet
    train: ImageSet | None


def material(
    subject: Subject,
    real: RealImages,
    train: RealImages | None,
    settings: EvaluationSettings,
    show: Show,
) -> Material:
    """Draw what is to be judged, and raw phantoms beside it.

    Args:
        subject: What draws.
        real: The test photographs, of any condition.
        train: The training photographs, or None.
        settings: Numbers and seed.
        show: Told how far it is.
    """
    known = [name for name in subject.conditions if name in real.images.conditions]
    tested = real.images.of_conditions(known)
    shares = {name: float(tested.conditions_N.count(name)) for name in known}
    mix = mixed_counts(shares, settings.images, 0)
    counts = mixed_counts(shares, settings.images, settings.per_condition)
    generated = draw(
        subject, counts, settings.seed, lambda done, all_: show("drawing images", done, all_)
    )
    places: list[int] = []
    for name in known:
        of_name = [n for n, condition in enumerate(generated.conditions_N) if condition == name]
        places += of_name[: mix[name]]
    phantoms = raw_phantoms(
        mixed_counts(shares, settings.phantoms, 0),
        subject.size_px,
        lambda done, all_: show("drawing phantoms", done, all_),
        workers=settings.workers,
    )
    trained = None if train is None else train.images.of_conditions(known)
    return Material(generated, generated.subset(places), phantoms, tested, trained)
