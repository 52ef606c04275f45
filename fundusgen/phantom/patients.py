"""Patients of a phantom hospital: two eyes that belong together, with a record.

Seventh step of the simulator. Each part of a patient has its own random stream, derived from the
seed, the patient's number and the part's name, so that a change in one part's prior leaves the
others as they were, and patients can be drawn in any order and by any number of workers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from fundusgen.errors import DataError
from fundusgen.phantom.anatomy import Eye, Traits, draw_anatomy, draw_traits
from fundusgen.phantom.camera import Exposure, draw_camera, draw_exposure
from fundusgen.phantom.exact import bell, whole
from fundusgen.phantom.lesions import check_conditions, draw_lesions
from fundusgen.phantom.render import Phantom

EYES: tuple[Eye, Eye] = ("R", "L")
# Mean and sd of the age of patients with a condition, in years.
_AGES: Mapping[str, tuple[float, float]] = {
    "normal": (52, 14),
    "amd": (73, 8),
    "glaucoma": (65, 10),
    "cataract": (69, 8),
    "myopia": (50, 14),
    "hypertension": (60, 10),
}
_DIABETIC_AGE = (57.0, 10.0)
# How often the fellow eye has the same condition; a diabetic one may differ by a grade.
_SAME_CONDITION_RATE = 0.8


@dataclass(frozen=True, eq=False)
class PhantomPatient:
    """A patient who does not exist.

    Attributes:
        patient_number: Number within the site, from 0.
        sex: "F" or "M".
        age_years: 18 to 90.
        eyes: Phantom of the right and of the left eye.
    """

    patient_number: int
    sex: str
    age_years: int
    eyes: Mapping[Eye, Phantom]


# Last part of the key of an eye's anatomy, lesions and camera.
_EYE_PARTS = (10, 11, 12)


class _Stream(IntEnum):
    RECORD = 0
    TRAITS = 1
    EXPOSURE = 2
    RIGHT = 3
    LEFT = 4
    COLLECTION = 5


def draw_patient(
    seed: int, patient_number: int, conditions_mix: Mapping[str, float], camera_style: str
) -> PhantomPatient:
    """Draw one patient with both eyes.

    Args:
        seed: Seed of the site, 0 or more.
        patient_number: Number of the patient, 0 or more; patients are independent of each other.
        conditions_mix: Weight of each condition, any positive scale.
        camera_style: A key of `fundusgen.phantom.camera.CAMERA_STYLES`.

    Returns:
        Both eyes share pigmentation, calibres, camera and, mostly, the condition.

    Raises:
        DataError: Unknown condition or style, no positive weight, or a negative seed.
    """
    check_mix(conditions_mix)
    _check_seed(seed, patient_number)
    record = _rng(seed, patient_number, _Stream.RECORD)
    condition = _choose(record, conditions_mix)
    fellow = _fellow_condition(record, condition)
    if record.random() < 0.5:
        conditions = dict(zip(EYES, (condition, fellow), strict=True))
    else:
        conditions = dict(zip(EYES, (fellow, condition), strict=True))
    age = _draw_age(record, condition)
    sex = "F" if record.random() < 0.5 else "M"
    traits = draw_traits(_rng(seed, patient_number, _Stream.TRAITS), age)
    exposure = draw_exposure(_rng(seed, patient_number, _Stream.EXPOSURE), camera_style)
    eyes = {
        eye: _draw_eye((seed, patient_number, stream), eye, conditions[eye], traits, exposure)
        for eye, stream in zip(EYES, (_Stream.RIGHT, _Stream.LEFT), strict=True)
    }
    return PhantomPatient(patient_number, sex, age, eyes)


def draw_phantom(seed: int, number: int, condition: str, camera_style: str) -> Phantom:
    """Draw one photograph of a new patient, right or left eye at random.

    Args:
        seed: Seed of the collection, 0 or more; its draws have nothing in common with those of
            `draw_patient` for the same seed.
        number: Number within the collection, 0 or more.
        condition: One of `fundusgen.phantom.lesions.PHANTOM_CONDITIONS`.
        camera_style: A key of `fundusgen.phantom.camera.CAMERA_STYLES`.

    Raises:
        DataError: Unknown condition or style, or a negative seed.
    """
    _check_seed(seed, number)
    key = (seed, number, _Stream.COLLECTION)
    record = _rng(*key, _Stream.RECORD)
    eye = EYES[whole(record, 0, 1)]
    check_conditions([condition])
    traits = draw_traits(_rng(*key, _Stream.TRAITS), _draw_age(record, condition))
    exposure = draw_exposure(_rng(*key, _Stream.EXPOSURE), camera_style)
    return _draw_eye(key, eye, condition, traits, exposure)


def drawn_eye(seed: int, number: int) -> Eye:
    """Return which eye `draw_phantom` draws for a seed and a number, without drawing it.

    Raises:
        DataError: A negative seed or number.
    """
    _check_seed(seed, number)
    return EYES[whole(_rng(seed, number, _Stream.COLLECTION, _Stream.RECORD), 0, 1)]


def check_mix(conditions_mix: Mapping[str, float]) -> None:
    """Refuse a mix of conditions that cannot be drawn from.

    Raises:
        DataError: Unknown condition, a weight below 0 or not finite, or no positive weight.
    """
    check_conditions(conditions_mix)
    weights = list(conditions_mix.values())
    if not all(0 <= weight < float("inf") for weight in weights) or not any(weights):
        raise DataError(
            f"the mix of conditions has the weights {weights}",
            expected="finite weights of 0 or more, at least one above 0",
            remedy="Give each condition its share, such as normal=2 dr2=1",
        )


def dr_grade(condition: str) -> int | None:
    """Return the ICDR grade a condition implies, or None where the record would leave it out."""
    if condition == "normal":
        return 0
    return int(condition[2:]) if condition.startswith("dr") else None


def diagnosis(condition: str) -> str:
    """Return the manifest's diagnosis for a condition."""
    return "dr" if condition.startswith("dr") else condition


