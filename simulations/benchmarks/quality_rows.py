"""The rows of the quality benchmark: ways to make images, each named and made by a function.

A maker is given the training halves of the hospitals and never sees a photograph of the test
halves. To add a row, write a maker and enter it in `ROWS`.

N images, S side in pixels, C colours.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fundusgen.data.patients import PatientDataset
from fundusgen.phantom.population import collection_phantom
from fundusgen.phantom.render import render
from fundusgen.phantom.site import DEFAULT_MIX

# Rows that targets speak of: no patient seen; the generator's model trained on patients alone,
# without noise, which is what privacy and phantoms are held against.
RAW_PHANTOMS, FROM_SCRATCH = "phantoms", "from_scratch"
# Apart from the seeds of priors and classifiers, so that no row is judged on what it has seen.
_PHANTOM_SEED = 770_000


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


def phantoms(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
    """Draw phantoms of all cameras, without having seen a patient."""
    images = []
    for number in range(len(context.labels_N)):
        phantom = collection_phantom(number, _PHANTOM_SEED + seed, context.labels_N)
        image_SSC = render(phantom, context.size_px)
        images.append(image_SSC[:, ::-1] if phantom.anatomy.eye == "L" else image_SSC)
    return np.stack(images)


ROWS: dict[str, RowKind] = {
    RAW_PHANTOMS: RowKind(phantoms, title="raw phantoms"),
}
