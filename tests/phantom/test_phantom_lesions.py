"""What conditions add to an eye."""

import numpy as np
import pytest

from fundusgen.data.conditions import CONDITIONS
from fundusgen.errors import DataError
from fundusgen.phantom.anatomy import draw_anatomy
from fundusgen.phantom.lesions import PHANTOM_CONDITIONS, Lesions, draw_lesions
from fundusgen.phantom.looks import LOOKS


def _lesions(condition: str, count: int = 40) -> list[Lesions]:
    drawn = []
    for k in range(count):
        anatomy = draw_anatomy(np.random.Generator(np.random.PCG64([k, 1])), "L")
        drawn.append(draw_lesions(np.random.Generator(np.random.PCG64([k, 2])), condition, anatomy))
    return drawn


def test_every_phantom_condition_is_one_of_the_manifests() -> None:
    assert set(PHANTOM_CONDITIONS) <= set(CONDITIONS)
    assert {"normal", "dr1", "dr2", "dr3", "dr4", "amd"} <= set(PHANTOM_CONDITIONS)


@pytest.mark.parametrize("condition", PHANTOM_CONDITIONS)
def test_lesions_have_known_kinds_and_sane_sizes(condition: str) -> None:
    for lesions in _lesions(condition):
        assert lesions.condition == condition
        assert set(lesions.spots) <= set(LOOKS)
        for spots in lesions.spots.values():
            assert len(spots.strength_N) > 0
            assert (spots.radius_N2 > 0).all()
            assert ((spots.strength_N >= 0) & (spots.strength_N <= 1)).all()
            assert np.allclose((spots.direction_N2**2).sum(axis=1), 1, atol=1e-5)


def test_grade_one_has_microaneurysms_only() -> None:
    assert all(set(lesions.spots) == {"microaneurysm"} for lesions in _lesions("dr1"))


def test_diabetic_lesions_grow_with_the_grade() -> None:
    blood = []
    for condition in ("normal", "dr1", "dr2", "dr3"):
        counts = [
            sum(len(lesions.spots[kind].strength_N) for kind in lesions.spots if kind != "drusen")
            for lesions in _lesions(condition)
        ]
        blood.append(np.mean(counts))
    assert blood == sorted(blood)
    assert blood[0] == 0


def test_grade_three_bleeds_in_every_quadrant_on_average_and_beads_the_veins() -> None:
    for lesions in _lesions("dr3"):
        assert lesions.venous_beading > 0
        assert lesions.new_vessels is not None
        assert len(lesions.spots["haemorrhage"].strength_N) >= 8


def test_only_proliferative_eyes_have_preretinal_blood() -> None:
    kinds = {kind for lesions in _lesions("dr4") for kind in lesions.spots}
    assert "preretinal" in kinds
    assert "preretinal" not in {kind for lesions in _lesions("dr3") for kind in lesions.spots}


def test_macular_degeneration_has_drusen_about_the_fovea() -> None:
    for lesions in _lesions("amd"):
        centre = lesions.spots["drusen"].centre_N2
        assert np.median(np.hypot(centre[:, 0], centre[:, 1])) < 6


def test_glaucoma_widens_the_cup_and_hypertension_narrows_the_arteries() -> None:
    assert all((lesions.cup_ratio or 0) > 0.6 for lesions in _lesions("glaucoma"))
    assert all(lesions.artery_scale < 0.8 for lesions in _lesions("hypertension"))


def test_an_unknown_condition_is_refused_with_those_that_are_known() -> None:
    anatomy = draw_anatomy(np.random.Generator(np.random.PCG64(1)), "R")
    with pytest.raises(DataError, match=r"'retinitis'.*normal, dr1, dr2"):
        draw_lesions(np.random.Generator(np.random.PCG64(1)), "retinitis", anatomy)
