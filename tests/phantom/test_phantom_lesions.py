"""What conditions add to an eye."""

import numpy as np
import pytest

from fundusgen.data.conditions import CONDITIONS
from fundusgen.errors import DataError
from fundusgen.phantom.anatomy import draw_anatomy
from fundusgen.phantom.lesions import PHANTOM_CONDITIONS, Lesions, draw_lesions, meets_4_2_1
from fundusgen.phantom.looks import LOOKS
from fundusgen.phantom.retina import draw_retina
from fundusgen.phantom.view import View


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


def test_grade_three_meets_all_parts_of_the_4_2_1_rule() -> None:
    # Wilkinson et al. 2003: blood in four quadrants, venous beading in two, IRMA in one.
    for lesions in _lesions("dr3"):
        assert meets_4_2_1(lesions)
        x, y = lesions.spots["haemorrhage"].centre_N2.T
        assert (
            min(((x > 0) == nasal)[(y > 0) == below].sum() for nasal in (0, 1) for below in (0, 1))
            >= 2
        )
        assert lesions.venous_beading >= 0.2
        assert len(set(lesions.beaded)) >= 2
        assert lesions.new_vessels is not None
        assert "preretinal" not in lesions.spots


def test_other_grades_do_not_look_severe() -> None:
    for condition in ("normal", "dr1", "dr2"):
        for lesions in _lesions(condition):
            assert not meets_4_2_1(lesions)
            assert lesions.new_vessels is None
            assert lesions.venous_beading == 0


def test_grade_two_has_more_than_microaneurysms() -> None:
    assert all("haemorrhage" in lesions.spots for lesions in _lesions("dr2"))


def test_macular_degeneration_has_early_intermediate_and_late_stages() -> None:
    eyes = _lesions("amd", 80)
    late = [eye for eye in eyes if {"atrophy", "exudate_plaque"} & set(eye.spots)]
    # The Beckman classification: large drusen are wider than 125 um, 0.43 degrees.
    early = [eye for eye in eyes if 2 * eye.spots["drusen"].radius_N2.max() <= 0.44]
    assert 12 <= len(early) <= 36
    assert 16 <= len(late) <= 40
    assert all(set(eye.spots) == {"drusen"} for eye in early)


def test_beaded_veins_are_beaded_in_their_quadrants_alone() -> None:
    anatomy = draw_anatomy(np.random.Generator(np.random.PCG64(1)), "R")
    view = View(160, 3.2, 1.0, (0.0, 0.0))
    calm, beaded = (
        draw_retina(anatomy, Lesions("dr3", venous_beading=amount, beaded=(3,)), view).light_CSS[1]
        for amount in (0.0, 0.45)
    )
    change = np.abs(calm - beaded)
    # Elsewhere the same curves are only sampled a little differently.
    assert change[82:, 82:].mean() > 4 * change[:78].mean()
    assert change[82:, 82:].mean() > 4 * change[:, :78].mean()


def test_arteries_pinch_the_veins_they_cross_in_hypertension() -> None:
    eyes = [draw_anatomy(np.random.Generator(np.random.PCG64(k)), "R") for k in range(6)]
    view = View(128, 2.6, 1.0, (0.0, 0.0))
    gains = [
        (
            draw_retina(eye, Lesions("hypertension", nicking=0.8), view).light_CSS
            - draw_retina(eye, Lesions("hypertension"), view).light_CSS
        )
        for eye in eyes
    ]
    assert min(gain.min() for gain in gains) > -1e-3
    assert max(gain.max() for gain in gains) > 0.03


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
