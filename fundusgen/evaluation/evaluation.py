"""One evaluation: what is generated against what is real, in five questions.

Does it look real (`realism`), is the anatomy right (`fundus_measures`), does it vary (`diversity`),
does it help to diagnose real patients (`usefulness`), and does it give training patients away
(`leakage`)? The last needs the training photographs, and so runs where these are.

What comes of it are plain statistics of real patients, without noise: they are not covered by the
generator's epsilon, and leave a hospital only if it agrees.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from fundusgen.errors import DataError
from fundusgen.evaluation.copying import ClosePair
from fundusgen.evaluation.diversity import Diversity, paired_diversity
from fundusgen.evaluation.features import FeatureExtractor
from fundusgen.evaluation.fundus_measures import MeasureDistance, measure_distances, measure_set
from fundusgen.evaluation.images import joined
from fundusgen.evaluation.leakage import LEAST_TRAINED, Leakage, leakage
from fundusgen.evaluation.linear_probe import LinearProbe
from fundusgen.evaluation.material import (
    Counts,
    EvaluationSettings,
    Material,
    Show,
    material,
)
from fundusgen.evaluation.membership import Attack
from fundusgen.evaluation.model_attacks import model_attack
from fundusgen.evaluation.questions import Question
from fundusgen.evaluation.real_images import RealImages
from fundusgen.evaluation.realism import GENERATED, REAL, Realism, halves, realism
from fundusgen.evaluation.remembered_features import RememberedFeatures
from fundusgen.evaluation.small_network import SmallNetwork
from fundusgen.evaluation.subject import Identity, NetworkSubject, Subject
from fundusgen.evaluation.usefulness import Usefulness, usefulness
from fundusgen.evaluation.usefulness_settings import UsefulnessSettings
from fundusgen.models.generator import TRAINING_FILE

# Fewer tell little apart.
_FEW_PATIENTS = 200


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
        model_attack: By all weights of the model; None where not all are there.
        attacked_digest: SHA-256 of those that do not draw, as they were attacked; empty where
            they were not.
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
    attacked_digest: str
    remarks: tuple[str, ...]
    seconds: Mapping[str, float]


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
    whole = None
    if Question.LEAKAGE in questions and train is not None and isinstance(subject, NetworkSubject):
        # First of all: what is wrong with it is found before minutes have passed.
        whole = subject.whole_model()
    with clock.of("images"):
        found = material(subject, real, train, settings, show)
    remarks = list(_remarks(found, questions))
    if isinstance(subject, NetworkSubject) and whole is None and _attackable(found):
        remarks += _not_attacked(questions)
    extractors = [RememberedFeatures(extractor) for extractor in extractors]
    lead, trained = extractors[0], found.train
    if set(questions) - {Question.ANATOMY}:
        with clock.of("features"):
            # All at once, so that figures do not depend on which questions are asked.
            lead(found.generated.images_NSSC)
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
            if isinstance(subject, NetworkSubject) and whole is not None:
                attack = model_attack(
                    subject.generator.study, whole.model, trained, found.real,
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
            attacked_digest=whole.rest_digest if attack and whole else "",
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
    sets = (found.mixed, found.phantoms, found.real)
    measured = measure_set(
        joined(sets), workers=settings.workers,
        on_progress=lambda done, all_: show("measuring eyes", done, all_),
    )  # fmt: skip
    ends = np.cumsum([len(images) for images in sets])
    drawn, phantoms, real = map(measured.subset, np.split(np.arange(ends[-1]), ends[:-1]))
    one, two = map(real.subset, halves(found.real.patients_N, settings.seed))
    return Anatomy(
        *(
            measure_distances(x, y, settings.seed, replicates=settings.replicates)
            for x, y in ((drawn, real), (phantoms, real), (one, two))
        )
    )


def _attackable(found: Material) -> bool:
    return found.train is not None and found.train.patient_count >= LEAST_TRAINED


def _not_attacked(questions: Sequence[Question]) -> Iterator[str]:
    if Question.LEAKAGE in questions:
        yield (
            "Leakage by all weights of the model was not measured: only what draws is there. "
            f"Evaluate the run itself, or lay its {TRAINING_FILE} beside the generator."
        )


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
