"""The page and the sentences of an evaluation: what they say, in both directions, and what not."""

import base64
import json
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_content import estimate, evaluation_content
from numpy.typing import NDArray
from PIL import Image

from fundusgen.evaluation.closeness import ClosePair
from fundusgen.evaluation.evaluation import Evaluated, Evaluation
from fundusgen.evaluation.images import ImageSet
from fundusgen.evaluation.material import Counts, EvaluationSettings, Material
from fundusgen.evaluation.subject import Identity
from fundusgen.report.closest_pairs import write_closest_pairs
from fundusgen.report.evaluation_page import PAGE, VALUES, evaluation_page, write_evaluation
from fundusgen.report.evaluation_values import (
    copies,
    finds_members,
    known,
    sentences,
    strongest_attack,
    task_title,
    with_interval,
)

Content = dict[str, Any]
HOSTILE = '<img src=x onerror="alert(1)">'
SHEETS = {"Generated images": Image.new("RGB", (8, 8))}
NOTHING = {"value": None, "low": None, "high": None}


def between(low: float, high: float) -> dict[str, float]:
    return {"value": (low + high) / 2, "low": low, "high": high}


def changed(change: Callable[[Content], object]) -> Content:
    """An evaluation of which something is other than in a good one."""
    content = evaluation_content()
    change(content)
    return content


def said(content: Content) -> str:
    return "\n".join(sentences(content))


def page_of(content: Content) -> str:
    return evaluation_page(content, SHEETS)


def set_figure(regime: str, **fields: object) -> Callable[[Content], object]:
    def change(content: Content) -> None:
        for figure in content["usefulness"]["figures"]:
            if figure["regime"] == regime:
                figure.update(fields)

    return change


def set_kid(of: str, kid: dict[str, float]) -> Callable[[Content], object]:
    return lambda content: content["realism"][0]["rows"]["overall"][of].update(kid=kid)


def set_attack(attack: dict[str, float], control: dict[str, float] | None) -> Content:
    def change(content: Content) -> None:
        (one,) = content["leakage"][0]["attacks"]
        one["attack"] = {**one["attack"], "auc": attack}
        one["control"] = None if control is None else {**one["control"], "auc": control}

    return changed(change)


def set_copying(p_values: Sequence[float | None], control: Sequence[float | None]) -> Content:
    def change(content: Content) -> None:
        leak = content["leakage"][0]
        leak["copying_control"] = deepcopy(leak["copying"])
        for of, values in (("copying", p_values), ("copying_control", control)):
            for which, p_value in zip(("share", "closest_share"), values, strict=True):
                leak[of][which]["p_value"] = p_value

    return changed(change)


def test_usefulness_is_said_first_and_beside_what_photographs_give() -> None:
    first, second, *_ = sentences(evaluation_content())
    assert "generated images alone recognises referable diabetic retinopathy" in first
    assert "AUC of 0.70 (0.68 to 0.72); guessing is 0.50, real photographs give 0.80" in first
    assert second.startswith("Added to real photographs, generated images")
    assert "beside all 500 training patients" in second


def test_without_training_photographs_nothing_is_said_of_them() -> None:
    def alone(content: Content) -> None:
        useful = content["usefulness"]
        useful["figures"] = [f for f in useful["figures"] if f["regime"] == "synthetic"]

    text = said(changed(alone))
    assert "guessing is 0.50." in text
    assert "real photographs give" not in text
    assert "Added to" not in text


@pytest.mark.parametrize(
    ("change", "verdict", "in_table"),
    [
        (between(0.01, 0.05), "images help (+0.030 AUC, +0.010 to +0.050)", "helps: +0.030"),
        (between(-0.05, -0.01), "images harm (-0.030 AUC, -0.050 to -0.010)", "harms: -0.030"),
        (between(-0.01, 0.05), "images change nothing that could be told", "cannot tell: +0.020"),
        (between(0.0, 0.05), "images change nothing that could be told", "cannot tell: +0.025"),
    ],
)
def test_generated_images_help_harm_or_cannot_be_told_to(
    change: dict[str, float], verdict: str, in_table: str
) -> None:
    content = changed(set_figure("real_and_synthetic", change=change))
    assert verdict in said(content)
    assert in_table in page_of(content)


