"""Real photographs to evaluate with: read from folders, framed, and found to be of other patients.

Runs where the photographs may lie. What an evaluation says of them is not covered by the
generator's epsilon: its figures are plain statistics of the test patients.

N images.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fundusgen.data.conditions import CONDITIONS
from fundusgen.data.manifest import ManifestSettings
from fundusgen.data.patients import load_patients
from fundusgen.errors import DataError, ManifestError
from fundusgen.evaluation.images import ImageSet, joined
from fundusgen.site import SiteFolder

MANIFEST = "manifest.csv"
# Below, intervals are wider than any difference between two generators.
LEAST_PATIENTS = 30
_SHOWN = 3

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class RealImages:
    """The photographs of one or several folders.

    Attributes:
        images: Framed, right eyes; patients of several folders are told apart by the folder.
        digest: Of all of it: equal exactly for equal images, patients, eyes and conditions.
        unusable: Rows of the manifests that were left out, for whatever reason.
        raw_ids: The patients as the manifests name them.
    """

    images: ImageSet
    digest: str
    unusable: int
    raw_ids: frozenset[str]

    def of_conditions(self, names: Sequence[str]) -> "RealImages":
        """The images of some conditions; digest and ids stay those of the folders."""
        return RealImages(
            self.images.of_conditions(names), self.digest, self.unusable, self.raw_ids
        )


def load_real(
    folders: Sequence[Path],
    size_px: int,
    cache: Path,
    *,
    label: str = "",
    one_image_per_patient: bool = False,
    workers: int = 1,
    on_progress: Progress | None = None,
) -> RealImages:
    """Read photographs.

    Args:
        folders: Each a site folder with site.yaml, a folder with manifest.csv, or a CSV file; at
            least one.
        size_px: Side of the framed images.
        cache: For the framed images, a folder for each; patient data, readable by its owner only.
        label: Begins the names of the patients, so that those of test and training folders differ.
        one_image_per_patient: The statement that in folders without site.yaml no patient has two
            images, so that patient ids may be missing.
        workers: Processes that decode.
        on_progress: Called with images done and images in all, of each folder that is not cached.

    Raises:
        DataError: A folder has no manifest, or nothing in it can be used.
    """
    sets, digests, unusable, raw_ids = [], [], 0, set()
    for number, folder in enumerate(folders):
        settings = _manifest_of(folder, one_image_per_patient)
        name = hashlib.sha256(str(settings.manifest.resolve()).encode()).hexdigest()[:12]
        try:
            loaded = load_patients(
                settings, size_px, CONDITIONS, cache / name,
                on_progress=on_progress, workers=workers,
            )  # fmt: skip
        except ManifestError as error:
            raise ManifestError(
                f"{folder}: {error.found}", expected=error.expected, remedy=error.remedy
            ) from error
        dataset = loaded.dataset
        sets.append(
            ImageSet(
                dataset.pixels(np.arange(dataset.image_count)),
                tuple(CONDITIONS[place] for place in dataset.conditions_N),
                # Equal ids of two hospitals are two people.
                tuple(f"{label}{number}/{patient}" for patient in dataset.patients_N),
            )
        )
        digests.append(loaded.content_digest)
        unusable += sum(problem.left_out for problem in loaded.problems)
        raw_ids |= set(dataset.patients_N)
    digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    return RealImages(joined(sets), digest, unusable, frozenset(raw_ids))


def check_enough(real: ImageSet, known: Sequence[str]) -> None:
    """Refuse a test set that nothing can be said with.

    Args:
        real: The test images that are left for the generator's conditions.
        known: The generator's conditions.

    Raises:
        DataError: There are too few patients.
    """
    if not len(real):
        raise DataError(
            "None of the real images shows a condition that the generator knows",
            expected=f"images of {', '.join(known)}",
            remedy="Give a folder whose manifest has diagnosis or dr_grade",
        )
    if real.patient_count < LEAST_PATIENTS:
        raise DataError(
            f"{len(real)} real images of {real.patient_count} patients show conditions that the "
            "generator knows",
            expected=f"at least {LEAST_PATIENTS} patients; a few hundred tell generators apart",
            remedy="Give a larger test folder, or several with --real",
        )


def without_shared(real: RealImages, train: RealImages) -> RealImages:
    """Leave out test patients of whom a photograph is in the training set, whoever it is there."""
    trained = _pixels(train.images)
    shared = {
        patient
        for image_SSC, patient in zip(real.images.images_NSSC, real.images.patients_N, strict=True)
        if _pixels_of(image_SSC) in trained
    }
    others = [patient for patient in set(real.images.patients_N) if patient not in shared]
    return RealImages(real.images.of_patients(others), real.digest, real.unusable, real.raw_ids)


def check_disjoint(real: RealImages, train: RealImages, *, ids_are_separate: bool) -> None:
    """Refuse a test set that shares patients with the training set.

    Equal pixels are one photograph whatever the manifests say; equal patient ids are one person
    unless it is stated that the folders count their patients independently.

    Args:
        real: The test set.
        train: The training set.
        ids_are_separate: Equal ids of test and training folders are different people.

    Raises:
        DataError: They share photographs or patients.
    """
    shared = _pixels(real.images) & _pixels(train.images)
    if shared:
        raise DataError(
            f"{len(shared)} photographs are in the test folder and in the training folder",
            expected="patients who took no part in training",
            remedy="Split by patient before training, and give the part that was held out; or "
            "leave their patients out of the test with --leave-out-shared",
        )
    both = sorted(real.raw_ids & train.raw_ids)
    if both and not ids_are_separate:
        shown = ", ".join(both[:_SHOWN]) + (", ..." if len(both) > _SHOWN else "")
        raise DataError(
            f"{len(both)} patient ids are in the test folder and in the training folder ({shown})",
            expected="patients who took no part in training",
            remedy="Split by patient; if the folders number their patients independently, say so "
            "with --separate-ids",
        )


def _manifest_of(folder: Path, one_image_per_patient: bool) -> ManifestSettings:
    if folder.is_file():
        return ManifestSettings(folder, folder.parent, one_image_per_patient=one_image_per_patient)
    if SiteFolder(folder).settings_file.is_file():
        return ManifestSettings.of(SiteFolder(folder).settings().data)
    if (folder / MANIFEST).is_file():
        return ManifestSettings(
            folder / MANIFEST, folder, one_image_per_patient=one_image_per_patient
        )
    raise DataError(
        f"There is no {MANIFEST} in {folder}" if folder.is_dir() else f"There is no {folder}",
        expected=f"a folder with {MANIFEST} (file, patient_id, diagnosis, dr_grade) or a site "
        "folder with site.yaml",
        remedy="Write a manifest that lists the images and their patients",
    )


def _pixels(images: ImageSet) -> set[bytes]:
    return {_pixels_of(image_SSC) for image_SSC in images.images_NSSC}


def _pixels_of(image_SSC: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(image_SSC.tobytes()).digest()
