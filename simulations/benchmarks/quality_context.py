"""What the makers of the quality benchmark's rows are given, and what they give back.

A maker is given the training halves of the hospitals and never sees a photograph of the test
halves.

N images, S side in pixels, C colours.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fundusgen.data.patients import PatientDataset
from fundusgen.phantom.mix import DEFAULT_MIX


@dataclass(frozen=True)
class Context:
    """What a maker may use.

    Attributes:
        train: The training half of each hospital, right eyes, with the images' conditions as
            places in `fundusgen.data.conditions.CONDITIONS`; patients are the privacy unit.
        size_px: Side of the images.
        labels_N: The condition of each image to be made, by the public mix of conditions.
        work_dir: For a maker's own files; kept between runs.
    """

    train: Mapping[str, PatientDataset]
    size_px: int
    labels_N: tuple[str, ...]
    work_dir: Path

    @cached_property
    def train_digest(self) -> str:
        """SHA-256 of every hospital's name, and of its pixels, conditions and patients."""
        found = hashlib.sha256()
        for name, site in sorted(self.train.items()):
            found.update(json.dumps([name, site.patients_N, site.conditions_N.tolist()]).encode())
            found.update(site.pixels(np.arange(site.image_count)).tobytes())
        return found.hexdigest()

    def pooled(self) -> "Context":
        """The same patients, all at one hospital; only without privacy may anyone do that."""
        pixels, conditions, patients = [], [], []
        for name, site in self.train.items():
            pixels.append(site.pixels(np.arange(site.image_count)))
            conditions.append(site.conditions_N)
            patients += [f"{name}/{patient}" for patient in site.patients_N]
        everyone = PatientDataset(np.concatenate(pixels), np.concatenate(conditions), patients)
        return replace(self, train={"everyone": everyone})


Maker = Callable[[Context, float | None, int], NDArray[np.uint8]]


@dataclass(frozen=True)
class RowKind:
    """A way to make images.

    Attributes:
        make: Called with the context, epsilon (None where nothing is spent) and a seed; returns
            (N, S, S, 3) uint8, image number i of condition `labels_N[i]`, all right eyes.
        private: Whether it spends epsilon, and is made once for each that is asked for.
        title: What the table calls it; the name where empty.
    """

    make: Maker
    private: bool = False
    title: str = ""


@dataclass(frozen=True, eq=False)
class Row:
    """The images of one row."""

    name: str
    epsilon: float | None
    seed: int
    images_NSSC: NDArray[np.uint8]


def mixed_labels(count: int, mix: Mapping[str, float] = DEFAULT_MIX) -> tuple[str, ...]:
    """The conditions of so many images in the given shares, rounded to whole images, in blocks."""
    bounds = np.cumsum(list(mix.values())) / sum(mix.values())
    places_N = np.searchsorted(bounds, (np.arange(count) + 0.5) / count, side="right")
    names = list(mix)
    return tuple(names[min(place, len(names) - 1)] for place in places_N)