def test_both_ends_of_the_curve_are_told() -> None:
    def curve(content: Content) -> None:
        figures = content["usefulness"]["figures"]
        few = {**figures[2], "share": 0.05, "change": between(0.05, 0.15)}
        few["training"] = {**few["training"], "real_patients": 25}
        figures.append(few)
        figures.append({**figures[0], "share": 0.05, "estimate": estimate(0.6)})

    text = said(changed(curve))
    assert "beside all 500 training patients and help (+0.100 AUC" in text
    assert "beside 25 of them." in text
    assert "% of the training patients, linear imagenet" in page_of(changed(curve))


@pytest.mark.parametrize(
    ("generated", "verdict"),
    [
        (between(0.10, 0.20), "They are nearer to photographs than raw phantoms are"),
        (between(0.50, 0.60), "They are further from photographs than raw phantoms are"),
        (between(0.20, 0.30), "They are about as far from photographs as raw phantoms are"),
    ],
)
def test_generated_images_are_nearer_further_or_about_as_far(
    generated: dict[str, float], verdict: str
) -> None:
    content = changed(set_kid("phantoms", between(0.29, 0.40)))
    set_kid("generated", generated)(content)
    text = said(content)
    assert verdict in text
    assert "by the features `imagenet`" in text
    assert "other photographs stand at 0 (-2 to 2)" in text


def test_without_other_photographs_there_is_no_floor() -> None:
    text = said(changed(lambda content: content["realism"][0]["rows"]["overall"].pop("real")))
    assert "raw phantoms" in text
    assert "stand at" not in text


def test_diversity_is_told_beside_that_of_photographs() -> None:
    assert "vary as 4.0 entirely different images would; as many photographs as 6.0" in said(
        evaluation_content()
    )


@pytest.mark.parametrize(
    ("attack", "control", "found"),
    [
        (between(0.60, 0.70), between(0.48, 0.52), True),
        (between(0.51, 0.55), between(0.40, 0.45), True),
        (between(0.49, 0.55), between(0.40, 0.45), False),
        # As much as phantoms achieve, which know nobody.
        (between(0.60, 0.70), between(0.58, 0.62), False),
        (between(0.60, 0.70), None, True),
        (between(0.45, 0.55), None, False),
    ],
)
def test_members_are_found_where_an_attack_beats_guessing_and_phantoms(
    attack: dict[str, float], control: dict[str, float] | None, found: bool
) -> None:
    content = set_attack(attack, control)
    assert finds_members(content["leakage"][0]["attacks"][0]) is found
    text, page = said(content), page_of(content)
    assert ("Do not release this generator" in text) is found
    assert ("No attack told patients" in text or "is not known" in text) is not found
    assert ("with phantoms, which know nobody" in text) is (not found and control is not None)
    assert ('class="verdict bad"' in page) is found
    assert (">found<" in page, ">not found<" in page) == (found, not found)


def test_patients_who_differ_are_no_proof_that_nothing_leaks() -> None:
    text = said(set_attack(between(0.68, 0.74), between(0.67, 0.75)))
    assert "is not known" in text
    assert "No attack told" not in text


@pytest.mark.parametrize(
    ("auc", "word"),
    [
        (between(0.55, 0.65), "can be told from others"),
        (between(0.48, 0.58), "were not told apart"),
    ],
)
def test_what_all_weights_of_the_model_tell_is_said(auc: dict[str, float], word: str) -> None:
    def weights(content: Content) -> None:
        content["model_attack"]["auc"] = auc

    (sentence,) = (
        s for s in sentences(changed(weights)) if s.startswith("By all weights of the model")
    )
    assert word in sentence


def test_the_strongest_attack_of_all_features_is_told() -> None:
    def two(content: Content) -> None:
        other = deepcopy(content["leakage"][0])
        (one,) = other["attacks"]
        one["attack"] = {**one["attack"], "name": "density-ratio", "auc": estimate(0.515)}
        content["leakage"].append(other)

    content = changed(two)
    strongest = strongest_attack(content)
    assert strongest is not None
    assert strongest["attack"]["name"] == "density-ratio"
    assert "the best, `density-ratio`, has an AUC of 0.52" in said(content)


