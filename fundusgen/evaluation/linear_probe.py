"""The linear classifier of `usefulness`: logistic regression on features of a fixed network.

It needs few images to learn from, and learns in seconds. What the network does not see, it does
not find; `small_network` stands beside it.

N images, S side in pixels, D features, K classes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from fundusgen.evaluation.classifiers import Diagnose, Examples, Floats, patients_by_class
from fundusgen.evaluation.features import FeatureExtractor

_FOLDS = 3
# Of the squared length of the coefficients, against the mean loss of an image, so that the same
# suits any number of them. Strongest first.
_PENALTIES = (8.0, 2.0, 0.5, 0.125, 0.03)
# Where patients are too few to choose by; what was chosen for a thousand features of photographs.
_USUAL_PENALTY = 2.0
# Of a variance against a squared mean, in single precision.
_ROUNDING = 1e-12


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
