"""Which classifier learns which task from which images: the plan of `usefulness`.

Cells are one way to learn one task: by a classifier, in a regime, from a share of the real
training patients. The images of a cell depend on a seed; those of a smaller share are among those
of a larger.

N images.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundusgen.evaluation.classifiers import Classifier, Examples, patients_by_class
from fundusgen.evaluation.diagnosis_scores import Examination
from fundusgen.evaluation.diagnosis_tasks import (
    LeftOut,
    Regime,
    Task,
    possible_regimes,
    shortage,
)
from fundusgen.evaluation.images import ImageSet
from fundusgen.evaluation.usefulness_settings import UsefulnessSettings

# Task, classifier, regime and share.
Key = tuple[str, str, Regime, float]


@dataclass(frozen=True, eq=False)
class Choice:
    """Places in the real and in the generated set of what one training learns from."""

    real: NDArray[np.int64]
    synthetic: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Cell:
    """One way to learn one task, once with each seed."""

    task: Task
    classifier: Classifier
    regime: Regime
    share: float

    @property
    def key(self) -> Key:
        """What it is found by."""
        return self.task.name, self.classifier.name, self.regime, self.share

    @property
    def key_of_photographs(self) -> Key:
        """The photographs alone, as many of them; all where there are none to match."""
        return self.task.name, self.classifier.name, "real", self.share or 1.0


class Material:
    """The images, what classifiers look at of them, and what is chosen of them.

    Args:
        test: Photographs to test on.
        synthetic: Generated images.
        train: Photographs to learn from; None where they are elsewhere.
        settings: Seeds, weights and replicates.
    """

    def __init__(
        self,
        test: ImageSet,
        synthetic: ImageSet,
        train: ImageSet | None,
        settings: UsefulnessSettings,
    ) -> None:
        """Keep the images; classifiers look at them when they are first asked to learn."""
        self.test, self.synthetic, self.settings = test, synthetic, settings
        self.train = synthetic.subset([]) if train is None else train
        self._inputs: dict[str, tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = {}
        self._examinations: dict[str, Examination] = {}

    def inputs(self, classifier: Classifier) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """What a classifier looks at of all images to test on, real and generated to learn from."""
        if classifier.name not in self._inputs:
            sets = (self.test, self.train, self.synthetic)
            test_N, train_N, synthetic_N = (classifier.inputs(one.images_NSSC) for one in sets)
            self._inputs[classifier.name] = test_N, train_N, synthetic_N
        return self._inputs[classifier.name]

    def tested(self, cell: Cell) -> NDArray[Any]:
        """What the classifier looks at of the task's test photographs."""
        return self.inputs(cell.classifier)[0][cell.task.labels(self.test) >= 0]

    def examination(self, task: Task) -> Examination:
        """The task's test photographs, their patients drawn once for all that is compared."""
        if task.name not in self._examinations:
            labels_N = task.labels(self.test)
            places = np.flatnonzero(labels_N >= 0)
            self._examinations[task.name] = Examination.drawn(
                labels_N[places],
                [self.test.patients_N[place] for place in places.tolist()],
                len(task.classes),
                self.settings.resampling_seed,
                self.settings.replicates,
            )
        return self._examinations[task.name]

    def choice(self, cell: Cell, seed: int) -> Choice:
        """Choose what to learn from; shares of one seed are nested."""
        none = np.empty(0, np.int64)
        rng = np.random.default_rng(seed)
        real, synthetic = none, none
        if cell.regime != "synthetic":
            labels_N = cell.task.labels(self.train)
            real = _share(labels_N, self.train.patients_N, cell.share, rng)
        if cell.regime == "topped_up":
            ill = np.flatnonzero(cell.task.labels(self.synthetic) == 1)
            wanted = min(shortage(self.train, cell.task), len(ill))
            synthetic = np.sort(rng.choice(ill, wanted, replace=False))
        elif cell.regime != "real":
            synthetic = np.flatnonzero(cell.task.labels(self.synthetic) >= 0)
        return Choice(real, synthetic)

    def examples(self, cell: Cell, choice: Choice) -> Examples:
        """Photographs and generated images together, weighed against each other."""
        _, real_N, synthetic_N = self.inputs(cell.classifier)
        classes = len(cell.task.classes)
        labels_N = np.concatenate(
            [
                cell.task.labels(self.train)[choice.real],
                cell.task.labels(self.synthetic)[choice.synthetic],
            ]
        )
        is_real_N = np.arange(len(labels_N)) < len(choice.real)
        patients: list[Hashable] = [
            ("real", self.train.patients_N[place]) for place in choice.real.tolist()
        ]
        patients += [("generated", place) for place in choice.synthetic.tolist()]
        weights_N = np.ones(len(labels_N))
        if cell.regime == "real_and_synthetic":
            real_K = np.bincount(labels_N[is_real_N], minlength=classes)
            synthetic_K = np.bincount(labels_N[~is_real_N], minlength=classes)
            weights_K = self.settings.synthetic_weight * real_K / np.maximum(synthetic_K, 1)
            weights_N[~is_real_N] = weights_K[labels_N[~is_real_N]]
        inputs_N = np.concatenate([real_N[choice.real], synthetic_N[choice.synthetic]])
        return Examples(inputs_N, labels_N, patients, is_real_N, weights_N, classes)


