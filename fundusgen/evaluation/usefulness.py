"""Whether generated images help to diagnose real patients: what evaluation leads with.

Classifiers learn from photographs, from generated images or from both, and are tested on the same
photographs of other patients: train on synthetic, test on real (Esteban et al. 2017, "Real-valued
(medical) time series generation with recurrent conditional GANs"; Ravuri and Vinyals 2019 for
images). A Frechet distance does not tell it: on retinal tasks the two disagree (Wu et al.,
arXiv 2502.17160).

Tasks: referable retinopathy; its grade; each disease against normal; and the rarest condition
against all others, topped up with generated images. Every class weighs the same in training, and a
diagnosis is the class found most probable, so scores of regimes can be compared; no threshold was
tuned for any.

All figures are plain statistics of real patients, computed where the photographs are. Intervals
are of who is tested and, of several seeds, of how training went; of the real training patients
they vary only those of a share below all. No verdict is corrected for there being many.

N images.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fundusgen.errors import DataError
from fundusgen.evaluation.classifiers import (
    Classifier,
    Examples,
    SmallNetwork,
    patients_by_class,
)
from fundusgen.evaluation.diagnosis_scores import (
    LEAST_PATIENTS_OF_A_CLASS,
    RANGES,
    Examination,
    ScoreName,
    Verdict,
    averaged,
    difference,
    verdict,
)
from fundusgen.evaluation.images import REFERABLE_FROM, ImageSet
from fundusgen.evaluation.resampling import REPLICATES, Estimate

Regime = Literal["real", "synthetic", "real_and_synthetic", "topped_up"]
# Told how many trainings are done, and how many there are.
Progress = Callable[[int, int], None]

REFERABLE, GRADE, RARE = "referable", "grade", "rare"
_GRADES = ("normal", "dr1", "dr2", "dr3", "dr4")
# Not a disease that a photograph could be found to show.
_NO_DISEASE = (*_GRADES, "unknown")
_TWO_CLASSES: tuple[ScoreName, ...] = ("auc", "balanced_accuracy")
_MANY_CLASSES: tuple[ScoreName, ...] = ("quadratic_kappa", "balanced_accuracy")


@dataclass(frozen=True)
class UsefulnessSettings:
    """What figures depend on, besides the images and the classifiers.

    Attributes:
        seeds: Classifiers learn once with each; a seed also chooses who is in a share.
        shares: Of the real training patients, along the curve; above 0, and 1 is always among
            them.
        synthetic_weight: What all generated images of a class weigh in training, against all
            photographs of it; 1: as much. Fixed rather than chosen, so that a generator which
            misleads is seen to. Where a condition is topped up, every image weighs the same.
        least_patients: Of either class, to test on and to learn from, for a task to be given:
            the standard error of an AUC of 0.8 is then 0.06 at best (Hanley and McNeil 1982).
        least_patients_of_a_grade: The same of each grade; fewer, since a score is of all five.
        resampling_seed: Of the intervals.
        replicates: Of the bootstrap.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    shares: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5, 1.0)
    synthetic_weight: float = 1.0
    least_patients: int = 20
    least_patients_of_a_grade: int = 5
    resampling_seed: int = 0
    replicates: int = REPLICATES

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: There is no seed, a share is not in (0, 1], or a weight is not above 0.
        """
        if not self.seeds or not all(0 < share <= 1 for share in self.shares):
            raise ValueError(f"seeds {self.seeds}, shares {self.shares}: some, of 0 to 1")
        fewest = min(self.least_patients, self.least_patients_of_a_grade)
        if not self.synthetic_weight > 0 or fewest < LEAST_PATIENTS_OF_A_CLASS:
            raise ValueError(
                f"weight {self.synthetic_weight}, at least {fewest} patients: a weight above 0 and "
                f"{LEAST_PATIENTS_OF_A_CLASS} patients or more are needed"
            )


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
class Training:
    """What was learned from; the mean over seeds, which differ in who is in a share."""

    real_patients: int
    real_images: int
    synthetic_images: int


@dataclass(frozen=True, eq=False)
class Figure:
    """One score of one classifier that learned in one way.

    Attributes:
        task: Its name.
        classifier: Its name.
        regime: What it learned from.
        share: Of the real training patients; 0 where it learned from none.
        score: What was measured.
        estimate: The score, averaged over seeds.
        training: How much it learned from.
        change: The score less that of the photographs alone: of the same share, seeds and test
            patients; `synthetic` against all photographs. None of these themselves, and where
            there are none.
    """

    task: str
    classifier: str
    regime: Regime
    share: float
    score: ScoreName
    estimate: Estimate
    training: Training
    change: Estimate | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval, within the range of the score."""
        low, high = self.estimate.interval
        least, most = RANGES[self.score]
        return max(low, least), min(high, most)

    @property
    def verdict(self) -> Verdict | None:
        """Whether generated images help or, in place of the photographs, are better than these."""
        return None if self.change is None else verdict(self.change)


