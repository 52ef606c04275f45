"""Many phantoms at once: for the public prior, for tests and for the demo's pictures.

Images of a collection depend on their seed and number alone, so a longer collection begins with
the shorter one, and the number of workers changes nothing.

N images, S side in pixels, C colour channel (red, green, blue).
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fundusgen.errors import DataError
from fundusgen.phantom.camera import CAMERA_STYLES, camera_style
from fundusgen.phantom.lesions import check_conditions
from fundusgen.phantom.patients import draw_phantom
from fundusgen.phantom.render import Phantom, check_size, render
from fundusgen.phantom.workers import ordered_map

_BATCH = 64


def phantom_images(
    count: int,
    size_px: int,
    seed: int,
    conditions: Sequence[str],
    *,
    camera_styles: Sequence[str] = (),
    workers: int = 1,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw a collection of photographs, each of another patient.

    Args:
        count: Number of images N.
        size_px: Side of each, 16 to 2048.
        seed: The same seed gives the same images, on any machine.
        conditions: Names; image number i has the condition i modulo their number, so all are
            equally frequent.
        camera_styles: Styles to draw from with equal rates; all of them where empty.
        workers: Processes.

    Returns:
        Images (N, S, S, C) uint8 and, for each, its place in `conditions` (N,) int64.

    Raises:
        DataError: Unknown condition or style, negative count or seed, a size out of range.
    """
    if count < 0 or workers < 1:
        raise DataError(
            f"{count} phantoms were asked for from {workers} workers",
            expected="0 or more phantoms from 1 or more workers",
        )
    check_size(size_px)
    images_NSSC = np.empty((count, size_px, size_px, 3), dtype=np.uint8)
    collection_phantom(0, seed, conditions, camera_styles)
    starts = range(0, count, _BATCH)
    draw = partial(_batch, count, size_px, seed, tuple(conditions), tuple(camera_styles))
    with ordered_map(workers) as apply:
        for start, batch in zip(starts, apply(draw, starts), strict=True):
            images_NSSC[start : start + len(batch)] = batch
    return images_NSSC, np.arange(count, dtype=np.int64) % len(conditions)


def collection_phantom(
    number: int, seed: int, conditions: Sequence[str], camera_styles: Sequence[str] = ()
) -> Phantom:
    """Return the parameters of one image of a collection; arguments as in `phantom_images`.

    Raises:
        DataError: Unknown condition or style, no condition, or a negative number or seed.
    """
    check_conditions(conditions)
    if not conditions:
        raise DataError(
            "a collection of phantoms was asked for without conditions",
            expected="at least one condition",
        )
    styles = list(camera_styles) or list(CAMERA_STYLES)
    for style in styles:
        camera_style(style)
    # Every style meets every condition, in an order that no period of the conditions follows.
    sequence = np.random.SeedSequence([abs(seed), abs(number), len(styles)])
    style = styles[int(sequence.generate_state(1)[0]) % len(styles)]
    return draw_phantom(seed, number, conditions[number % len(conditions)], style)


def _batch(
    count: int,
    size_px: int,
    seed: int,
    conditions: tuple[str, ...],
    camera_styles: tuple[str, ...],
    start: int,
) -> NDArray[np.uint8]:
    return np.stack(
        [
            render(collection_phantom(number, seed, conditions, camera_styles), size_px)
            for number in range(start, min(start + _BATCH, count))
        ]
    )
