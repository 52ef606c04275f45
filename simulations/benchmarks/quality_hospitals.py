"""The photographs of the quality benchmark: read, framed, and split in halves by patient.

Hospitals of at least a hundred patients are split: rows are made with the training halves, and
measured against the test halves of all of them together.

N images, S side in pixels, C colours.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fundusgen.data.conditions import CONDITIONS
from fundusgen.data.manifest import ManifestSettings
from fundusgen.data.patients import PatientDataset, load_patients
from fundusgen.data.splits import split_patients
from fundusgen.errors import RunError
from fundusgen.evaluation.resampling import REPLICATES

OUT = Path("runs/quality")
# Its manifest has no patient ids; its authors say one image a patient.
ONE_IMAGE_PER_PATIENT = ("idrid_india",)
# Below, halves would say little: such a hospital is compared with the others as a whole.
SPLIT_FROM_PATIENTS = 100
SPLIT_SEED = 0


@dataclass(frozen=True)
class Settings:
    """What figures depend on, besides the photographs and the features.

    Attributes:
        data: Folder of site folders.
        out: Where results go.
        cache: Where framed photographs and features go; not to be shared.
        images: Images of each row, and of the floor at most.
        size_px: Side of all images.
        replicates: Of the bootstrap.
    """

    data: Path
    out: Path = OUT
    cache: Path = OUT / "cache"
    images: int = 2000
    size_px: int = 64
    replicates: int = REPLICATES


@dataclass(frozen=True, eq=False)
class Sample:
    """Photographs and who they belong to; the patients are None for drawn images."""

    images_NSSC: NDArray[np.uint8]
    patients_N: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class Hospitals:
    """The photographs of all hospitals, framed, right eyes.

    Attributes:
        whole: Each hospital.
        train: Training halves of those that are large enough.
        test: The other halves, together.
        digest: Of all of it.
    """

    whole: Mapping[str, Sample]
    train: Mapping[str, PatientDataset]
    test: Sample
    digest: str


def load_hospitals(settings: Settings) -> Hospitals:
    """Read, frame and split the photographs of every site folder.

    Raises:
        RunError: There is no site folder, or none with enough patients.
    """
    folders = source_folders(settings.data)
    whole: dict[str, Sample] = {}
    train: dict[str, PatientDataset] = {}
    tests: dict[str, Sample] = {}
    digests = []
    for folder in folders:
        loaded = load_patients(
            manifest_of(folder), settings.size_px, CONDITIONS, settings.cache / folder.name
        )
        dataset = loaded.dataset
        digests.append([folder.name, loaded.content_digest])
        whole[folder.name] = sample_of(dataset)
        halves = halves_of(folder.name, dataset.patients_N)
        if halves is not None:
            train[folder.name] = dataset.subset(halves[0])
            tests[folder.name] = sample_of(dataset.subset(halves[1]))
    if not tests:
        raise RunError(
            f"no hospital in {settings.data} has {SPLIT_FROM_PATIENTS} patients",
            expected="one that can be split into training and test halves",
        )
    content = [digests, SPLIT_SEED, SPLIT_FROM_PATIENTS]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return Hospitals(whole, train, joined(tests), digest)


def source_folders(data: Path) -> list[Path]:
    """The folders of a folder that hold photographs with a manifest.

    Raises:
        RunError: There is none.
    """
    folders = sorted(path.parent for path in data.glob("*/manifest.csv"))
    if not folders:
        raise RunError(
            f"{data} holds no hospital",
            expected="folders of photographs with a manifest.csv each",
            remedy="Give --data DIR; `fundusgen phantom` writes an example of such a folder",
        )
    return folders


def halves_of(
    hospital: str, patients_N: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Places of the images of a hospital's training and test half; None where it is too small.

    Args:
        hospital: Its name.
        patients_N: The patient of each image.
    """
    if len(set(patients_N)) < SPLIT_FROM_PATIENTS:
        return None
    ids = [f"{hospital}/{patient}" for patient in patients_N]
    train_half, test_half = split_patients(ids, (0.5, 0.5), SPLIT_SEED)
    return train_half, test_half


def manifest_of(folder: Path) -> ManifestSettings:
    """How a hospital's manifest is to be read."""
    return ManifestSettings(
        folder / "manifest.csv", folder, one_image_per_patient=folder.name in ONE_IMAGE_PER_PATIENT
    )


def sample_of(dataset: PatientDataset) -> Sample:
    """All photographs of a dataset, as they are served: right eyes."""
    return Sample(dataset.pixels(np.arange(dataset.image_count)), dataset.patients_N)


def joined(samples: Mapping[str, Sample]) -> Sample:
    """Samples of several hospitals in one; equal ids of different hospitals stay apart."""
    return Sample(
        np.concatenate([sample.images_NSSC for sample in samples.values()]),
        tuple(
            f"{name}/{patient}"
            for name, sample in samples.items()
            for patient in sample.patients_N or ()
        ),
    )
