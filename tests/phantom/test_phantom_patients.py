"""Patients and collections: what belongs together, what is independent, what the record says."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fundusgen.errors import DataError
from fundusgen.phantom.lesions import PHANTOM_CONDITIONS
from fundusgen.phantom.patients import (
    diagnosis,
    dme_risk,
    dr_grade,
    draw_patient,
    draw_phantom,
)
from fundusgen.phantom.population import collection_phantom, phantom_images
from fundusgen.phantom.render import render


def test_both_eyes_share_traits_and_camera() -> None:
    for number in range(20):
        patient = draw_patient(1, number, {"normal": 1, "dr2": 1}, "dusk")
        right, left = patient.eyes["R"], patient.eyes["L"]
        assert right.anatomy.traits is left.anatomy.traits
        assert right.anatomy.traits.age_years == patient.age_years
        assert right.camera.field_deg == left.camera.field_deg
        assert right.anatomy.disc != left.anatomy.disc
        assert (right.anatomy.eye, left.anatomy.eye) == ("R", "L")


def test_most_patients_have_the_same_condition_in_both_eyes() -> None:
    same = 0
    for number in range(200):
        patient = draw_patient(2, number, {"dr2": 1.0}, "amber")
        conditions = {eye.condition for eye in patient.eyes.values()}
        assert "dr2" in conditions
        assert conditions <= {"dr1", "dr2", "dr3"}
        same += len(conditions) == 1
    assert 140 <= same <= 180


def test_a_patient_does_not_depend_on_the_others() -> None:
    late = draw_patient(3, 57, {"dr1": 1.0}, "rose")
    again = draw_patient(3, 57, {"dr1": 1.0}, "rose")
    other = draw_patient(3, 58, {"dr1": 1.0}, "rose")
    assert (render(late.eyes["L"], 32) == render(again.eyes["L"], 32)).all()
    assert (render(late.eyes["L"], 32) != render(other.eyes["L"], 32)).any()


def test_conditions_come_in_the_shares_of_the_mix() -> None:
    mix = {"normal": 6.0, "dr2": 3.0, "amd": 0.0, "dr4": 1.0}
    drawn = Counter(
        condition
        for number in range(400)
        for condition in [draw_patient(4, number, mix, "amber").eyes["R"].condition]
    )
    # Fellow eyes may be one grade off, or normal.
    assert drawn["amd"] == 0
    assert 0.52 < drawn["normal"] / 400 < 0.68
    assert drawn["dr4"] + drawn["dr3"] > 15


@given(condition=st.sampled_from(PHANTOM_CONDITIONS), number=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_the_record_agrees_with_the_eye(condition: str, number: int) -> None:
    patient = draw_patient(5, number, {condition: 1.0}, "amber")
    assert 18 <= patient.age_years <= 90
    assert patient.sex in ("F", "M")
    for eye in patient.eyes.values():
        grade = dr_grade(eye.condition)
        if eye.condition.startswith("dr"):
            assert (grade, diagnosis(eye.condition)) == (int(eye.condition[2]), "dr")
        else:
            assert grade == (0 if eye.condition == "normal" else None)
            assert diagnosis(eye.condition) == eye.condition
        risk = dme_risk(eye)
        assert (risk is None) == (grade is None)
        if risk is not None:
            assert (risk > 0) == ("exudate" in eye.lesions.spots)


@pytest.mark.parametrize(
    ("mix", "seed", "style"),
    [
        ({"normal": 1.0}, -1, "amber"),
        ({"normal": 1.0}, 1, "sepia"),
        ({"flu": 1.0}, 1, "amber"),
        ({"normal": 0.0}, 1, "amber"),
        ({"normal": -1.0, "dr1": 2.0}, 1, "amber"),
        ({"normal": float("nan")}, 1, "amber"),
        ({}, 1, "amber"),
    ],
)
def test_what_cannot_be_drawn_is_refused(mix: dict[str, float], seed: int, style: str) -> None:
    with pytest.raises(DataError, match="Expected:"):
        draw_patient(seed, 0, mix, style)


def test_a_collection_is_balanced_and_begins_with_the_shorter_one() -> None:
    images, labels = phantom_images(9, 32, 6, ("normal", "dr2", "amd"))
    fewer, _ = phantom_images(4, 32, 6, ("normal", "dr2", "amd"))
    assert images.shape == (9, 32, 32, 3)
    assert labels.tolist() == [0, 1, 2] * 3
    assert (images[:4] == fewer).all()
    assert len({image.tobytes() for image in images}) == 9


def test_the_number_of_workers_changes_nothing() -> None:
    alone, _ = phantom_images(70, 16, 7, ("normal", "dr1"))
    shared, _ = phantom_images(70, 16, 7, ("normal", "dr1"), workers=2)
    assert (alone == shared).all()


def test_a_collection_has_all_cameras_for_every_condition() -> None:
    seen = {
        (phantom.condition, phantom.camera.style)
        for phantom in (
            collection_phantom(k, 8, ("normal", "dr1"), ("amber", "rose")) for k in range(60)
        )
    }
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("count", "conditions", "styles"),
    [(-1, ("normal",), ()), (3, (), ()), (3, ("flu",), ()), (3, ("normal",), ("sepia",))],
)
def test_a_collection_that_cannot_be_drawn_is_refused(
    count: int, conditions: tuple[str, ...], styles: tuple[str, ...]
) -> None:
    with pytest.raises(DataError):
        phantom_images(count, 32, 1, conditions, camera_styles=styles)


def test_a_collection_and_a_site_of_one_seed_have_no_eye_in_common() -> None:
    single = draw_phantom(9, 0, "normal", "amber")
    patient = draw_patient(9, 0, {"normal": 1.0}, "amber")
    assert single.anatomy.disc.x_deg not in [
        eye.anatomy.disc.x_deg for eye in patient.eyes.values()
    ]


def test_drawing_phantoms_never_loads_the_package_for_patient_data() -> None:
    code = (
        "import sys, fundusgen.phantom.population, fundusgen.phantom.sheet;"
        "sys.exit(any(name.startswith('fundusgen.data') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_draws_are_spread_over_right_and_left_eyes() -> None:
    eyes = Counter(draw_phantom(10, k, "normal", "amber").anatomy.eye for k in range(60))
    assert min(eyes.values()) > 15
    assert np.std(
        [draw_phantom(10, k, "normal", "amber").anatomy.traits.pigment for k in range(60)]
    )