@dataclass(frozen=True)
class LeftOut:
    """What could not be measured, and why; the regime is None where it is the whole task."""

    task: str
    regime: Regime | None
    reason: str


@dataclass(frozen=True, eq=False)
class Usefulness:
    """All that was measured, and what was not.

    Attributes:
        tasks: On whom each was tested.
        figures: Of each task in turn; what helps and what does not.
        left_out: What is missing among them.
        settings: What they depend on.
    """

    tasks: tuple[Task, ...]
    figures: tuple[Figure, ...]
    left_out: tuple[LeftOut, ...]
    settings: UsefulnessSettings


def usefulness(
    test: ImageSet,
    synthetic: ImageSet,
    train: ImageSet | None,
    classifiers: Sequence[Classifier],
    *,
    networks: Sequence[Classifier] = (SmallNetwork(),),
    settings: UsefulnessSettings | None = None,
    on_progress: Progress = lambda done, trainings: None,
) -> Usefulness:
    """Measure what generated images are worth for diagnosis.

    `classifiers` learn every task in every regime, and along the curve of shares. `networks` take
    far longer: they learn the first task only (referable retinopathy, where it is given), at the
    ends of the curve. One linear probe and one small network, on 1,000 photographs to test on,
    2,000 to learn from and 5,000 generated images of 64 px, take four to five minutes of one
    processor core, of which the network takes most, and the features of ImageNet a minute.

    Args:
        test: Photographs to test on.
        synthetic: Generated images, of the conditions that they are to be told by.
        train: Photographs to learn from, of other patients; None where they are elsewhere, and
            then only generated images are learned from, and nothing is compared.
        classifiers: Quick ones, with names of their own.
        networks: Slow ones, likewise; may be none.
        settings: What else there is to choose.
        on_progress: Told after each training.

    Raises:
        DataError: A patient is in both `test` and `train`, or no task has enough test patients.
        ValueError: Sides of the images differ, or two classifiers have one name.
    """
    settings = settings or UsefulnessSettings()
    _check(test, synthetic, train, [*classifiers, *networks])
    tasks, missing_tasks = _tasks(test, train, settings)
    material = _Material(test, synthetic, train, settings)
    cells, missing_regimes = _plan(tasks, material, classifiers, networks)
    scored: dict[_Key, _Scores] = {}
    figures: list[Figure] = []
    done, trainings = 0, len(cells) * len(settings.seeds)
    for cell in cells:
        scores: _Scores = {name: [] for name in cell.task.scores}
        choices = []
        for seed in settings.seeds:
            choices.append(material.choice(cell, seed))
            diagnose = cell.classifier.learned(material.examples(cell, choices[-1]), seed)
            probabilities_NK = diagnose(material.tested(cell))
            for name, estimates in scores.items():
                estimates.append(material.examination(cell.task).score(name, probabilities_NK))
            done += 1
            on_progress(done, trainings)
        scored[cell.key] = scores
        alone = None if cell.regime == "real" else scored.get(cell.key_of_photographs)
        figures += _figures(cell, scores, alone, _mean_training(choices, material), settings)
    return Usefulness(tuple(tasks), tuple(figures), (*missing_tasks, *missing_regimes), settings)


_Key = tuple[str, str, Regime, float]
# Of each seed, by name.
_Scores = dict[ScoreName, list[Estimate]]


@dataclass(frozen=True, eq=False)
class _Choice:
    """Places in the real and in the generated set of what one training learns from."""

    real: NDArray[np.int64]
    synthetic: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Cell:
    """One way to learn one task, once with each seed."""

    task: Task
    classifier: Classifier
    regime: Regime
    share: float

    @property
    def key(self) -> _Key:
        return self.task.name, self.classifier.name, self.regime, self.share

    @property
    def key_of_photographs(self) -> _Key:
        """The photographs alone, as many of them; all where there are none to match."""
        return self.task.name, self.classifier.name, "real", self.share or 1.0


class _Material:
    """The images, what classifiers look at of them, and what is chosen of them."""

    def __init__(
        self,
        test: ImageSet,
        synthetic: ImageSet,
        train: ImageSet | None,
        settings: UsefulnessSettings,
    ) -> None:
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

    def tested(self, cell: _Cell) -> NDArray[Any]:
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

    def choice(self, cell: _Cell, seed: int) -> _Choice:
        """Choose what to learn from; shares of one seed are nested."""
        none = np.empty(0, np.int64)
        rng = np.random.default_rng(seed)
        real, synthetic = none, none
        if cell.regime != "synthetic":
            labels_N = cell.task.labels(self.train)
            real = _share(labels_N, self.train.patients_N, cell.share, rng)
        if cell.regime == "topped_up":
            ill = np.flatnonzero(cell.task.labels(self.synthetic) == 1)
            wanted = min(_shortage(self.train, cell.task), len(ill))
            synthetic = np.sort(rng.choice(ill, wanted, replace=False))
        elif cell.regime != "real":
            synthetic = np.flatnonzero(cell.task.labels(self.synthetic) >= 0)
        return _Choice(real, synthetic)

    def examples(self, cell: _Cell, choice: _Choice) -> Examples:
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


