"""What is to be diagnosed, on whom it can be tested, and what it can be learned from.

The first step of `usefulness`. Tasks: referable retinopathy; its grade; each disease against
normal; and the rarest condition against all others, topped up with generated images. A task that
too few patients show is left out, and it is said why.

N images.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fundusgen.errors import DataError
from fundusgen.evaluation.diagnosis_scores import ScoreName
from fundusgen.evaluation.images import REFERABLE_FROM, ImageSet
from fundusgen.evaluation.usefulness_settings import UsefulnessSettings

Regime = Literal["real", "synthetic", "real_and_synthetic", "topped_up"]

REFERABLE, GRADE, RARE = "referable", "grade", "rare"
_GRADES = ("normal", "dr1", "dr2", "dr3", "dr4")
# Not a disease that a photograph could be found to show.
_NO_DISEASE = (*_GRADES, "unknown")
_TWO_CLASSES: tuple[ScoreName, ...] = ("auc", "balanced_accuracy")
_MANY_CLASSES: tuple[ScoreName, ...] = ("quadratic_kappa", "balanced_accuracy")


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be diagnosed, and on whom it is tested.

    Attributes:
        name: `REFERABLE`, `GRADE`, the disease that is told from normal, or `RARE`.
        classes: The conditions of each class, in the order of the classes.
        scores: What is measured.
        patients: Test patients of each class.
        images: Their photographs.
    """

    name: str
    classes: tuple[tuple[str, ...], ...]
    scores: tuple[ScoreName, ...]
    patients: tuple[int, ...] = ()
    images: tuple[int, ...] = ()

    def labels(self, images: ImageSet) -> NDArray[np.int64]:
        """The class of each image, (N,) int64, -1 where it has no part in the task."""
        of = {name: label for label, names in enumerate(self.classes) for name in names}
        return np.array([of.get(name, -1) for name in images.conditions_N], np.int64)


@dataclass(frozen=True)
class LeftOut:
    """What could not be measured, and why; the regime is None where it is the whole task."""

    task: str
    regime: Regime | None
    reason: str


def possible_tasks(
    test: ImageSet, train: ImageSet | None, settings: UsefulnessSettings
) -> tuple[list[Task], list[LeftOut]]:
    """Find the tasks with enough test patients of every class.

    Args:
        test: Photographs to test on.
        train: Photographs to learn from; without any, there is no rarest condition.
        settings: How many patients are enough.

    Returns:
        The tasks, of which the first is learned along the curve of shares, and those left out.

    Raises:
        DataError: No task is left.
    """
    diseases = [name for name in test.conditions if name not in _NO_DISEASE]
    wanted = [
        Task(REFERABLE, (_GRADES[:REFERABLE_FROM], _GRADES[REFERABLE_FROM:]), _TWO_CLASSES),
        Task(GRADE, tuple((name,) for name in _GRADES), _MANY_CLASSES),
        *(Task(name, (("normal",), (name,)), _TWO_CLASSES) for name in sorted(diseases)),
    ]
    tasks, left_out = [], []
    rare = None if train is None else _rarest(test, train, settings)
    for task in [*wanted, *([rare] if rare else [])]:
        patients = _patients(task, test)
        least = _least(task, settings)
        if min(patients) < least:
            reason = f"{_listed(task, patients)} test patients: {least} of each are needed"
            left_out.append(LeftOut(task.name, None, reason))
            continue
        counts = np.bincount(task.labels(test) + 1, minlength=len(task.classes) + 1)[1:]
        tasks.append(Task(task.name, task.classes, task.scores, patients, tuple(counts.tolist())))
    if not tasks:
        raise DataError(
            "no diagnosis has enough test patients to be measured",
            expected=f"{settings.least_patients} patients or more with a disease, and without",
            remedy="Test on more patients, of whom the condition is known",
        )
    return tasks, left_out


def shortage(train: ImageSet, task: Task) -> int:
    """Say by how many photographs the rare condition is below the median of all conditions."""
    counts = Counter(name for name in train.conditions_N if name != "unknown")
    (rare,) = task.classes[1]
    return int(np.median(list(counts.values()))) - counts[rare]


def possible_regimes(
    task: Task, train: ImageSet, synthetic: ImageSet, settings: UsefulnessSettings
) -> tuple[list[Regime], list[LeftOut]]:
    """Find what a task can be learned from, photographs first, and why not from others.

    Args:
        task: From `possible_tasks`.
        train: Photographs to learn from; none where they are elsewhere.
        synthetic: Generated images.
        settings: How many patients are enough.
    """
    least = _least(task, settings)
    regimes: list[Regime] = []
    left_out = []
    both: Regime = "topped_up" if task.name == RARE else "real_and_synthetic"
    patients = _patients(task, train)
    generated = _patients(task, synthetic)
    if min(patients) >= least:
        regimes.append("real")
    elif len(train):
        reason = f"{_listed(task, patients)} training patients: {least} of each are needed"
        left_out += [LeftOut(task.name, regime, reason) for regime in ("real", both)]
    # Topping up asks for generated images of the rare condition only.
    if min(generated[1:] if task.name == RARE else generated) >= least:
        if task.name != RARE:
            regimes.append("synthetic")
        if "real" in regimes:
            regimes.append(both)
    else:
        reason = f"{_listed(task, generated)} generated images: {least} of each are needed"
        if task.name != RARE:
            left_out.append(LeftOut(task.name, "synthetic", reason))
        if "real" in regimes:
            left_out.append(LeftOut(task.name, both, reason))
    return regimes, left_out


def _rarest(test: ImageSet, train: ImageSet, settings: UsefulnessSettings) -> Task | None:
    """The condition with fewest photographs, of those of enough patients, against all others."""
    counts = Counter(name for name in train.conditions_N if name not in ("normal", "unknown"))
    for name, _ in sorted(counts.items(), key=lambda item: (item[1], item[0])):
        others = sorted({*test.conditions, *train.conditions} - {name, "unknown"})
        task = Task(RARE, (tuple(others), (name,)), _TWO_CLASSES)
        patients = (*_patients(task, test), *_patients(task, train))
        if others and min(patients) >= settings.least_patients and shortage(train, task) > 0:
            return task
    return None


def _patients(task: Task, images: ImageSet) -> tuple[int, ...]:
    """Patients of each class."""
    labels_N = task.labels(images)
    pairs = set(zip(labels_N.tolist(), images.patients_N, strict=True))
    counts = Counter(label for label, _ in pairs)
    return tuple(counts[label] for label in range(len(task.classes)))


def _least(task: Task, settings: UsefulnessSettings) -> int:
    return settings.least_patients_of_a_grade if task.name == GRADE else settings.least_patients


def _listed(task: Task, counts: Sequence[int]) -> str:
    names = ["+".join(names) for names in task.classes]
    return ", ".join(f"{count} {name}" for name, count in zip(names, counts, strict=True))
