"""One evaluation: what is generated against what is real, in five questions.

Does it look real (`realism`), is the anatomy right (`fundus_measures`), does it vary (`diversity`),
does it help to diagnose real patients (`usefulness`), and does it give training patients away
(`leakage`)? The last needs the training photographs, and so runs where these are.

What comes of it are plain statistics of real patients, without noise: they are not covered by the
generator's epsilon, and leave a hospital only if it agrees.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from fundusgen.errors import DataError
from fundusgen.evaluation.classifiers import LinearProbe, SmallNetwork
from fundusgen.evaluation.copying import ClosePair
from fundusgen.evaluation.diversity import Diversity, paired_diversity
from fundusgen.evaluation.features import FeatureExtractor
from fundusgen.evaluation.fundus_measures import MeasureDistance, measure_distances, measure_set
from fundusgen.evaluation.images import ImageSet
from fundusgen.evaluation.leakage import LEAST_TRAINED, Leakage, leakage
from fundusgen.evaluation.membership import Attack
from fundusgen.evaluation.model_attacks import model_attack
from fundusgen.evaluation.questions import Question
from fundusgen.evaluation.raw_phantoms import raw_phantoms
from fundusgen.evaluation.real_images import RealImages
from fundusgen.evaluation.realism import GENERATED, PHANTOMS, REAL, Realism, halves, realism
from fundusgen.evaluation.resampling import REPLICATES
from fundusgen.evaluation.subject import (
    Identity,
    NetworkSubject,
    Subject,
    draw,
    mixed_counts,
)
from fundusgen.evaluation.usefulness import Usefulness, UsefulnessSettings, usefulness

# Told what is being done, how much of it is done and how much there is.
Show = Callable[[str, int, int], None]
# Fewer tell little apart.
_FEW_PATIENTS = 200


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


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Distances of what is measured on every eye, in the order of the measures.

    Attributes:
        generated: From the test photographs.
        phantoms: The same of raw phantoms.
        real: Of one half of the test patients from the other.
    """

    generated: tuple[MeasureDistance, ...]
    phantoms: tuple[MeasureDistance, ...]
    real: tuple[MeasureDistance, ...]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All that was measured; None where a question was not asked or cannot be answered.

    Attributes:
        subject: What was evaluated.
        size_px: Side of all images.
        settings: What figures depend on.
        real: Of the test photographs.
        real_digest: Of the test folders.
        train: Of the training photographs, or None.
        train_digest: Of the training folders; empty where there are none.
        generated: Of all drawn images.
        not_known: Conditions of test photographs that the generator does not know.
        unusable: Test photographs that could not be read or framed.
        extractors: Name, version and digest of everything that gave features; the first leads.
        realism: One for each extractor.
        diversity: By the leading extractor, of `generated` and `real`.
        anatomy: Distances of what is measured on every eye.
        usefulness: For diagnosis.
        leakage: One for each extractor that leads to features of patients.
        model_attack: By the released weights.
        remarks: What a reader should know of this evaluation.
        seconds: That each question took.
    """

    subject: Identity
    size_px: int
    settings: EvaluationSettings
    real: Counts
    real_digest: str
    train: Counts | None
    train_digest: str
    generated: Counts
    not_known: tuple[str, ...]
    unusable: int
    extractors: tuple[Mapping[str, str], ...]
    realism: tuple[Realism, ...]
    diversity: Mapping[str, Diversity] | None
    anatomy: Anatomy | None
    usefulness: Usefulness | None
    leakage: tuple[Leakage, ...]
    model_attack: Attack | None
    remarks: tuple[str, ...]
    seconds: Mapping[str, float]


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
    )
    trained = None if train is None else train.images.of_conditions(known)
    return Material(generated, generated.subset(places), phantoms, tested, trained)


@dataclass(frozen=True, eq=False)
class Evaluated:
    """An evaluation, and what must stay where the photographs are.

    Attributes:
        evaluation: The figures.
        material: The images that they are of.
        closest: Generated images and the photographs nearest to them, by the leading extractor;
            places in `material.mixed`, `material.train` and `material.real`.
    """

    evaluation: Evaluation
    material: Material
    closest: tuple[ClosePair, ...]


def evaluated(
    subject: Subject,
    real: RealImages,
    train: RealImages | None,
    extractors: Sequence[FeatureExtractor],
    settings: EvaluationSettings,
    questions: Sequence[Question],
    show: Show,
) -> Evaluated:
    """Answer the questions.

    Args:
        subject: What to judge.
        real: Test photographs, of patients who took no part in training.
        train: Training photographs, found to be of other patients; None where they are elsewhere.
        extractors: What to measure by; the first leads.
        settings: Numbers and seeds.
        questions: What to answer.
        show: Told how far it is.
    """
    clock = _Clock()
    with clock.of("images"):
        found = material(subject, real, train, settings, show)
    remarks = list(_remarks(found, questions))
    lead, trained = extractors[0], found.train
    realisms: tuple[Realism, ...] = ()
    if Question.REALISM in questions:
        with clock.of(Question.REALISM):
            realisms = _realisms(found, extractors, settings, show)
    varied = None
    if Question.DIVERSITY in questions:
        with clock.of(Question.DIVERSITY):
            show("diversity", 0, 1)
            drawn, photographed = paired_diversity(
                found.generated, lead(found.generated.images_NSSC),
                found.real, lead(found.real.images_NSSC), settings.seed,
            )  # fmt: skip
            varied = {GENERATED: drawn, REAL: photographed}
            show("diversity", 1, 1)
    anatomy = None
    if Question.ANATOMY in questions:
        with clock.of(Question.ANATOMY):
            anatomy = _anatomy(found, settings, show)
    useful = None
    if Question.USEFULNESS in questions:
        with clock.of(Question.USEFULNESS), _told(remarks):
            useful = usefulness(
                found.real, found.generated, trained, [LinearProbe(lead)],
                networks=[SmallNetwork(settings.network_steps)],
                settings=UsefulnessSettings(
                    seeds=settings.training_seeds, replicates=settings.replicates
                ),
                on_progress=lambda done, all_: show("classifiers", done, all_),
            )  # fmt: skip
    leaks: list[Leakage] = []
    closest: tuple[ClosePair, ...] = ()
    attack = None
    if Question.LEAKAGE in questions and _attackable(found):
        assert trained is not None  # noqa: S101 - for the type checker
        with clock.of(Question.LEAKAGE):
            for extractor in extractors:
                told, pairs = leakage(
                    extractor, found.mixed, found.phantoms, trained, found.real, settings.seed,
                    replicates=settings.replicates,
                    on_progress=lambda done, all_, name=extractor.name: show(  # type: ignore[misc]
                        f"attacks by {name}", done, all_
                    ),
                )  # fmt: skip
                leaks.append(told)
                closest = closest or pairs
            if isinstance(subject, NetworkSubject):
                attack = model_attack(
                    subject.generator.study, subject.model, trained, found.real,
                    np.random.default_rng(settings.seed), replicates=settings.replicates,
                )  # fmt: skip
    not_known = sorted(set(real.images.conditions) - set(subject.conditions))
    return Evaluated(
        Evaluation(
            subject=subject.identity,
            size_px=subject.size_px,
            settings=settings,
            real=Counts.of(found.real),
            real_digest=real.digest,
            train=None if trained is None else Counts.of(trained),
            train_digest="" if train is None else train.digest,
            generated=Counts.of(found.generated),
            not_known=tuple(not_known),
            unusable=real.unusable,
            extractors=tuple(
                {"name": e.name, "version": e.version, "digest": e.digest} for e in extractors
            ),
            realism=realisms,
            diversity=varied,
            anatomy=anatomy,
            usefulness=useful,
            leakage=tuple(leaks),
            model_attack=attack,
            remarks=tuple(remarks),
            seconds=clock.seconds,
        ),
        found,
        closest,
    )


@contextmanager
def _told(remarks: list[str]) -> Iterator[None]:
    """Make a remark of what cannot be measured with these photographs; the rest can be."""
    try:
        yield
    except DataError as error:
        remarks.append(f"Usefulness was not measured: {error}")


class _Clock:
    """How long each question took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[str(name)] = round(time.perf_counter() - start, 1)