def dme_risk(phantom: Phantom) -> int | None:
    """Return the risk of macular oedema: 2 with exudates within a disc diameter of the fovea.

    The IDRiD scale: 0 no exudates, 1 exudates further away, 2 within one disc diameter. None where
    the condition is not diabetic.
    """
    if dr_grade(phantom.condition) is None:
        return None
    exudates = phantom.lesions.spots.get("exudate")
    if exudates is None:
        return 0
    x, y = exudates.centre_N2[:, 0], exudates.centre_N2[:, 1]
    near = 2 * phantom.anatomy.traits.disc_radius_deg
    return 2 if bool((x * x + y * y < near * near).any()) else 1


def _draw_eye(
    key: tuple[int, ...], eye: Eye, condition: str, traits: Traits, exposure: Exposure
) -> Phantom:
    anatomy_rng, lesion_rng, camera_rng = (_rng(*key, part) for part in _EYE_PARTS)
    anatomy = draw_anatomy(anatomy_rng, eye, traits)
    return Phantom(
        anatomy=anatomy,
        lesions=draw_lesions(lesion_rng, condition, anatomy),
        camera=draw_camera(camera_rng, exposure, anatomy),
    )


def _draw_age(rng: np.random.Generator, condition: str) -> int:
    return min(max(int(bell(rng, *_AGES.get(condition, _DIABETIC_AGE))), 18), 90)


def _check_seed(seed: int, number: int) -> None:
    if seed < 0 or number < 0:
        raise DataError(
            f"a phantom was asked for with seed {seed} and number {number}",
            expected="whole numbers of 0 or more",
            remedy="Choose another seed",
        )


def _fellow_condition(record: np.random.Generator, condition: str) -> str:
    same, step = record.random() < _SAME_CONDITION_RATE, whole(record, 0, 1)
    if same or condition == "normal":
        return condition
    grade = dr_grade(condition)
    if grade is None:
        return "normal"
    neighbour = min(max(grade + (1 if step else -1), 0), 4)
    return f"dr{neighbour}" if neighbour else "normal"


def _choose(rng: np.random.Generator, mix: Mapping[str, float]) -> str:
    total = 0.0
    for weight in mix.values():
        total += weight
    mark = float(rng.random()) * total
    for condition, weight in mix.items():
        mark -= weight
        if mark < 0:
            return condition
    return next(name for name in reversed(list(mix)) if mix[name] > 0)


def _rng(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
