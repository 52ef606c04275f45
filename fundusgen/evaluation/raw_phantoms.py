"""Phantoms that know no patient: what every generator is held against.

N images, S side in pixels, C colour (red, green, blue).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fundusgen.evaluation.images import ImageSet
from fundusgen.phantom.lesions import PHANTOM_CONDITIONS
from fundusgen.phantom.population import collection_phantom
from fundusgen.phantom.render import render_as_right
from fundusgen.phantom.workers import ordered_map

# Apart from the seeds of priors and of the phantom classifier.
_PHANTOM_SEED = 660_000
# What a process draws at a time, half a second's work.
_BATCH = 64


def raw_phantoms(
    counts: Mapping[str, int],
    size_px: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    workers: int = 1,
) -> ImageSet:
    """Draw phantoms as the simulator has them, all cameras in turn.

    A condition that it has no picture of (`other`, `unknown`) is given phantoms of every kind.

    Args:
        counts: Images of each condition.
        size_px: Side.
        on_progress: Called with images done and images in all.
        workers: Processes; the images are the same with any number.
    """
    names = tuple(name for name, count in counts.items() for _ in range(count))
    images_NSSC = np.empty((len(names), size_px, size_px, 3), np.uint8)
    starts = range(0, len(names), _BATCH)
    batches = [(start, names[start : start + _BATCH]) for start in starts]
    with ordered_map(workers) as apply:
        drawn = apply(partial(_drawn, size_px), batches)
        for start, batch_NSSC in zip(starts, drawn, strict=True):
            done = start + len(batch_NSSC)
            images_NSSC[start:done] = batch_NSSC
            on_progress(done, len(names))
    return ImageSet(images_NSSC, names, tuple(f"phantom/{number}" for number in range(len(names))))


def _drawn(size_px: int, batch: tuple[int, Sequence[str]]) -> NDArray[np.uint8]:
    """Draw the phantoms (N, S, S, C) of a batch, given its first number and its conditions."""
    first, names = batch
    images = []
    for number, name in enumerate(names, first):
        kinds = (name,) if name in PHANTOM_CONDITIONS else PHANTOM_CONDITIONS
        phantom = collection_phantom(number, _PHANTOM_SEED, kinds)
        images.append(render_as_right(phantom, size_px))
    return np.stack(images)
