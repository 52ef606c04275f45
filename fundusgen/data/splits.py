"""Splits that never divide a patient."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def split_patients(
    patient_ids: Sequence[str], fractions: Sequence[float], seed: int
) -> tuple[Indices, ...]:
    """Split images so that all images of a patient are in one part.

    Patients are ordered by a hash of seed and id, then cut into parts of the given shares. The
    same ids and seed give the same parts in whatever order the images come.

    Args:
        patient_ids: The patient of each image.
        fractions: Share of the patients in each part, each from 0 to 1, together at most 1.
            Patients beyond their sum are in no part.
        seed: Chooses the split; no secret and no source of privacy.

    Returns:
        For each part the indices of its images, ascending, int64.

    Raises:
        ValueError: If the fractions are negative or sum to more than 1.
    """
    if any(not 0 <= fraction <= 1 for fraction in fractions) or sum(fractions) > 1 + 1e-9:
        raise ValueError(f"fractions must be 0 to 1 and sum to at most 1, not {list(fractions)}")
    patients = sorted(set(patient_ids), key=lambda patient: _draw(patient, seed))
    bounds = np.round(np.cumsum([0.0, *fractions]) * len(patients)).astype(int)
    part_of_patient = {
        patient: part
        for part in range(len(fractions))
        for patient in patients[bounds[part] : bounds[part + 1]]
    }
    part_of_image_N = np.array([part_of_patient.get(patient, -1) for patient in patient_ids], int)
    return tuple(
        np.flatnonzero(part_of_image_N == part).astype(np.int64) for part in range(len(fractions))
    )


def _draw(patient: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{patient}".encode()).digest()
