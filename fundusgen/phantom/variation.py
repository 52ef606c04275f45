"""The neighbourhood of a phantom: the same photograph with all its parameters a little changed.

For Private Evolution with a simulator in place of a network (Lin et al., ICLR 2024, arXiv
2305.15560; Lin et al. 2025, arXiv 2502.05505): it starts from random phantoms and, generation by
generation, replaces those that no patient is near to by variations of the others. A phantom is
named by its lineage, so a population travels as a few whole numbers and is rendered anywhere to
the same bytes.

N phantoms, S side in pixels, C colour channel (red, green, blue).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fundusgen.errors import DataError
from fundusgen.phantom.camera_walks import walk_camera
from fundusgen.phantom.eye_walks import walk_anatomy, walk_lesions, walk_traits
from fundusgen.phantom.patients import draw_phantom
from fundusgen.phantom.render import Phantom, check_size, render
from fundusgen.phantom.workers import ordered_map

# Last part of the key of each random stream, so that no part's draws shift another's.
_TRAITS, _ANATOMY, _LESIONS, _CAMERA = range(4)
# Sets the streams of variations apart from those of patients and collections.
_VARIATION = 40
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Lineage:
    """How a phantom came about: the first one it descends from, and the seeds of its variations.

    Attributes:
        seed: Seed of the first phantom, as in `fundusgen.phantom.patients.draw_phantom`.
        number: Its number.
        condition: Its condition, and that of all its descendants.
        camera_style: Its camera style, and that of all its descendants.
        variations: One seed of 0 or more a generation, the oldest first.
    """

    seed: int
    number: int
    condition: str
    camera_style: str
    variations: tuple[int, ...] = ()

    def child(self, variation_seed: int) -> "Lineage":
        """Return the lineage of a variation of this phantom."""
        return replace(self, variations=(*self.variations, variation_seed))


def phantom_of(lineage: Lineage, strength: float) -> Phantom:
    """Return the phantom that a lineage names.

    Args:
        lineage: The first phantom and its variations.
        strength: How far each variation goes, 0 to 1, as in `vary`.

    Raises:
        DataError: Unknown condition or style, a negative seed, or a strength out of range.
    """
    return _descended(lineage, strength, {})


def vary(phantom: Phantom, seed: int, strength: float) -> Phantom:
    """Change every parameter of a phantom by a small random amount.

    Args:
        phantom: Where to start.
        seed: The same seed gives the same variation, on any machine; 0 or more.
        strength: How far to go. 0 gives the phantom itself; 1 goes about as far as two independent
            phantoms of the same condition and camera style are from each other.

    Returns:
        Another phantom of the same condition, side of the body, camera style and frame. Above a
        strength of 0 the sensor's noise is a new one; texture, vessel tree, illumination clouds
        and each lesion are new ones with the probability `strength`.

    Raises:
        DataError: A negative seed, or a strength outside of 0 to 1.
    """
    if seed < 0 or not 0 <= strength <= 1:
        raise DataError(
            f"a variation with seed {seed} and strength {strength} was asked for",
            expected="a seed of 0 or more and a strength from 0 to 1",
        )
    if strength == 0:
        return phantom
    before = phantom.anatomy
    traits = walk_traits(_rng(seed, _TRAITS), before.traits, strength)
    after = walk_anatomy(_rng(seed, _ANATOMY), before, traits, strength)
    return Phantom(
        anatomy=after,
        lesions=walk_lesions(_rng(seed, _LESIONS), phantom.lesions, before, after, strength),
        camera=walk_camera(_rng(seed, _CAMERA), phantom.camera, before, after, strength),
    )


def render_lineages(
    lineages: Sequence[Lineage], strength: float, size_px: int, *, workers: int = 1
) -> NDArray[np.uint8]:
    """Render phantoms by their lineages.

    Args:
        lineages: N of them.
        strength: How far each variation goes, 0 to 1, as in `vary`.
        size_px: Side of each picture, 16 to 2048.
        workers: Processes; their number changes nothing in the pictures.

    Returns:
        (N, S, S, C) uint8.

    Raises:
        DataError: As `phantom_of`, or a size or a number of workers out of range.
    """
    if workers < 1:
        raise DataError(
            f"{workers} workers were asked to render phantoms", expected="1 worker or more"
        )
    check_size(size_px)
    images_NSSC = np.empty((len(lineages), size_px, size_px, 3), dtype=np.uint8)
    starts = range(0, len(lineages), _BATCH)
    batches = [tuple(lineages[start : start + _BATCH]) for start in starts]
    with ordered_map(workers) as apply:
        rendered = apply(partial(_render_batch, strength, size_px), batches)
        for start, batch in zip(starts, rendered, strict=True):
            images_NSSC[start : start + len(batch)] = batch
    return images_NSSC


def _render_batch(strength: float, size_px: int, batch: tuple[Lineage, ...]) -> NDArray[np.uint8]:
    # Siblings share their ancestors: each is varied once a batch.
    known: dict[Lineage, Phantom] = {}
    return np.stack([render(_descended(lineage, strength, known), size_px) for lineage in batch])


def _descended(lineage: Lineage, strength: float, known: dict[Lineage, Phantom]) -> Phantom:
    if not lineage.variations:
        return draw_phantom(lineage.seed, lineage.number, lineage.condition, lineage.camera_style)
    parent = replace(lineage, variations=lineage.variations[:-1])
    if parent not in known:
        known[parent] = _descended(parent, strength, known)
    return vary(known[parent], lineage.variations[-1], strength)


def _rng(seed: int, part: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, _VARIATION, part))))
