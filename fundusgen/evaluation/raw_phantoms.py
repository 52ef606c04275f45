"""Phantoms that know no patient: what every generator is held against."""

from collections.abc import Callable, Mapping

import numpy as np

from fundusgen.evaluation.images import ImageSet
from fundusgen.phantom.lesions import PHANTOM_CONDITIONS
from fundusgen.phantom.population import collection_phantom
from fundusgen.phantom.render import render_as_right

# Apart from the seeds of priors and of the phantom classifier.
_PHANTOM_SEED = 660_000


def raw_phantoms(
    counts: Mapping[str, int],
    size_px: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ImageSet:
    """Draw phantoms as the simulator has them, all cameras in turn.

    A condition that it has no picture of (`other`, `unknown`) is given phantoms of every kind.

    Args:
        counts: Images of each condition.
        size_px: Side.
        on_progress: Called with images done and images in all.
    """
    names = [name for name, count in counts.items() for _ in range(count)]
    images = []
    for number, name in enumerate(names):
        kinds = (name,) if name in PHANTOM_CONDITIONS else PHANTOM_CONDITIONS
        phantom = collection_phantom(number, _PHANTOM_SEED, kinds)
        images.append(render_as_right(phantom, size_px))
        on_progress(number + 1, len(names))
    return ImageSet(
        np.stack(images), tuple(names), tuple(f"phantom/{number}" for number in range(len(names)))
    )
