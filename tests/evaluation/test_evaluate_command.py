"""`fundusgen evaluate` as its users meet it: folders of phantoms stand in for photographs."""

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image
from safetensors.numpy import load_file, save

from fundusgen.evaluation.material import EvaluationSettings
from fundusgen.models.factory import build_model
from fundusgen.models.generator import (
    MODEL_FILE,
    TRAINING_FILE,
    WEIGHTS_FILE,
    save_generator,
)
from fundusgen.phantom.site import write_site_folder
from fundusgen.study import Study

SIZE_PX = 32
STUDY = Study.model_validate(
    {
        "study_id": "retina",
        "conditions": ["normal", "dr2", "dr3", "amd"],
        "image_size": SIZE_PX,
        "model": {"width": 4, "latent": 5},
        "privacy": {"target_epsilon": 8},
        "federation": {"rounds": 1},
    }
)
MIX = {"normal": 2.0, "dr2": 1.0, "dr3": 1.0}
QUICK = ("--images", "100", "--bootstrap", "50", "--seeds", "1", "--workers", "1")
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the tests need: drawing and looking at thousands takes minutes."""
    few = partial(EvaluationSettings, per_condition=30, phantoms=200, network_steps=20)
    monkeypatch.setattr("fundusgen.cli.evaluation.EvaluationSettings", few)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test and training patients of one camera, and a folder of drawn images of another."""
    root = tmp_path_factory.mktemp("folders")
    for seed, (name, patients, style) in enumerate(
        (("test", 60, "amber"), ("train", 60, "amber"), ("drawn", 60, "dusk"))
    ):
        write_site_folder(
            root / name, patients=patients, seed=100 + seed, size_px=SIZE_PX, camera_style=style,
            conditions_mix=MIX,
        )  # fmt: skip
        # Each folder numbers its patients for itself.
        rename_patients(root / name, f"{name}-")
    return root


