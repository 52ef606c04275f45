"""The dataset whose unit is the patient.

The last step of the data package: what training and voting sample from. Its length is the number
of patients, not of images, and a patient always gives the same number of views, so that nothing
downstream can weigh someone by how often they were photographed.

Left eyes are served mirrored left to right, so that every eye that is known shows its optic disc
on the right of the picture. Mirroring at random instead would show models two pictures of each
eye; with one orientation, what there is to learn is half as much and rises above the noise of
differential privacy sooner. A generator mirrors what it draws at random afterwards, which costs
nothing. Images of unknown eye are served as they are.

Axis letters: P patients, K views, C colours, H height, W width, N images.
"""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fundusgen.data.cache import Progress, framed_images
from fundusgen.data.conditions import CONDITIONS, condition_of
from fundusgen.data.manifest import ManifestSettings, read_manifest
from fundusgen.data.problems import RowProblem, write_problems
from fundusgen.errors import ManifestError, StudyError
from fundusgen.pixels import to_network


class PatientDataset:
    """Framed images and their conditions, grouped by patient.

    Args:
        images_NHWC: uint8, (N, H, W, 3); may be mapped from a file, and is never written to.
        conditions_N: int64, the condition of each image as its place in the study's list.
        patients_N: The patient of each image.
        mirrored_N: Images to serve mirrored left to right; none where absent.

    Attributes:
        patient_ids: The patients, in the order of their first image.
        patients_N: The patient of each image.
        conditions_N: int64, the condition of each image.
    """

    def __init__(
        self,
        images_NHWC: NDArray[np.uint8],
        conditions_N: NDArray[np.int64],
        patients_N: Sequence[str],
        mirrored_N: NDArray[np.bool_] | None = None,
    ) -> None:
        """Group the images; none is read yet."""
        if mirrored_N is None:
            mirrored_N = np.zeros(len(images_NHWC), dtype=np.bool_)
        if len(mirrored_N) != len(images_NHWC):
            raise ValueError(f"{len(images_NHWC)} images and {len(mirrored_N)} marks of mirroring")
        if not len(images_NHWC) == len(conditions_N) == len(patients_N):
            raise ValueError(
                f"{len(images_NHWC)} images, {len(conditions_N)} conditions and "
                f"{len(patients_N)} patients: one of each is needed for every image"
            )
        self._stored_NHWC = images_NHWC
        # By place in the store, so that subsets share it as they share the pixels.
        self._mirrored_N = np.asarray(mirrored_N, dtype=np.bool_)
        self._places_N = np.arange(len(images_NHWC))
        self._group(conditions_N, patients_N)

    def _group(self, conditions_N: NDArray[np.int64], patients_N: Sequence[str]) -> None:
        self.conditions_N = np.asarray(conditions_N, dtype=np.int64)
        self.patients_N = tuple(patients_N)
        images_of: dict[str, list[int]] = {}
        for image, patient in enumerate(patients_N):
            images_of.setdefault(patient, []).append(image)
        self.patient_ids = tuple(images_of)
        self._images_of = [np.array(images, dtype=np.int64) for images in images_of.values()]

    def __len__(self) -> int:
        """Number of patients."""
        return len(self._images_of)

    @property
    def image_count(self) -> int:
        """Number of images."""
        return len(self._places_N)

    def images_of(self, patient_index: int) -> NDArray[np.int64]:
        """Indices of the images of one patient, ascending."""
        return self._images_of[patient_index]

    def pixels(self, image_indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copy the pixels of some images, mirrored where they are to be.

        Args:
            image_indices: int64, of any shape.

        Returns:
            uint8, the shape of the indices and then (H, W, 3).
        """
        places_X = self._places_N[image_indices]
        pixels_XHWC = np.array(self._stored_NHWC[places_X])
        mirrored_X = self._mirrored_N[places_X]
        pixels_XHWC[mirrored_X] = pixels_XHWC[mirrored_X][..., ::-1, :]
        return pixels_XHWC

    def views(
        self,
        patient_indices: NDArray[np.int64],
        views_per_patient: int,
        rng: np.random.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Draw exactly `views_per_patient` views of each of the given patients.

        A patient's images are gone through in random order, again and again, so that each is
        drawn equally often or once more. Views are as `pixels` gives them; nothing in them is
        random but the choice among a patient's images.

        Args:
            patient_indices: int64, (P,), from 0 to the number of patients less 1; may be empty.
            views_per_patient: K, at least 1.
            rng: Source of order; this class does not seed anything.

        Returns:
            Images, float32, (P, K, 3, H, W), from -1 to 1, and conditions, int64, (P, K).

        Raises:
            ValueError: If `views_per_patient` is below 1.
            IndexError: If there is no such patient.
        """
        if views_per_patient < 1:
            raise ValueError(f"a patient gives at least one view, not {views_per_patient}")
        chosen_PK = np.empty((len(patient_indices), views_per_patient), dtype=np.int64)
        for row, patient in enumerate(patient_indices):
            if not 0 <= patient < len(self):
                raise IndexError(f"patient {patient} of {len(self)}")
            images = self._images_of[patient]
            rounds = -(-views_per_patient // len(images))
            order = np.concatenate([rng.permutation(images) for _ in range(rounds)])
            chosen_PK[row] = order[:views_per_patient]
        pixels_PKSSC = np.ascontiguousarray(self.pixels(chosen_PK))
        images_PKCHW = to_network(torch.from_numpy(pixels_PKSSC)).contiguous()
        return images_PKCHW, torch.from_numpy(self.conditions_N[chosen_PK])

    def subset(self, image_indices: NDArray[np.int64]) -> "PatientDataset":
        """Make a dataset of some of the images, in the given order; pixels are shared."""
        chosen = copy.copy(self)
        chosen._places_N = self._places_N[image_indices]
        chosen._group(
            self.conditions_N[image_indices], [self.patients_N[image] for image in image_indices]
        )
        return chosen


@dataclass(frozen=True)
class LoadedPatients:
    """A site's patients for one study. Everything in it stays at the site.

    Attributes:
        dataset: Usable images whose condition the study lists.
        problems: What is wrong with rows; all but those with `left_out=False` are left out.
        left_out_for_condition: Usable images whose condition the study does not list.
        content_digest: Equal exactly for equal usable images, patients, eyes and conditions, in
            the manifest's order; of the manifest and files, whatever the study.
    """

    dataset: PatientDataset
    problems: tuple[RowProblem, ...]
    left_out_for_condition: int
    content_digest: str


def load_patients(
    settings: ManifestSettings,
    size_px: int,
    conditions: Sequence[str],
    cache_dir: Path,
    *,
    on_progress: Progress | None = None,
    workers: int = 1,
) -> LoadedPatients:
    """Read a site's manifest and images for one study; left eyes are served mirrored.

    Guarantee: adding or removing all rows of one patient changes no other patient's images,
    conditions or orientation; if anything about the whole cannot be used, it raises.

    Args:
        settings: Where the manifest is; its `strict` holds for the images too.
        size_px: Side of the framed images, in pixels.
        conditions: The study's list; an image's condition becomes its place in it. Images of
            other conditions are left out and counted; nothing is mapped to `unknown` but
            images whose condition is not known.
        cache_dir: Folder of the cache, one a site; `problems.json` in it lists all problems.
        on_progress: Called with images done and images in all.
        workers: Processes that decode.

    Returns:
        The dataset and what was left out.

    Raises:
        StudyError: If a condition is not one of `CONDITIONS` or is listed twice.
        ManifestError: If the manifest cannot be read, no image is left, or, with
            `settings.strict`, a row cannot be used.
    """
    _check_conditions(conditions)
    reading = read_manifest(settings)
    framed = framed_images(
        reading.rows,
        size_px,
        cache_dir,
        strict=settings.strict,
        on_progress=on_progress,
        workers=workers,
    )
    problems = tuple(sorted(reading.problems + framed.problems, key=lambda p: p.line))
    write_problems(cache_dir / "problems.json", problems)
    place_of = {condition: place for place, condition in enumerate(conditions)}
    places_N = np.array([place_of.get(condition_of(row), -1) for row in framed.rows], np.int64)
    listed = np.flatnonzero(places_N >= 0)
    if not len(listed):
        raise ManifestError(
            f"none of {len(places_N)} usable images has a condition of the study",
            expected=f"images of {', '.join(conditions)}",
            remedy="Join another study, or add the labels to the manifest",
        )
    everything = PatientDataset(
        framed.images_NHWC,
        places_N,
        [row.patient_id for row in framed.rows],
        np.array([row.eye == "L" for row in framed.rows], np.bool_),
    )
    left_out = len(places_N) - len(listed)
    content = [
        [row.patient_id, row.eye, condition_of(row), digest]
        for row, digest in zip(framed.rows, framed.digests, strict=True)
    ]
    return LoadedPatients(
        everything.subset(listed) if left_out else everything,
        problems,
        left_out,
        hashlib.sha256(json.dumps(content).encode()).hexdigest(),
    )


def _check_conditions(conditions: Sequence[str]) -> None:
    for condition in conditions:
        if condition not in CONDITIONS:
            raise StudyError(
                f"the study lists the condition {condition!r}",
                expected=f"some of {', '.join(CONDITIONS)}",
                remedy="Correct the study's `conditions`",
            )
    if len(set(conditions)) < len(conditions):
        raise StudyError(
            "the study lists a condition twice",
            expected="each condition once",
            remedy="Correct the study's `conditions`",
        )
