"""The measure of the quality benchmark: sets of images against photographs, by several features."""

import hashlib
import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from fundusgen.evaluation.colour import ColourFeatures
from fundusgen.evaluation.features import CachedFeatures, FeatureExtractor
from fundusgen.evaluation.fidelity import Estimate, PrincipalAxes, fidelity, kid_estimate
from fundusgen.evaluation.imagenet import ImageNetFeatures
from fundusgen.evaluation.phantom_classifier import PhantomFeatures
from simulations.benchmarks.quality_context import Row
from simulations.benchmarks.quality_hospitals import (
    SPLIT_SEED,
    Hospitals,
    Sample,
    Settings,
    joined,
    sample_of,
)

Record = dict[str, Any]
# The same patients are resampled for every row, so that rows can be averaged and compared.
_BOOTSTRAP_SEED = 5


def standard_extractors(cache: Path) -> list[FeatureExtractor]:
    """The features that the page speaks of; the first leads."""
    return [ImageNetFeatures(), PhantomFeatures(cache), ColourFeatures()]


class Judge:
    """Measures sets of images against the test halves.

    Args:
        settings: Number of images.
        hospitals: All photographs.
        extractors: What to measure by; at least one.
    """

    def __init__(
        self,
        settings: Settings,
        hospitals: Hospitals,
        extractors: Sequence[FeatureExtractor],
    ) -> None:
        """Compute the features of the test halves."""
        self._settings, self._hospitals = settings, hospitals
        self._extractors = [CachedFeatures(e, settings.cache / "features") for e in extractors]
        self.setting = self._digest()
        self._test = {e.name: e(hospitals.test.images_NSSC) for e in self._extractors}
        # One set of axes for all figures, so that they can be compared.
        self._axes = {name: PrincipalAxes.of(test_MD) for name, test_MD in self._test.items()}

    def record(self, row: Row) -> Record:
        """Measure the images of a row."""
        return {
            "setting": self.setting,
            "row": row.name,
            "epsilon": row.epsilon,
            "seed": row.seed,
            "images": len(row.images_NSSC),
            "metrics": self._metrics(Sample(row.images_NSSC)),
        }

    def yardstick(self) -> Record:
        """Measure hospitals against each other, and training against test halves."""
        whole, test = self._hospitals.whole, self._hospitals.test
        return {
            "setting": self.setting,
            "size_px": self._settings.size_px,
            "hospitals": {name: _counts(sample) for name, sample in whole.items()},
            "test": _counts(test),
            "extractors": [_identity(e) for e in self._extractors],
            "floor": {"metrics": self._metrics(self._floor())},
            "pairs": [
                {"between": [one, other], "metrics": self._pair(whole[one], whole[other])}
                for one, other in combinations(sorted(whole), 2)
            ],
        }

    def _metrics(self, sample: Sample) -> Record:
        metrics = {}
        for extractor in self._extractors:
            found = fidelity(
                extractor(sample.images_NSSC),
                self._test[extractor.name],
                _BOOTSTRAP_SEED,
                x_groups_N=sample.patients_N,
                y_groups_M=self._hospitals.test.patients_N,
                axes=self._axes[extractor.name],
                replicates=self._settings.replicates,
            )
            metrics[extractor.name] = {"kid": _plain(found.kid), "frechet": _plain(found.frechet)}
        return metrics

    def _pair(self, one: Sample, other: Sample) -> Record:
        """KID alone: a Frechet distance of forty images is mostly bias."""
        metrics = {}
        for extractor in self._extractors:
            near = kid_estimate(
                extractor(one.images_NSSC),
                extractor(other.images_NSSC),
                np.random.default_rng(_BOOTSTRAP_SEED),
                x_groups_N=one.patients_N,
                y_groups_M=other.patients_N,
                replicates=self._settings.replicates,
            )
            metrics[extractor.name] = {"kid": _plain(near)}
        return metrics

    def _floor(self) -> Sample:
        """As many training photographs as a row has images, of patients drawn at random."""
        train = joined({name: sample_of(half) for name, half in self._hospitals.train.items()})
        assert train.patients_N is not None  # noqa: S101 - for the type checker
        order = np.random.default_rng(SPLIT_SEED).permutation(sorted(set(train.patients_N)))
        rank = {patient: place for place, patient in enumerate(order)}
        ranks_N = np.array([rank[patient] for patient in train.patients_N])
        chosen = np.sort(np.argsort(ranks_N, kind="stable")[: self._settings.images])
        return Sample(train.images_NSSC[chosen], tuple(train.patients_N[image] for image in chosen))

    def _digest(self) -> str:
        content = [
            self._hospitals.digest,
            self._settings.images,
            self._settings.size_px,
            self._settings.replicates,
            [_identity(extractor) for extractor in self._extractors],
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _counts(sample: Sample) -> Record:
    return {"images": len(sample.images_NSSC), "patients": len(set(sample.patients_N or ()))}


def _identity(extractor: FeatureExtractor) -> Record:
    return {
        "name": extractor.name,
        "version": extractor.version,
        "digest": extractor.digest,
        "dimensions": extractor.dimensions,
    }


def _plain(estimate: Estimate) -> Record:
    low, high = estimate.interval
    replicates = [float(f"{value:.4g}") for value in estimate.replicates_B]
    return {"value": estimate.value, "low": low, "high": high, "replicates": replicates}
