"""Classifiers that learn to diagnose, to find out what images are worth to learn from.

The instrument of `usefulness`: the same classifier learns from several sets of images and is
tested on the same photographs (Ravuri and Vinyals 2019, "Classification Accuracy Score for
Conditional Generative Models"). Two that fail differently stand side by side: a linear one on the
features of a network that is fixed, which needs few images, and a small network on the pixels,
which sees everything and needs many.

Every class weighs the same, however many images it has, since in screening the ill are few. Within
a class, images weigh as the examples say.

N images, S side in pixels, C colours, D features, K classes.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from fundusgen.errors import DataError
from fundusgen.evaluation.features import FeatureExtractor, check_images, resized_batches

Floats = NDArray[np.float64]
# The probability (N, K) of each class, from what the classifier looks at.
Diagnose = Callable[[NDArray[Any]], Floats]

_FOLDS = 3
# Of the squared length of the coefficients, against the mean loss of an image, so that the same
# suits any number of them. Strongest first.
_PENALTIES = (8.0, 2.0, 0.5, 0.125, 0.03)
# Where patients are too few to choose by; what was chosen for a thousand features of photographs.
_USUAL_PENALTY = 2.0
# Of a variance against a squared mean, in single precision.
_ROUNDING = 1e-12
# Twice as wide, it is no better here and takes twice as long.
_WIDTHS = (3, 24, 48, 64, 96)
_GROUPS = 8
# Largest changes of augmentation: what differs between photographs of one eye.
_TURN, _ZOOM, _GAIN, _LIFT = math.radians(10), 0.05, 0.15, 0.05


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


class LinearProbe:
    """Logistic regression on the features of an extractor, each brought to mean 0 and variance 1.

    How strongly it is regularised is chosen by the likelihood of patients left out, in three
    folds of those to learn from: of the photographs, or of the generated images where there are
    only these. Where a class is of fewer patients than folds, it is a fixed strength instead.

    Args:
        extractor: Computes the features; must not have seen the photographs that are tested on.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
        """Remember the extractor; its name becomes part of the name."""
        self._extractor = extractor
        self.name = f"linear_{extractor.name}"

    def inputs(self, images_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the features (N, D)."""
        return self._extractor(images_NSSC)

    def learned(self, examples: Examples, seed: int) -> Diagnose:
        """Choose the regularisation and fit; see `Classifier`. The seed deals the folds."""
        weights_N = examples.balanced_weights()
        mean_D = np.average(examples.inputs_N, axis=0, weights=weights_N)
        variance_D = np.average((examples.inputs_N - mean_D) ** 2, axis=0, weights=weights_N)
        # A feature that never varies but by rounding says nothing, and is left at zero.
        varies_D = variance_D > _ROUNDING * mean_D**2
        scale_D = np.where(varies_D, 1 / np.sqrt(np.where(varies_D, variance_D, 1)), 0)

        def standardised(inputs_ND: NDArray[Any]) -> NDArray[np.float32]:
            rows_ND: NDArray[np.float32] = ((inputs_ND - mean_D) * scale_D).astype(np.float32)
            return rows_ND

        x_ND = standardised(examples.inputs_N)
        model = _fitted(x_ND, examples.labels_N, weights_N, _penalty(x_ND, examples, seed))
        return lambda inputs_ND: _probabilities(model, standardised(inputs_ND), examples.classes)


@dataclass(frozen=True)
class SmallNetwork:
    """Four convolutions of stride 2 and a layer, learned from the pixels alone.

    A fixed number of steps, at a rate that rises and falls once: nothing is chosen, so nothing is
    left out to choose by. Images are drawn by their balanced weights, and changed as photographs
    of one eye differ: upside down (the halves of a retina are alike, and the disc stays on its
    side, unlike in a mirror), turned by up to 10 degrees, a little nearer, redder or darker.

    Attributes:
        steps: Of training.
        batch: Images of a step.
        learning_rate: Highest of the schedule.
        size_px: Side of what it looks at.
        device: Of torch. On others than `cpu`, a seed repeats up to rounding only.
    """

    steps: int = 300
    batch: int = 64
    learning_rate: float = 3e-3
    size_px: int = 64
    device: str = "cpu"

    name = "network"

    def inputs(self, images_NSSC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Bring images to its size, (N, S, S, 3) uint8."""
        check_images(images_NSSC)
        if images_NSSC.shape[1] == self.size_px:
            return images_NSSC
        small_NSSC = np.empty((len(images_NSSC), self.size_px, self.size_px, 3), np.uint8)
        start = 0
        for batch_NCSS in resized_batches(images_NSSC, self.size_px):
            rounded_NCSS = batch_NCSS.round().clamp(0, 255).to(torch.uint8)
            small_NSSC[start : start + len(rounded_NCSS)] = rounded_NCSS.permute(0, 2, 3, 1).numpy()
            start += len(rounded_NCSS)
        return small_NSSC

    def learned(self, examples: Examples, seed: int) -> Diagnose:
        """Train from random weights; torch's global generator is left as it was."""
        draws = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _Network(examples.classes)
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.learning_rate, total_steps=self.steps
        )
        labels_N = torch.from_numpy(examples.labels_N)
        weights_N = torch.from_numpy(examples.balanced_weights())
        for _ in range(self.steps):
            chosen = torch.multinomial(weights_N, self.batch, replacement=True, generator=draws)
            images_NCSS = self._placed(examples.inputs_N[chosen.numpy()])
            logits_NK = network(_varied(images_NCSS, draws))
            loss = cross_entropy(logits_NK, labels_N[chosen].to(self.device))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        network.eval()
        there_K = np.bincount(examples.labels_N, minlength=examples.classes) > 0
        return lambda inputs_NSSC: self._diagnosed(network, inputs_NSSC, there_K)

    def _placed(self, inputs_NSSC: NDArray[np.uint8]) -> Tensor:
        """Images (N, C, S, S) from 0 to 1, on the device."""
        # A copy: torch takes neither mirrored views nor arrays that are for reading only.
        images_NCSS = torch.from_numpy(np.array(inputs_NSSC)).permute(0, 3, 1, 2).to(self.device)
        return images_NCSS.to(torch.float32) / 255

    def _diagnosed(
        self, network: "_Network", inputs_NSSC: NDArray[np.uint8], there_K: NDArray[np.bool_]
    ) -> Floats:
        rows = [np.empty((0, len(there_K)))]
        with torch.inference_mode():
            for start in range(0, len(inputs_NSSC), self.batch):
                logits_NK = network(self._placed(inputs_NSSC[start : start + self.batch]))
                rows.append(logits_NK.double().cpu().numpy())
        logits_NK = np.where(there_K, np.concatenate(rows), -np.inf)
        powers_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
        probabilities_NK: Floats = powers_NK / powers_NK.sum(axis=1, keepdims=True)
        return probabilities_NK


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