def planned(
    tasks: Sequence[Task],
    material: Material,
    classifiers: Sequence[Classifier],
    networks: Sequence[Classifier],
) -> tuple[list[Cell], list[LeftOut]]:
    """Plan what is to be learned, photographs alone before what is compared with them.

    Args:
        tasks: Of which the first is learned along the curve of shares.
        material: The images.
        classifiers: Learn every task, at every share.
        networks: Learn the first task only, at the ends of the curve.

    Returns:
        The cells in the order in which they are to be learned, and what is left out.
    """
    cells: list[Cell] = []
    left_out: list[LeftOut] = []
    regimes_of: dict[str, list[Regime]] = {}
    for task in tasks:
        regimes, without = possible_regimes(
            task, material.train, material.synthetic, material.settings
        )
        left_out += without
        regimes_of[task.name] = regimes
        for classifier in (*classifiers, *(networks if task is tasks[0] else ())):
            cells += [
                Cell(task, classifier, regime, 0.0 if regime == "synthetic" else 1.0)
                for regime in regimes
            ]
    curve = [regime for regime in regimes_of[tasks[0].name] if regime != "synthetic"]
    for share in sorted(set(material.settings.shares) - {1.0}, reverse=True):
        ends = networks if share == min(material.settings.shares) else ()
        of_share = [
            Cell(tasks[0], classifier, regime, share)
            for classifier in (*classifiers, *ends)
            for regime in curve
        ]
        if any(_lacks_a_class(cell, material) for cell in of_share):
            reason = f"{share:.0%} of the real training patients lack a class"
            left_out += [LeftOut(tasks[0].name, regime, reason) for regime in curve]
        else:
            cells += of_share
    return cells, left_out


def _lacks_a_class(cell: Cell, material: Material) -> bool:
    labels_N = cell.task.labels(material.train)
    return any(
        len(set(labels_N[material.choice(cell, seed).real].tolist())) < len(cell.task.classes)
        for seed in material.settings.seeds
    )


def _share(
    labels_N: NDArray[np.int64], patients_N: Sequence[str], share: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Places of the images of a share of the patients, those of each class in like part.

    A smaller share of a generator of equal state is within the larger.
    """
    places = np.flatnonzero(labels_N >= 0)
    patients = [patients_N[place] for place in places.tolist()]
    drawn: list[tuple[float, str]] = []
    for group in patients_by_class(labels_N[places], patients):
        ranks = rng.permutation(len(group)) + rng.random(len(group))
        drawn += zip((ranks / len(group)).tolist(), map(str, group), strict=True)
    count = max(1, round(share * len(drawn)))
    chosen = {patient for _, patient in sorted(drawn)[:count]}
    return places[[patient in chosen for patient in patients]]