def _realisms(
    found: Material,
    extractors: Sequence[FeatureExtractor],
    settings: EvaluationSettings,
    show: Show,
) -> tuple[Realism, ...]:
    return tuple(
        realism(
            extractor, found.mixed, found.phantoms, found.real, found.train, settings.seed,
            replicates=settings.replicates,
            on_progress=lambda done, all_, name=extractor.name: show(  # type: ignore[misc]
                f"realism by {name}", done, all_
            ),
        )
        for extractor in extractors
    )  # fmt: skip


def _anatomy(found: Material, settings: EvaluationSettings, show: Show) -> Anatomy:
    """Measure eyes; the floor is one half of the test patients against the other."""
    sets = {GENERATED: found.mixed, PHANTOMS: found.phantoms, REAL: found.real}
    measured = {}
    for number, (name, images) in enumerate(sets.items()):
        show("measuring eyes", number, len(sets))
        measured[name] = measure_set(images)
    one, two = halves(found.real, settings.seed)
    floor = measure_distances(
        measure_set(one), measure_set(two), settings.seed, replicates=settings.replicates
    )
    show("measuring eyes", len(sets), len(sets))
    drawn, phantoms = (
        measure_distances(
            measured[name], measured[REAL], settings.seed, replicates=settings.replicates
        )
        for name in (GENERATED, PHANTOMS)
    )
    return Anatomy(tuple(drawn), tuple(phantoms), tuple(floor))


def _attackable(found: Material) -> bool:
    return found.train is not None and found.train.patient_count >= LEAST_TRAINED


def _remarks(found: Material, questions: Sequence[Question]) -> Iterator[str]:
    """What a reader should know before the figures."""
    if found.real.patient_count < _FEW_PATIENTS:
        yield (
            f"The test set has {found.real.patient_count} patients: intervals are wide, and small "
            "differences cannot be told."
        )
    if Question.LEAKAGE in questions and not _attackable(found):
        yield (
            "Leakage was not measured: it needs the photographs that were trained on, of "
            f"{LEAST_TRAINED} patients or more, and runs where they are."
        )
    if Question.USEFULNESS in questions and found.train is None:
        yield (
            "Without training photographs, classifiers learned from generated images alone: "
            "whether these help beside real ones is not known."
        )