def _check(
    test: ImageSet, synthetic: ImageSet, train: ImageSet | None, classifiers: Sequence[Classifier]
) -> None:
    if train is not None and (shared := set(test.patients_N) & set(train.patients_N)):
        raise DataError(
            f"{len(shared)} patients are both to learn from and to test on",
            expected="photographs of other patients to test on",
            remedy="Split by patient, and give ids that differ between hospitals",
        )
    sides = {one.images_NSSC.shape[1] for one in (test, synthetic, train) if one is not None}
    names = [classifier.name for classifier in classifiers]
    if len(sides) > 1 or len(set(names)) < len(names) or not names:
        raise ValueError(f"images of {sides} px, classifiers {names}: one side, different names")


def _tasks(
    test: ImageSet, train: ImageSet | None, settings: UsefulnessSettings
) -> tuple[list[Task], list[LeftOut]]:
    """Tasks with enough test patients of every class; the curve is that of the first."""
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


def _rarest(test: ImageSet, train: ImageSet, settings: UsefulnessSettings) -> Task | None:
    """The condition with fewest photographs, of those of enough patients, against all others."""
    counts = Counter(name for name in train.conditions_N if name not in ("normal", "unknown"))
    for name, _ in sorted(counts.items(), key=lambda item: (item[1], item[0])):
        others = sorted({*test.conditions, *train.conditions} - {name, "unknown"})
        task = Task(RARE, (tuple(others), (name,)), _TWO_CLASSES)
        patients = (*_patients(task, test), *_patients(task, train))
        if others and min(patients) >= settings.least_patients and _shortage(train, task) > 0:
            return task
    return None


def _shortage(train: ImageSet, task: Task) -> int:
    """By how many photographs the rare condition is below the median of all conditions."""
    counts = Counter(name for name in train.conditions_N if name != "unknown")
    (rare,) = task.classes[1]
    return int(np.median(list(counts.values()))) - counts[rare]


def _plan(
    tasks: Sequence[Task],
    material: _Material,
    classifiers: Sequence[Classifier],
    networks: Sequence[Classifier],
) -> tuple[list[_Cell], list[LeftOut]]:
    """What is to be learned, photographs alone before what is compared with them."""
    cells: list[_Cell] = []
    left_out: list[LeftOut] = []
    for task in tasks:
        regimes, without = _regimes(task, material)
        left_out += without
        for classifier in (*classifiers, *(networks if task is tasks[0] else ())):
            cells += [
                _Cell(task, classifier, regime, 0.0 if regime == "synthetic" else 1.0)
                for regime in regimes
            ]
    curve = [regime for regime in _regimes(tasks[0], material)[0] if regime != "synthetic"]
    for share in sorted(set(material.settings.shares) - {1.0}, reverse=True):
        ends = networks if share == min(material.settings.shares) else ()
        of_share = [
            _Cell(tasks[0], classifier, regime, share)
            for classifier in (*classifiers, *ends)
            for regime in curve
        ]
        if any(_lacks_a_class(cell, material) for cell in of_share):
            reason = f"{share:.0%} of the real training patients lack a class"
            left_out += [LeftOut(tasks[0].name, regime, reason) for regime in curve]
        else:
            cells += of_share
    return cells, left_out


def _regimes(task: Task, material: _Material) -> tuple[list[Regime], list[LeftOut]]:
    """What the task can be learned from, photographs first, and why not from others."""
    least = _least(task, material.settings)
    regimes: list[Regime] = []
    left_out = []
    both: Regime = "topped_up" if task.name == RARE else "real_and_synthetic"
    patients = _patients(task, material.train)
    generated = _patients(task, material.synthetic)
    if min(patients) >= least:
        regimes.append("real")
    elif len(material.train):
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


def _lacks_a_class(cell: _Cell, material: _Material) -> bool:
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


def _figures(
    cell: _Cell,
    scores: _Scores,
    alone: _Scores | None,
    training: Training,
    settings: UsefulnessSettings,
) -> list[Figure]:
    """Average over the seeds, and compare with the photographs alone where these were learned."""
    seed = settings.resampling_seed
    return [
        Figure(
            cell.task.name,
            cell.classifier.name,
            cell.regime,
            cell.share,
            name,
            averaged(estimates, seed),
            training,
            None if alone is None else difference(estimates, alone[name], seed),
        )
        for name, estimates in scores.items()
    ]


def _mean_training(choices: Sequence[_Choice], material: _Material) -> Training:
    patients_N = np.array(material.train.patients_N, dtype=object)
    return Training(
        round(np.mean([len(set(patients_N[choice.real])) for choice in choices])),
        round(np.mean([len(choice.real) for choice in choices])),
        round(np.mean([len(choice.synthetic) for choice in choices])),
    )
