"""The report of a run: what it shows of pictures and of a generator that was watched."""

import json
from pathlib import Path

import numpy as np
import pytest

from fundusgen.report.page import write_report
from fundusgen.report.pictures import contact_sheet, save_png
from fundusgen.run_folder import RunFolder
from fundusgen.study import Study

SITE = {
    "site": "north", "state": "accepted", "epsilon": 1.5, "delta": 1e-5, "noise": "secure",
    "declared_patients": 100, "update_norm": 1.0, "receipt": 1,
}  # fmt: skip


def study(kind: str) -> Study:
    return Study.model_validate(
        {
            "study_id": "t",
            "conditions": ["normal", "amd"],
            "model": {"kind": kind},
            "privacy": {"target_epsilon": 8},
            "federation": {"rounds": 3},
            "evaluation": {"samples_per_condition": 2},
        }
    )


def entry(number: int, **more: object) -> dict[str, object]:
    return {"round": number, "stage": "dpsgd", "public_loss": None, "seconds": 1.0,
            "sites": [SITE], **more}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def page(run: RunFolder, chosen: Study, *entries: dict[str, object]) -> str:
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in entries))
    write_report(run, chosen)
    return run.report.read_text()


def watched(collapsed: bool) -> dict[str, object]:
    return {"steps": 3, "accuracy": 0.625, "diversity": 12.34, "floor": 20.0,
            "collapsed": collapsed, "collapsed_conditions": ["amd"] * collapsed}  # fmt: skip


def test_a_round_of_a_gan_says_what_its_generator_did(run) -> None:
    text = page(run, study("gan"), entry(1, generator=watched(False)))
    assert "<td>3</td><td>62%</td><td>12.3</td>" in text
    assert "trained a GAN" in text
    assert "collapsed" not in text


def test_a_vae_has_no_columns_of_a_generator(run) -> None:
    text = page(run, study("vae"), entry(1, public_loss=0.25))
    assert "known for drawn" not in text
    assert "<td>0.250</td>" in text


def test_a_collapse_is_told_with_the_round_that_was_kept(run) -> None:
    text = page(
        run, study("gan"),
        entry(1, generator=watched(False)),
        entry(2, generator=watched(True)),
        entry(3, generator={**watched(True), "diversity": None}),
    )  # fmt: skip
    assert "The generator collapsed" in text
    assert "that of round 1" in text
    assert "hardly differed in amd (" in text
    assert "not finite" in text


def test_a_collapse_that_was_overcome_is_not_told(run) -> None:
    text = page(
        run, study("gan"), entry(1, generator=watched(True)), entry(2, generator=watched(False))
    )
    assert "The generator collapsed" not in text


def test_the_pictures_of_several_rounds_become_a_film(run) -> None:
    run.samples.mkdir()
    for number in (1, 2, 3):
        images = np.full((2, 32, 32, 3), 50 * number, np.uint8)
        sheet = contact_sheet({"normal": images, "amd": images})
        save_png(sheet, run.samples / f"round-{number:04d}.png")
    text = page(run, study("vae"), entry(1))
    assert "How the pictures came about" in text
    assert run.film.is_file()


def test_one_picture_is_no_film(run) -> None:
    run.samples.mkdir()
    images = np.zeros((2, 32, 32, 3), np.uint8)
    save_png(contact_sheet({"normal": images, "amd": images}), run.samples / "round-0001.png")
    assert "came about" not in page(run, study("vae"), entry(1))
    assert not run.film.exists()


def test_a_picture_says_whether_phantoms_or_a_model_drew_it(run) -> None:
    run.samples.mkdir()
    images = np.zeros((2, 32, 32, 3), np.uint8)
    sheet = contact_sheet({"normal": images, "amd": images})
    for path in (run.samples / "round-0001.png", run.refitted):
        save_png(sheet, path)
    model, phantoms = "What the model draws", "Phantoms like those that won"
    voted = {"stage": "votes", "elected": 3, "undecided": []}
    text = page(run, study("vae"), entry(1, **voted))
    assert text.index(phantoms) < text.index(f"{model} after learning")
    # Once rounds of DP-SGD have begun, the model of after the votes is history.
    save_png(sheet, run.samples / "round-0002.png")
    text = page(run, study("vae"), entry(1, **voted), entry(2, stage="dpsgd"))
    assert f"{model} after round 2." in text
    assert phantoms not in text
