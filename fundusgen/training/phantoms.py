"""Phantoms as the study's model sees them: its conditions, its size, all right eyes.

First step of the public prior. Patients are served to the model as right eyes
(`fundusgen.data.patients`), so phantoms are too.

Legend of axes: N images, S side in pixels, C colour.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fundusgen.phantom.lesions import PHANTOM_CONDITIONS
from fundusgen.phantom.population import collection_phantom
from fundusgen.phantom.render import render_as_right
from fundusgen.phantom.workers import ordered_map
from fundusgen.study import Study

_BATCH = 64


def study_phantoms(
    study: Study,
    count: int,
    seed: int,
    *,
    workers: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw phantoms of a study's conditions, each of another patient, all cameras in turn.

    All conditions are equally frequent. One that the simulator has no picture of (`other`,
    `unknown`) is given phantoms of every kind: it says nothing of what is seen.

    Args:
        study: Gives conditions and image size.
        count: Number of images N.
        seed: The same seed gives the same images, whatever the number of workers.
        workers: Processes.
        on_progress: Called with images done and images in all.

    Returns:
        Images (N, S, S, C) uint8 of right eyes, and the place of each one's condition in the
        study's list (N,) int64.
    """
    size = study.image_size
    images_NSSC = np.empty((count, size, size, 3), dtype=np.uint8)
    draw = partial(_batch, count, size, seed, _kinds(study.conditions))
    starts = range(0, count, _BATCH)
    with ordered_map(workers) as apply:
        for start, batch in zip(starts, apply(draw, starts), strict=True):
            images_NSSC[start : start + len(batch)] = batch
            on_progress(start + len(batch), count)
    return images_NSSC, np.arange(count, dtype=np.int64) % len(study.conditions)


def _kinds(conditions: Sequence[str]) -> tuple[str, ...]:
    """What is drawn for the study's conditions in turn; those without a picture vary."""
    return tuple(
        condition if condition in PHANTOM_CONDITIONS else kind
        for kind in PHANTOM_CONDITIONS
        for condition in conditions
    )


def _batch(
    count: int, size_px: int, seed: int, kinds: tuple[str, ...], start: int
) -> NDArray[np.uint8]:
    images = []
    for number in range(start, min(start + _BATCH, count)):
        phantom = collection_phantom(number, seed, kinds)
        images.append(render_as_right(phantom, size_px))
    return np.stack(images)
