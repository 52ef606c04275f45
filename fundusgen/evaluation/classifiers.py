"""Classifiers that learn to diagnose, to find out what images are worth to learn from.

The instrument of `usefulness`: the same classifier learns from several sets of images and is
tested on the same photographs (Ravuri and Vinyals 2019, "Classification Accuracy Score for
Conditional Generative Models"). Two that fail differently stand side by side: a linear one on the
features of a network that is fixed (`linear_probe`), which needs few images, and a small network
on the pixels (`small_network`), which sees everything and needs many. Here is what both have in
common.

Every class weighs the same, however many images it has, since in screening the ill are few. Within
a class, images weigh as the examples say.

N images, S side in pixels, C colours, K classes.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fundusgen.errors import DataError

Floats = NDArray[np.float64]
# The probability (N, K) of each class, from what the classifier looks at.
Diagnose = Callable[[NDArray[Any]], Floats]


@dataclass(frozen=True, eq=False)
class Examples:
    """What a classifier learns from.

    Attributes:
        inputs_N: What it looks at of each image, as its `inputs` gave it.
        labels_N: int64, 0 to K - 1.
        patients_N: The patient of each; generated images are each their own.
        real_N: Whether it is a photograph. Settings are chosen by photographs where there are any.
        weights_N: How much each image weighs among those of its class; above zero.
        classes: K.
    """

    inputs_N: NDArray[Any]
    labels_N: NDArray[np.int64]
    patients_N: Sequence[Hashable]
    real_N: NDArray[np.bool_]
    weights_N: Floats
    classes: int

    def __post_init__(self) -> None:
        """Check that the parts fit, and that there is something to tell apart.

        Raises:
            ValueError: Lengths differ, or a label or weight is out of range.
            DataError: All images are of one class.
        """
        parts = (self.labels_N, self.patients_N, self.real_N, self.weights_N)
        if {len(part) for part in parts} != {len(self.inputs_N)}:
            raise ValueError(
                f"{[len(self.inputs_N), *map(len, parts)]} inputs, labels, patients, kinds and "
                "weights: one of each is needed for every image"
            )
        there = set(self.labels_N.tolist())
        if not there <= set(range(self.classes)) or not (self.weights_N > 0).all():
            raise ValueError(f"labels are 0 to {self.classes - 1}, and weights above zero")
        if len(there) < 2:
            raise DataError(
                f"all {len(self.inputs_N)} images to learn from are of one class",
                expected="images of two classes or more",
                remedy="Add images of the other classes, or leave this task out",
            )

    def balanced_weights(self) -> Floats:
        """Weights (N,) by which each class that is there weighs the same, and an image 1 on mean.

        A class that is not there is never found: nothing is made up for it.
        """
        totals_K = np.bincount(self.labels_N, self.weights_N, minlength=self.classes)
        share = len(self.labels_N) / (totals_K > 0).sum()
        balanced_N: Floats = self.weights_N * share / totals_K[self.labels_N]
        return balanced_N


class Classifier(Protocol):
    """Learns to diagnose; the same examples and seed give the same diagnoses, up to rounding."""

    @property
    def name(self) -> str:
        """What it is called in tables; lower case, no spaces."""

    def inputs(self, images_NSSC: NDArray[np.uint8]) -> NDArray[Any]:
        """Compute what it looks at, a row an image; done once, however often it learns.

        Args:
            images_NSSC: (N, S, S, 3) uint8 RGB, right eyes.
        """

    def learned(self, examples: Examples, seed: int) -> Diagnose:
        """Learn from examples, as if for the first time.

        Classes without examples have probability 0.
        """


def patients_by_class(
    labels_N: NDArray[np.int64], patients_N: Sequence[Hashable]
) -> list[list[Hashable]]:
    """Sort patients by the rarest class of their images, so that each can be dealt out evenly.

    Args:
        labels_N: The class of each image.
        patients_N: Its patient.

    Returns:
        The patients of each class that any goes with, in the order of their first image.
    """
    counts = np.bincount(labels_N)
    class_of: dict[Hashable, int] = {}
    for label, patient in zip(labels_N.tolist(), patients_N, strict=True):
        class_of[patient] = min(label, class_of.get(patient, label), key=counts.__getitem__)
    grouped: dict[int, list[Hashable]] = {}
    for patient, label in class_of.items():
        grouped.setdefault(label, []).append(patient)
    return [grouped[label] for label in sorted(grouped)]
