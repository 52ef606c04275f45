"""Splits that never divide a patient, and in which no patient moves another."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def split_patients(
    patient_ids: Sequence[str], fractions: Sequence[float], seed: int
) -> tuple[Indices, ...]:
    """Split images so that all images of a patient are in one part.

    A hash of seed and id gives each patient a number from 0 to 1, and the parts are intervals of
    it. So shares hold on average only: a site of 20 patients may well have 1 or 7 in a part of a
    fifth. Exact shares would need a rank among all patients, and one more patient would then move
    others between parts.

    Guarantee: a patient's part depends on their id and the seed only.

    Args:
        patient_ids: The patient of each image.
        fractions: Expected share of the patients in each part, each from 0 to 1, together at
            most 1. Patients beyond their sum are in no part.
        seed: Chooses the split; no secret and no source of privacy.

    Returns:
        For each part the indices of its images, ascending, int64.

    Raises:
        ValueError: If the fractions are negative or sum to more than 1.
    """
    if any(not 0 <= fraction <= 1 for fraction in fractions) or sum(fractions) > 1 + 1e-9:
        raise ValueError(f"fractions must be 0 to 1 and sum to at most 1, not {list(fractions)}")
    bounds = np.cumsum(fractions)
    draws_N = np.array([_draw(patient, seed) for patient in patient_ids], np.float64)
    # A draw equal to a bound belongs to the part after it.
    part_of_image_N = np.searchsorted(bounds, draws_N, side="right")
    return tuple(
        np.flatnonzero(part_of_image_N == part).astype(np.int64) for part in range(len(fractions))
    )


def _draw(patient: str, seed: int) -> float:
    """A number from 0 to less than 1, uniform over ids."""
    digest = hashlib.sha256(f"{seed}\0{patient}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