class _Network(nn.Module):
    """From images (N, C, S, S) of 0 to 1 to logits (N, K)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        # Normalised over groups of channels, not over the batch: photographs and generated images
        # share batches in training, and only photographs are tested on.
        self.body = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                    nn.GroupNorm(_GROUPS, after),
                    nn.ReLU(),
                )
                for before, after in pairwise(_WIDTHS)
            )
        )
        self.head = nn.Linear(2 * _WIDTHS[-1], classes)

    def forward(self, images_NCSS: Tensor) -> Tensor:
        centred_NCSS = (2 * images_NCSS - 1).contiguous(memory_format=torch.channels_last)
        maps_NDSS: Tensor = self.body(centred_NCSS)
        # The mean sees what is everywhere, the largest what is in one place only, as lesions are.
        pooled_ND = torch.cat([maps_NDSS.mean((2, 3)), maps_NDSS.amax((2, 3))], dim=1)
        logits_NK: Tensor = self.head(pooled_ND)
        return logits_NK


def _varied(images_NCSS: Tensor, draws: torch.Generator) -> Tensor:
    """Images of 0 to 1 as other photographs of the same eyes; outside of them it is black."""
    count, device = len(images_NCSS), images_NCSS.device

    def between(low: float, high: float, *shape: int) -> Tensor:
        # Drawn on the processor, so that every device trains on the same images.
        return low + (high - low) * torch.rand(count, *shape, generator=draws)

    turn_N, zoom_N = between(-_TURN, _TURN), between(1 - _ZOOM, 1 + _ZOOM)
    upright_N = between(-1, 1).sign()
    rows = (
        torch.stack([turn_N.cos(), -turn_N.sin() * upright_N, torch.zeros(count)], dim=1),
        torch.stack([turn_N.sin(), turn_N.cos() * upright_N, torch.zeros(count)], dim=1),
    )
    maps_N23 = (zoom_N[:, None, None] * torch.stack(rows, dim=1)).to(device)
    grid_NSS2 = affine_grid(maps_N23, list(images_NCSS.shape), align_corners=False)
    moved_NCSS = grid_sample(images_NCSS, grid_NSS2, align_corners=False)
    gain_NC11 = between(1 - _GAIN, 1 + _GAIN, images_NCSS.shape[1], 1, 1).to(device)
    lift_N111 = between(-_LIFT, _LIFT, 1, 1, 1).to(device)
    # Lifting moves what is lit only: the frame around the eye is black in every photograph.
    lit_NCSS = moved_NCSS * gain_NC11 + lift_N111 * (moved_NCSS > 0)
    return lit_NCSS.clamp(0, 1)


def _penalty(x_ND: NDArray[np.float32], examples: Examples, seed: int) -> float:
    """The penalty at which patients left out are most likely."""
    folds_N = _folds(examples, np.random.default_rng(seed))
    if folds_N is None:
        return _USUAL_PENALTY
    weights_N = examples.balanced_weights()
    losses = np.zeros(len(_PENALTIES))
    for fold in range(_FOLDS):
        held, rest = np.flatnonzero(folds_N == fold), np.flatnonzero(folds_N != fold)
        rest_ND = x_ND[rest]
        for place, penalty in enumerate(_PENALTIES):
            model = _fitted(rest_ND, examples.labels_N[rest], weights_N[rest], penalty)
            found_NK = _probabilities(model, x_ND[held], examples.classes)
            right_N = found_NK[np.arange(len(held)), examples.labels_N[held]]
            losses[place] -= weights_N[held] @ np.log(np.maximum(right_N, 1e-12))
    return _PENALTIES[int(losses.argmin())]


def _folds(examples: Examples, rng: np.random.Generator) -> NDArray[np.int64] | None:
    """The fold (N,) in which each image is left out: -1 for never, as generated ones are.

    Patients of each class are dealt in turn; None where a class goes with too few of them.
    """
    judged_N = examples.real_N if examples.real_N.any() else ~examples.real_N
    judged = np.flatnonzero(judged_N)
    patients = [examples.patients_N[place] for place in judged.tolist()]
    groups = patients_by_class(examples.labels_N[judged], patients)
    if min(map(len, groups)) < _FOLDS:
        return None
    fold_of = {
        group[place]: turn % _FOLDS
        for group in groups
        for turn, place in enumerate(rng.permutation(len(group)).tolist())
    }
    folds_N = np.full(len(judged_N), -1)
    folds_N[judged] = [fold_of[patient] for patient in patients]
    return folds_N


def _fitted(
    x_ND: NDArray[np.float32], labels_N: NDArray[np.int64], weights_N: Floats, penalty: float
) -> LogisticRegression:
    model = LogisticRegression(C=1 / (penalty * len(x_ND)), max_iter=2000)
    return model.fit(x_ND, labels_N, sample_weight=weights_N)


def _probabilities(model: LogisticRegression, x_ND: NDArray[np.float32], classes: int) -> Floats:
    """Probabilities of all classes; those that the model does not know have 0."""
    probabilities_NK = np.zeros((len(x_ND), classes))
    if len(x_ND):
        probabilities_NK[:, model.classes_] = model.predict_proba(x_ND)
    return probabilities_NK
