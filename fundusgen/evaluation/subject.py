"""What is evaluated: a network, the phantoms that patients voted for, or a folder of images.

N images, S side in pixels.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fundusgen.errors import RunError
from fundusgen.evaluation.images import ImageSet
from fundusgen.evaluation.real_images import MANIFEST, Progress, load_real
from fundusgen.models.generator import MODEL_FILE, Generator, WholeModel, read_saved_generator
from fundusgen.run_folder import RunFolder
from fundusgen.training.population import POPULATION_FILE, VotedPopulation, load_population


@dataclass(frozen=True)
class Identity:
    """What the report says it speaks of.

    Attributes:
        kind: `vae`, `gan`, `voted phantoms` or `images`.
        study_id: Of the study that made it; empty for a folder of images.
        study_hash: The same.
        digest: SHA-256 of the weights that draw, the population, or all images.
        facts: What the generator's folder says besides: rounds, epsilon by site, delta.
    """

    kind: str
    study_id: str
    study_hash: str
    digest: str
    facts: Mapping[str, Any]


class Subject(Protocol):
    """Something that gives generated images of a condition."""

    @property
    def identity(self) -> Identity:
        """What it is."""

    @property
    def size_px(self) -> int:
        """Side of its images."""

    @property
    def conditions(self) -> tuple[str, ...]:
        """What it can draw."""

    def images(self, condition: str, count: int, seed: int) -> NDArray[np.uint8]:
        """Draw right eyes of a condition, (N, S, S, 3) uint8; at most `count` of them."""


def subject_of(
    path: Path,
    *,
    phantoms: bool,
    size_px: int,
    cache: Path,
    workers: int = 1,
    on_progress: Progress | None = None,
) -> Subject:
    """Find out what a path holds.

    Args:
        path: A run folder, a generator folder, or a folder of images with a manifest.
        phantoms: Take the voted phantoms of a run, not its network.
        size_px: Side that a folder of images is framed to; generators have their own.
        cache: For the framed images of a folder.
        workers: Processes.
        on_progress: Called with images read and images in all, for a folder of images.

    Raises:
        RunError: It holds nothing that can be evaluated.
        ModelError: A generator is damaged, or there are no voted phantoms.
    """
    for folder in (path, RunFolder(path).generator):
        if (folder / MODEL_FILE).is_file():
            return VotedSubject(folder, workers) if phantoms else NetworkSubject(folder)
    if not (path / MANIFEST).is_file():
        raise RunError(
            f"There is nothing to evaluate in {path}",
            expected=f"a finished run, a generator folder with {MODEL_FILE}, or a folder of "
            f"images with {MANIFEST}",
            remedy="Give the folder that `fundusgen simulate` or `fundusgen generate` wrote",
        )
    if phantoms:
        raise RunError(
            f"--phantoms was given with a folder of images, {path}",
            expected="the run of a study with votes",
            remedy="Leave out --phantoms",
        )
    real = load_real(
        [path], size_px, cache, one_image_per_patient=True, workers=workers,
        on_progress=on_progress,
    )  # fmt: skip
    return FolderSubject(real.images, real.digest)


class NetworkSubject:
    """The network that a study trained.

    Args:
        folder: Of the generator.
    """

    def __init__(self, folder: Path) -> None:
        """Load the weights."""
        self._saved = read_saved_generator(folder)
        self._generator = self._saved.generator()
        study = self._saved.study
        self.identity = Identity(
            study.model.kind, study.study_id, study.study_hash, self._saved.digest,
            self._saved.facts,
        )  # fmt: skip
        self.size_px = int(study.image_size)
        self.conditions = tuple(str(name) for name in study.conditions)

    @property
    def generator(self) -> Generator:
        """The network."""
        return self._generator

    def whole_model(self) -> WholeModel | None:
        """All of the model, for attacks that look inside; see `SavedGenerator.whole_model`."""
        return self._saved.whole_model()

    def images(self, condition: str, count: int, seed: int) -> NDArray[np.uint8]:
        """Draw; see `Subject.images`."""
        parts = []
        for drawn in self._generator.draw(condition, count, seed):
            pixels_NSSC = drawn.images_NSSC.copy()
            left_N = np.array([eye == "L" for eye in drawn.eyes], np.bool_)
            pixels_NSSC[left_N] = pixels_NSSC[left_N, :, ::-1]
            parts.append(pixels_NSSC)
        return np.concatenate(parts)


class VotedSubject:
    """The phantoms that patients voted for.

    Args:
        folder: Of the generator.
        workers: Processes that render.
    """

    def __init__(self, folder: Path, workers: int = 1) -> None:
        """Read the population."""
        self._population: VotedPopulation = load_population(folder)
        self._workers = workers
        saved = read_saved_generator(folder)
        study = saved.study
        digest = hashlib.sha256((folder / POPULATION_FILE).read_bytes()).hexdigest()
        self.identity = Identity(
            "voted phantoms", study.study_id, study.study_hash, digest, saved.facts
        )
        self.size_px, self.conditions = self._population.image_size, self._population.conditions

    def images(self, condition: str, count: int, seed: int) -> NDArray[np.uint8]:
        """Draw; see `Subject.images`."""
        places_N = np.full(count, self._population.place(condition), np.int64)
        lineages = self._population.lineages(places_N, seed)
        return self._population.images(lineages, workers=self._workers)


class FolderSubject:
    """Images that lie there, whoever drew them.

    Args:
        images: All of them.
        digest: Of all of it.
    """

    def __init__(self, images: ImageSet, digest: str) -> None:
        """Keep them."""
        self._images = images
        self.identity = Identity("images", "", "", digest, {})
        self.size_px, self.conditions = images.images_NSSC.shape[1], images.conditions

    def images(self, condition: str, count: int, seed: int) -> NDArray[np.uint8]:
        """Choose; see `Subject.images`. There may be fewer than were asked for."""
        found = self._images.of_conditions([condition]).images_NSSC
        order = np.random.default_rng(seed).permutation(len(found))[:count]
        return found[np.sort(order)]


def draw(
    subject: Subject,
    counts: Mapping[str, int],
    seed: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ImageSet:
    """Draw so many images of each condition.

    Args:
        subject: What draws.
        counts: Images of each of its conditions.
        seed: The same seed gives the same images.
        on_progress: Called with images done and images in all.
    """
    parts, names = [], []
    total = sum(counts.values())
    for condition, count in counts.items():
        images_NSSC = subject.images(condition, count, seed)
        parts.append(images_NSSC)
        names += [condition] * len(images_NSSC)
        on_progress(len(names), total)
    return ImageSet(
        np.concatenate(parts), tuple(names), tuple(f"drawn/{n}" for n in range(len(names)))
    )


def mixed_counts(shares: Mapping[str, float], total: int, least: int) -> dict[str, int]:
    """How many images of each condition to draw.

    Args:
        shares: Of each condition in the real images; any positive scale.
        total: Images in all, by the shares.
        least: Of each condition at least, on top where its share gives fewer.
    """
    whole = sum(shares.values())
    return {name: max(round(total * share / whole), least) for name, share in shares.items()}