@pytest.mark.parametrize(
    ("p_values", "control", "found"),
    [
        ((0.4, 0.4), (0.4, 0.4), False),
        ((0.0005, 0.4), (0.4, 0.4), True),
        ((0.4, 0.0005), (0.4, 0.4), True),
        # Phantoms copy nobody, so that is how the two sets of patients differ.
        ((0.0005, 0.4), (0.0005, 0.4), False),
        ((0.0005, 0.4), (0.4, 0.0005), True),
        ((None, None), (None, None), False),
    ],
)
def test_copies_are_told_where_chance_and_phantoms_do_not_explain_them(
    p_values: Sequence[float | None], control: Sequence[float | None], found: bool
) -> None:
    content = set_copying(p_values, control)
    assert copies(content["leakage"][0]) is found
    assert ("they may be copies" in said(content)) is found


def test_remarks_come_last_and_what_was_not_asked_is_not_told() -> None:
    content = evaluation_content(
        realism=[], diversity=None, usefulness=None, leakage=[], model_attack=None,
        remarks=["Nothing was measured."],
    )  # fmt: skip
    assert list(sentences(content)) == ["Nothing was measured."]
    page = page_of(content)
    assert "Nothing was measured." in page
    for heading in ("help to diagnose", "look real", "vary?", "anatomy", "give patients away"):
        assert heading not in page


def test_an_estimate_that_is_a_share_is_shown_within_0_and_1() -> None:
    wide = {"value": 0.99, "low": -0.2, "high": 1.1}
    assert with_interval(wide, share=True) == "0.99 (0.00 to 1.00)"
    assert with_interval(wide) == "0.99 (-0.20 to 1.10)"
    assert with_interval(wide, 1000, 0) == "990 (-200 to 1100)"


def test_what_could_not_be_computed_is_a_dash() -> None:
    assert [with_interval(one) for one in (None, NOTHING)] == ["-", "-"]
    assert not known(None)
    assert not known(NOTHING)
    assert known(estimate(0.0))


def nulled(value: object) -> object:
    """The same content with every number that may be missing missing: those of estimates."""
    if isinstance(value, dict):
        if set(value) == {"value", "low", "high"}:
            return dict(NOTHING)
        missing = {key: None for key in ("p_value", "c_t") if key in value}
        return {key: nulled(content) for key, content in value.items()} | missing
    return [nulled(one) for one in value] if isinstance(value, list) else value


def anatomy() -> Content:
    measure = {"name": "vessel width", "unit": "of the side", "resolution": 0.001}
    one = {"measure": measure, "distance": estimate(0.2), "spread": 1.0,
           "generated_quantiles": [1, 2, 3, 4, 5], "real_quantiles": [None] * 5}  # fmt: skip
    return {"generated": [one], "phantoms": [{**one, "distance": None}], "real": [one]}


def test_nothing_but_nulls_gives_a_page_of_dashes() -> None:
    content = nulled(evaluation_content(anatomy=anatomy()))
    assert isinstance(content, dict)
    page = page_of(content)
    for heading in ("Does it help to diagnose?", "Does it look real?", "Does it vary?",
                    "Is the anatomy right?", "Does it give patients away?"):  # fmt: skip
        assert heading in page
    assert page.count(">-<") > 15
    for word in ("None", "nan", "null"):
        assert word not in re.sub(r"base64,[^\"]*", "", page)
    assert not any(word in said(content) for word in ("None", "nan", "KID", "AUC"))


@pytest.mark.parametrize("missing", ["generated", "phantoms", "real"])
def test_a_row_of_realism_may_be_missing(missing: str) -> None:
    content = changed(lambda content: content["realism"][0]["rows"]["overall"].pop(missing))
    assert "Does it look real?" in page_of(content)
    assert ("raw phantoms are" in said(content)) is (missing == "real")


def test_a_task_that_nobody_could_learn_is_shown_without_figures() -> None:
    content = changed(lambda content: content["usefulness"].update(figures=[]))
    assert "Tested on 300 and 100 patients of each class" in page_of(content)


def test_quartiles_are_shown_and_a_measure_that_no_image_has_is_a_dash() -> None:
    page = page_of(evaluation_content(anatomy=anatomy()))
    assert ">3 (2 to 4)<" in page
    assert ">-<" in page
    assert "vessel width, generated" in page


