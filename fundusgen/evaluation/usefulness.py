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

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fundusgen.errors import DataError
from fundusgen.evaluation.classifiers import Classifier
from fundusgen.evaluation.diagnosis_scores import (
    RANGES,
    ScoreName,
    Verdict,
    averaged,
    difference,
    verdict,
)
from fundusgen.evaluation.diagnosis_tasks import LeftOut, Regime, Task, possible_tasks
from fundusgen.evaluation.images import ImageSet
from fundusgen.evaluation.learning_plan import Cell, Choice, Key, Material, planned
from fundusgen.evaluation.resampling import Estimate
from fundusgen.evaluation.small_network import SmallNetwork
from fundusgen.evaluation.usefulness_settings import UsefulnessSettings

# Told how many trainings are done, and how many there are.
Progress = Callable[[int, int], None]


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
    tasks, missing_tasks = possible_tasks(test, train, settings)
    material = Material(test, synthetic, train, settings)
    cells, missing_regimes = planned(tasks, material, classifiers, networks)
    scored: dict[Key, _Scores] = {}
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


# Of each seed, by name.
_Scores = dict[ScoreName, list[Estimate]]


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


def _figures(
    cell: Cell,
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


def _mean_training(choices: Sequence[Choice], material: Material) -> Training:
    patients_N = np.array(material.train.patients_N, dtype=object)
    return Training(
        round(np.mean([len(set(patients_N[choice.real])) for choice in choices])),
        round(np.mean([len(choice.real) for choice in choices])),
        round(np.mean([len(choice.synthetic) for choice in choices])),
    )
