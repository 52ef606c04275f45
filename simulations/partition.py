"""Split one folder's patients into several hospitals; a patient is never split."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fundusgen.errors import StudyError
from fundusgen.study import PartitionRule


def partition(conditions: Mapping[str, str], rule: PartitionRule, seed: int) -> list[list[str]]:
    """Assign every patient to exactly one hospital.

    Args:
        conditions: For every patient, the condition they count under.
        rule: How to split.
        seed: Equal seeds give equal splits, whatever the order of the patients.

    Returns:
        The patients of each of `rule.into` hospitals, in sorted order, none empty.

    Raises:
        StudyError: There are fewer patients than hospitals.
    """
    patients = sorted(conditions)
    if len(patients) < rule.into:
        raise StudyError(
            f"{len(patients)} patients cannot make {rule.into} hospitals",
            expected="at least one patient for each",
            remedy="Lower simulation.partition.into",
        )
    rng = np.random.default_rng(seed)
    if rule.how == "dirichlet":
        hospital_of = _dirichlet([conditions[patient] for patient in patients], rule, rng)
    else:
        hospital_of = _by_size(len(patients), rule, rng)
    _fill_empty(hospital_of, rule.into)
    parts: list[list[str]] = [[] for _ in range(rule.into)]
    for patient, hospital in zip(patients, hospital_of, strict=True):
        parts[hospital].append(patient)
    return parts


def main_condition(conditions: Sequence[str]) -> str:
    """The condition a patient with several images counts under: the first that is no `normal`."""
    ill = [name for name in conditions if name not in ("normal", "unknown")]
    return sorted(ill)[0] if ill else sorted(conditions)[0]


def _by_size(count: int, rule: PartitionRule, rng: np.random.Generator) -> NDArray[np.int64]:
    """Shuffle, then cut at shares that are equal (`iid`) or fall geometrically (`size`)."""
    ratio = rule.ratio if rule.how == "size" else 1.0
    shares = ratio ** np.arange(rule.into)
    ends = np.round(np.cumsum(shares) / shares.sum() * count).astype(np.int64)
    hospitals = np.searchsorted(ends, np.arange(count), side="right")
    return rng.permutation(np.minimum(hospitals, rule.into - 1))


def _dirichlet(
    labels: list[str], rule: PartitionRule, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Spread each condition over the hospitals by shares from a Dirichlet (Hsu et al. 2019)."""
    hospital_of = np.zeros(len(labels), dtype=np.int64)
    for label in sorted(set(labels)):
        members = np.flatnonzero(np.array(labels) == label)
        shares = rng.dirichlet(np.full(rule.into, rule.alpha))
        hospital_of[members] = rng.choice(rule.into, size=len(members), p=shares)
    return hospital_of


def _fill_empty(hospital_of: NDArray[np.int64], hospitals: int) -> None:
    """Give each empty hospital the last patient of the largest one."""
    for hospital in range(hospitals):
        if not (hospital_of == hospital).any():
            largest = int(np.bincount(hospital_of, minlength=hospitals).argmax())
            hospital_of[np.flatnonzero(hospital_of == largest)[-1]] = hospital