def poisoned(value: object) -> object:
    """The same content with markup in every text that a file or a user may have brought."""
    from_files = {"study_id", "task", "reason", "name", "version", "caveat", "extractor", "unit",
                  "classifier", "kind", "digest", "study_hash", "real_digest"}  # fmt: skip
    if isinstance(value, dict):
        return {
            key: f"{HOSTILE}{content}"
            if key in from_files and isinstance(content, str)
            else poisoned(content)
            for key, content in value.items()
        }
    return [poisoned(one) for one in value] if isinstance(value, list) else value


def test_what_comes_from_files_is_text_on_the_page() -> None:
    content = poisoned(evaluation_content(anatomy=anatomy()))
    assert isinstance(content, dict)
    content["remarks"], content["not_known"] = [HOSTILE], [HOSTILE]
    content["realism"][0]["rows"][HOSTILE] = content["realism"][0]["rows"]["overall"]
    content["usefulness"]["tasks"].append(
        {**content["usefulness"]["tasks"][0], "name": "rare", "classes": [["normal"], [HOSTILE]]}
    )
    page = evaluation_page(content, {HOSTILE: Image.new("RGB", (8, 8))})
    assert page.count("&lt;img src=x onerror") > 20
    assert HOSTILE not in page
    assert "<img src=x" not in page


def test_a_task_is_called_as_a_clinician_would() -> None:
    assert task_title("rare") == "the rarest condition"
    assert task_title("amd") == "amd"


def level_set(level: int, conditions: Sequence[str], seed: int, prefix: str) -> ImageSet:
    """Images of a grey level of their own, so that any of them is known again."""
    rng = np.random.default_rng(seed)
    images_NSSC = rng.integers(level, level + 20, (len(conditions), 32, 32, 3)).astype(np.uint8)
    patients = tuple(f"{prefix}{number}" for number in range(len(conditions)))
    return ImageSet(images_NSSC, tuple(conditions), patients)


def made() -> Evaluated:
    """An evaluation without figures, of images of four kinds."""
    names = ["normal", "dr2"] * 4
    generated = level_set(0, names, 0, "drawn/")
    phantoms = level_set(60, names, 1, "phantom/")
    real, train = level_set(140, names, 2, "Meier-"), level_set(220, names, 3, "Huber-")
    evaluation = Evaluation(
        Identity("vae", "retina", "5" * 64, "9" * 64, {}), 32, EvaluationSettings(),
        Counts.of(real), "e" * 64, Counts.of(train), "f" * 64, Counts.of(generated), (), 0,
        (), (), None, None, None, (), None, "", (), {"images": 1.0},
    )  # fmt: skip
    return Evaluated(
        evaluation,
        Material(generated, generated, phantoms, real, train),
        (ClosePair(0, 1, 2, 0.5, 0.6),),
    )


def pictures_of(page: str) -> list[NDArray[np.uint8]]:
    found = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    return [np.array(Image.open(BytesIO(base64.b64decode(one))).convert("RGB")) for one in found]


def levels_of(pictures: Sequence[NDArray[np.uint8]]) -> set[int]:
    """Which of the four kinds of images fill more of a picture than letters do."""
    kinds = {}
    for level in (0, 60, 140, 220):
        within = [(picture >= level) & (picture < level + 20) for picture in pictures]
        kinds[level] = max(float(one.all(axis=2).mean()) for one in within)
    return {level for level, share in kinds.items() if share > 0.05}


def test_no_photograph_is_on_the_page_that_leaves_the_site(tmp_path: Path) -> None:
    write_evaluation(tmp_path, made())
    page = (tmp_path / PAGE).read_text()
    pictures = pictures_of(page)
    assert len(pictures) == page.count("<img ") == 2
    assert levels_of(pictures) == {0, 60}
    everything = page + (tmp_path / VALUES).read_text()
    assert "Meier" not in everything
    assert "Huber" not in everything


def test_the_page_that_stays_shows_them_to_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "closest.html"
    write_closest_pairs(path, made())
    pictures = pictures_of(path.read_text())
    assert len(pictures) == 1
    assert levels_of(pictures) == {0, 140, 220}
    assert "does not leave the site" in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


def test_what_is_written_is_what_is_returned(tmp_path: Path) -> None:
    values = write_evaluation(tmp_path, made())
    assert json.loads((tmp_path / VALUES).read_text()) == values
    assert values["format"] == "fundusgen-evaluation-1"
    assert values["real"]["images_of"] == {"dr2": 4, "normal": 4}