def rename_patients(folder: Path, prefix: str) -> None:
    path = folder / "manifest.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["patient_id"] = prefix + row["patient_id"]
    write_rows(path, rows)


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose generator draws noise."""
    folder: Path = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    weights = {
        name: (value.numpy() + 0.1 * rng.standard_normal(value.shape)).astype(np.float32)
        for name, value in build_model(STUDY).state_dict().items()
    }
    save_generator(folder / "generator", STUDY, weights, {"rounds": 1})
    return folder


@pytest.mark.slow
def test_all_questions_are_answered_of_a_network(
    cli: Cli, folders: Path, run_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    status, said, err = cli(
        "evaluate", run_folder, "--real", folders / "test", "--train", folders / "train",
        "--out", out, *QUICK,
    )  # fmt: skip
    assert status == 0, err
    assert "further from photographs than raw phantoms" in " ".join(said.split())
    values = json.loads((out / "evaluation.json").read_text())
    assert values["subject"]["study_id"] == "retina"
    assert min(values["real"]["patients"], values["train"]["patients"]) > 50
    assert {found["extractor"] for found in values["realism"]} == {"imagenet", "phantom", "colour"}
    rows = values["realism"][0]["rows"]["overall"]
    # Noise is far from all photographs, and these are like each other.
    assert rows["generated"]["kid"]["low"] > rows["real"]["kid"]["high"]
    assert rows["real"]["coverage"]["value"] > 0.8
    assert rows["generated"]["coverage"]["value"] < 0.2
    regimes = {figure["regime"] for figure in values["usefulness"]["figures"]}
    assert {"real", "synthetic", "real_and_synthetic"} <= regimes
    assert len(values["leakage"]) == 3
    assert values["model_attack"]["name"] == "bound"
    assert values["anatomy"]["generated"]
    page = (out / "evaluation.html").read_text()
    for heading in ("Does it help to diagnose?", "Does it look real?", "Does it vary?",
                    "Is the anatomy right?", "Does it give patients away?"):  # fmt: skip
        assert heading in page
    assert str(tmp_path) not in page
    assert str(folders) not in page
    # Photographs stay in a folder that only its owner may read.
    site_only = out / "site-only"
    assert site_only.stat().st_mode & 0o077 == 0
    assert "does not leave the site" in (site_only / "closest-pairs.html").read_text()
    everything = page + (out / "evaluation.json").read_text()
    assert not [patient for patient in ("test-", "train-") if f"{patient}0" in everything]


def test_where_only_what_draws_is_there_the_rest_is_not_attacked_and_that_is_said(
    cli: Cli, folders: Path, run_folder: Path, tmp_path: Path
) -> None:
    released = tmp_path / "released"
    released.mkdir()
    for name in (WEIGHTS_FILE, MODEL_FILE):
        shutil.copy(run_folder / "generator" / name, released)
    asked = ("--real", folders / "test", "--train", folders / "train", "--only", "leakage", *QUICK)
    found = {}
    for name, path in (("whole", run_folder), ("released", released)):
        status, said, err = cli("evaluate", path, *asked, "--out", tmp_path / name)
        assert status == 0, err
        assert ("only what draws is there" in " ".join(said.split())) == (name == "released")
        found[name] = json.loads((tmp_path / name / "evaluation.json").read_text())
    assert found["released"]["model_attack"] is None
    assert found["released"]["attacked_digest"] == ""
    rest = save(load_file(run_folder / "generator" / TRAINING_FILE))
    assert found["whole"]["attacked_digest"] == hashlib.sha256(rest).hexdigest()
    assert found["whole"]["model_attack"]["name"] == "bound"
    # Of the images, both say the same.
    assert found["released"]["leakage"] == found["whole"]["leakage"]
    assert found["released"]["subject"]["digest"] == found["whole"]["subject"]["digest"]


def test_the_same_seed_gives_the_same_figures(cli: Cli, folders: Path, tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        status, _, err = cli(
            "evaluate", folders / "drawn", "--real", folders / "test", "--out", tmp_path / name,
            "--size-px", "32", "--only", "realism", *QUICK,
        )  # fmt: skip
        assert status == 0, err
        found.append(json.loads((tmp_path / name / "evaluation.json").read_text()))
    for values in found:
        del values["made_at"], values["seconds"]
    assert found[0] == found[1]
    assert found[0]["subject"]["kind"] == "images"
    assert found[0]["usefulness"] is None
    assert not (tmp_path / "one" / "site-only" / "closest-pairs.html").exists()


def sentence(result: tuple[int, str, str]) -> str:
    status, _, err = result
    assert status == 1, err
    assert "Traceback" not in err
    return " ".join(err[err.index("error: ") :].split())


def test_a_test_folder_that_shares_photographs_with_training_is_refused(
    cli: Cli, folders: Path, tmp_path: Path
) -> None:
    shutil.copytree(folders / "train", tmp_path / "train")
    with (folders / "test" / "manifest.csv").open(newline="") as file:
        stolen = list(csv.DictReader(file))[:4]
    owners = {row["patient_id"] for row in stolen}
    for row in stolen:
        (tmp_path / "train" / f"again-{Path(row['file']).name}").write_bytes(
            (folders / "test" / row["file"]).read_bytes()
        )
        row["file"], row["patient_id"] = f"again-{Path(row['file']).name}", "somebody"
    with (tmp_path / "train" / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    write_rows(tmp_path / "train" / "manifest.csv", [*rows, *stolen])
    arguments = (
        "evaluate", folders / "drawn", "--real", folders / "test", "--train", tmp_path / "train",
        "--out", tmp_path / "out", "--size-px", "32", "--separate-ids", "--only", "diversity",
        *QUICK,
    )  # fmt: skip
    result = cli(*arguments)
    said = sentence(result)
    assert "4 photographs are in the test folder and in the training folder" in said
    assert cli(*arguments, "--leave-out-shared")[0] == 0
    kept = json.loads((tmp_path / "out" / "evaluation.json").read_text())["real"]["patients"]
    with (folders / "test" / "manifest.csv").open(newline="") as file:
        everybody = {row["patient_id"] for row in csv.DictReader(file)}
    assert len(everybody) - kept >= len(owners)


def test_equal_patient_ids_are_one_person_unless_it_is_said_otherwise(
    cli: Cli, folders: Path, tmp_path: Path
) -> None:
    shutil.copytree(folders / "train", tmp_path / "train")
    with (tmp_path / "train" / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["patient_id"] = row["patient_id"].replace("train-", "test-")
    write_rows(tmp_path / "train" / "manifest.csv", rows)
    arguments = (
        "evaluate", folders / "drawn", "--real", folders / "test", "--train", tmp_path / "train",
        "--out", tmp_path / "out", "--size-px", "32", "--only", "diversity", *QUICK,
    )  # fmt: skip
    said = sentence(cli(*arguments))
    assert "60 patient ids are in the test folder and in the training folder" in said
    assert "--separate-ids" in said
    assert cli(*arguments, "--separate-ids")[0] == 0


def test_twelve_photographs_are_too_few(cli: Cli, folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "test", tmp_path / "few")
    with (tmp_path / "few" / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[:12]
    write_rows(tmp_path / "few" / "manifest.csv", rows)
    result = cli(
        "evaluate",
        folders / "drawn",
        "--real",
        tmp_path / "few",
        "--out",
        tmp_path / "out",
        "--size-px",
        "32",
        *QUICK,
    )
    said = sentence(result)
    assert "12 real images of" in said
    assert "at least 30 patients" in said


def test_pictures_that_are_no_photographs_of_eyes_are_refused(
    cli: Cli, folders: Path, tmp_path: Path
) -> None:
    (tmp_path / "cats").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    cat_HWC = skimage.data.chelsea()
    for number in range(40):
        top, left = rng.integers(0, 100, size=2)
        Image.fromarray(cat_HWC[top : top + 200, left : left + 300]).save(
            tmp_path / "cats" / f"{number}.png"
        )
        rows.append({"file": f"{number}.png", "patient_id": f"{number}", "diagnosis": "normal"})
    write_rows(tmp_path / "cats" / "manifest.csv", rows)
    result = cli(
        "evaluate",
        folders / "drawn",
        "--real",
        tmp_path / "cats",
        "--out",
        tmp_path / "out",
        "--size-px",
        "32",
        *QUICK,
    )
    said = sentence(result)
    assert "do not look like fundus photographs" in said


def test_a_folder_without_a_manifest_is_named(cli: Cli, folders: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    arguments = ("--real", tmp_path / "empty", "--out", tmp_path / "out")
    assert "no manifest.csv" in sentence(cli("evaluate", folders / "drawn", *arguments))
    said = sentence(
        cli("evaluate", tmp_path / "empty", "--real", folders / "test", "--out", tmp_path / "out")
    )
    assert "nothing to evaluate" in said


def test_photographs_of_conditions_that_the_generator_does_not_know_are_no_test(
    cli: Cli, folders: Path, run_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folders / "test", tmp_path / "other")
    with (tmp_path / "other" / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["diagnosis"], row["dr_grade"] = "glaucoma", ""
    write_rows(tmp_path / "other" / "manifest.csv", rows)
    said = sentence(
        cli("evaluate", run_folder, "--real", tmp_path / "other", "--out", tmp_path / "out")
    )
    assert "None of the real images shows a condition that the generator knows" in said
    assert "normal, dr2, dr3, amd" in said
