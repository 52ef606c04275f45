"""The command line: what it makes, and the sentences it ends in when something is wrong."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fundusgen.cli.generate import labels_of
from fundusgen.cli.main import main
from fundusgen.data.conditions import condition_of
from fundusgen.data.manifest import ManifestSettings, read_manifest
from fundusgen.models.factory import build_model
from fundusgen.models.generator import save_generator
from fundusgen.phantom.variation import Lineage
from fundusgen.site import SiteFolder
from fundusgen.study import Study
from fundusgen.training.evolution import Generation, Parents
from fundusgen.training.population import VotedPopulation, save_population

STUDY = Study.model_validate(
    {
        "study_id": "t",
        "conditions": ["normal", "dr2", "amd"],
        "image_size": 32,
        "model": {"width": 4, "latent": 5},
        "privacy": {"target_epsilon": 8},
        "federation": {"rounds": 1},
    }
)
Cli = Callable[..., tuple[int, str, str]]


def error_of(result: tuple[int, str, str]) -> str:
    status, _, err = result
    assert status == 1
    assert "Traceback" not in err
    assert err.startswith("error: ")
    return err


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A folder with a generator as a finished run leaves it; its weights draw noise."""
    folder: Path = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    weights = {
        name: (value.numpy() + 0.1 * rng.standard_normal(value.shape)).astype(np.float32)
        for name, value in build_model(STUDY).state_dict().items()
    }
    save_generator(folder / "generator", STUDY, weights, {"rounds": 1})
    return folder


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """A site folder of phantoms, made by the command."""
    folder: Path = tmp_path_factory.mktemp("phantoms") / "site"
    options = ["--patients", "6", "--seed", "3", "--size-px", "64"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fundusgen", "phantom", "--out", str(folder), *options])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "", "generate", "simulate", "phantom", "phantom sheet", "site", "site init", "site check",
        "site status", "evaluate", "release", "verify", "audit", "audit ledger", "audit mechanism",
    ],
)  # fmt: skip
def test_every_command_explains_itself(cli, command: str) -> None:
    status, out, err = cli(*command.split(), "--help")
    assert (status, err) == (0, "")
    assert f"Usage: fundusgen {command}".strip() in out
    known = {"": "generate", "generate": "--condition", "simulate": "--out", "site": "init"}
    assert known.get(command, "--help") in out


def test_the_version_is_told(cli) -> None:
    status, out, _ = cli("--version")
    assert status == 0
    assert out.startswith("fundusgen ")


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_generate_gives_the_same_files_for_a_seed_and_others_for_another(
    cli, run_folder, tmp_path
) -> None:
    options = ["--condition", "amd", "--count", "37"]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert (
            cli("generate", run_folder, *options, "--seed", seed, "--out", tmp_path / name)[0] == 0
        )
    one = files_of(tmp_path / "a")
    assert len(one) == 37 + 1
    assert files_of(tmp_path / "b") == one
    first = {
        files_of(tmp_path / name)[f"images/amd-{seed}-000000.png"]
        for name, seed in (("a", 1), ("c", 2))
    }
    assert len(first) == 2


def test_generate_goes_on_with_a_larger_count_where_a_smaller_one_ended(
    cli, run_folder, tmp_path
) -> None:
    for count in (20, 50):
        cli(
            "generate",
            run_folder,
            "--condition",
            "dr2",
            "--count",
            count,
            "--out",
            tmp_path / str(count),
        )
    few, many = files_of(tmp_path / "20"), files_of(tmp_path / "50")
    del few["manifest.csv"]
    assert few.items() <= many.items()


def test_generated_images_have_a_manifest_that_can_be_trained_on(cli, run_folder, tmp_path) -> None:
    out = tmp_path / "out"
    status, said, _ = cli(
        "generate", run_folder / "generator", "--condition", "dr2", "--count", 40, "--out", out
    )
    assert status == 0
    assert "40 images of dr2" in said
    reading = read_manifest(ManifestSettings(out / "manifest.csv", out))
    assert reading.problems == ()
    assert len(reading.rows) == 40
    assert {condition_of(row) for row in reading.rows} == {"dr2"}
    assert {row.eye for row in reading.rows} == {"L", "R"}
    # Nobody is behind an image, so no two of them are of one patient.
    assert len({row.patient_id for row in reading.rows}) == 40
    assert [row.file for row in reading.rows] == sorted(row.file for row in reading.rows)
    with Image.open(reading.rows[0].path) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (32, 32))


@pytest.fixture(scope="module")
def voted_folder(run_folder) -> Path:
    """The run's folder with the phantoms that won its votes, two of each condition."""
    lineages = tuple(
        Lineage(5, number, condition, "amber")
        for number, condition in enumerate([*STUDY.conditions] * 2)
    )
    generation = Generation(lineages, np.arange(6, dtype=np.int64) % 3)
    everyone = Parents(generation, np.full(6, 0.5))
    population = VotedPopulation(STUDY.conditions, STUDY.image_size, 0.2, everyone)
    save_population(run_folder / "generator", population)
    return run_folder


def test_phantoms_that_won_are_generated_at_any_size_with_a_manifest(
    cli, voted_folder, tmp_path
) -> None:
    for name, count, size in (("few", 3, 64), ("many", 9, 64), ("large", 1, 96)):
        status, said, _ = cli(
            "generate", voted_folder, "--phantoms", "--condition", "dr2", "--count", count,
            "--size-px", size, "--out", tmp_path / name,
        )  # fmt: skip
        assert status == 0
        assert f"{count} images of dr2" in said
    few, many = files_of(tmp_path / "few"), files_of(tmp_path / "many")
    del few["manifest.csv"]
    assert few.items() <= many.items()
    reading = read_manifest(ManifestSettings(tmp_path / "many/manifest.csv", tmp_path / "many"))
    assert reading.problems == ()
    assert {condition_of(row) for row in reading.rows} == {"dr2"}
    with Image.open(tmp_path / "large/images/dr2-0-000000.png") as image:
        assert image.size == (96, 96)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--size-px", "64"], "--phantoms"),
        (["--phantoms", "--size-px", "4"], "16 to 2048"),
    ],
)
def test_a_size_that_cannot_be_drawn_is_said_before_anything_is_written(
    cli, voted_folder, tmp_path, options, expected
) -> None:
    out = tmp_path / "out"
    said = error_of(cli("generate", voted_folder, "--condition", "amd", *options, "--out", out))
    assert expected in said
    assert not out.exists()


def test_a_run_without_votes_has_no_phantoms_to_generate(cli, tmp_path) -> None:
    said = error_of(
        cli("generate", tmp_path, "--phantoms", "--condition", "amd", "--out", tmp_path / "out")
    )
    assert "study with votes" in said


@pytest.mark.parametrize("condition", [str(c) for c in ("normal", "dr1", "dr4", "amd", "other")])
def test_the_labels_of_a_generated_image_give_its_condition_back(condition, tmp_path) -> None:
    (tmp_path / "a.png").touch()
    row = {"file": "a.png", "patient_id": "1", **labels_of(condition)}
    text = ",".join(row) + "\n" + ",".join("" if v is None else str(v) for v in row.values())
    (tmp_path / "manifest.csv").write_text(text + "\n")
    reading = read_manifest(ManifestSettings(tmp_path / "manifest.csv", tmp_path))
    assert condition_of(reading.rows[0]) == condition


def test_generate_names_the_conditions_it_knows(cli, run_folder, tmp_path) -> None:
    error = error_of(cli("generate", run_folder, "--condition", "dr3", "--out", tmp_path / "out"))
    assert "normal, dr2, amd" in error
    assert not (tmp_path / "out").exists()


def test_generate_leaves_a_folder_that_is_not_empty_alone(cli, run_folder, tmp_path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    error = error_of(cli("generate", run_folder, "--condition", "amd", "--out", tmp_path))
    assert "not empty" in error
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_generate_from_what_is_no_run_says_what_it_wants(cli, tmp_path, folder) -> None:
    (tmp_path / "empty").mkdir()
    error = error_of(
        cli("generate", tmp_path / folder, "--condition", "amd", "--out", tmp_path / "o")
    )
    assert "Give the folder of a finished run" in error


def test_generate_that_cannot_write_ends_in_a_sentence(cli, run_folder, tmp_path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    assert "cannot be written" in error_of(
        cli("generate", run_folder, "--condition", "amd", "--out", out)
    )


def test_phantom_writes_a_site_that_can_be_read(phantoms) -> None:
    reading = read_manifest(ManifestSettings(phantoms / "manifest.csv", phantoms))
    assert reading.problems == ()
    assert len({row.patient_id for row in reading.rows}) == 6
    assert len(reading.rows) > 6


def test_phantom_refuses_a_camera_and_a_condition_it_does_not_know(cli, tmp_path) -> None:
    for option in (["--camera", "polaroid"], ["--condition", "dr9"], ["--condition", "dr1=much"]):
        error_of(cli("phantom", "--out", tmp_path / "out", *option))


def test_phantom_without_a_folder_says_how_to_name_one(cli) -> None:
    assert "--out DIR" in error_of(cli("phantom"))


def init(cli: Cli, folder: Path, manifest: Path, *options: object) -> tuple[int, str, str]:
    return cli(
        "site", "init", folder, "--name", "north", "--manifest", manifest,
        "--declared-patients", 10, *options,
    )  # fmt: skip


def test_a_site_is_made_checked_and_has_spent_nothing(cli, phantoms, tmp_path) -> None:
    site = tmp_path / "north"
    status, said, _ = init(cli, site, phantoms / "manifest.csv", "--max-epsilon", 3)
    assert status == 0
    assert "node.pub" in said
    assert SiteFolder(site).settings().name == "north"
    assert SiteFolder(site).policy().max_epsilon == 3
    assert (site / "keys").stat().st_mode & 0o077 == 0
    status, said, _ = cli("site", "check", site, "--strict", "--image-size", 32)
    assert status == 0
    assert "of 6 patients can be used, 0 rows are left out" in " ".join(said.split())
    status, said, _ = cli("site", "status", site)
    assert (status, said) == (0, "north has spent nothing of epsilon 3\n")


def test_check_counts_broken_files_and_strict_stops_at_them(cli, phantoms, tmp_path) -> None:
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    for path in (phantoms / "images").iterdir():
        (data / "images" / path.name).write_bytes(path.read_bytes())
    (data / "manifest.csv").write_bytes((phantoms / "manifest.csv").read_bytes())
    broken = sorted((data / "images").iterdir())[:3]
    broken[0].write_bytes(b"")
    broken[1].write_bytes(broken[1].read_bytes()[:100])
    broken[2].unlink()
    site = tmp_path / "site"
    init(cli, site, data / "manifest.csv")
    status, said, _ = cli("site", "check", site, "--image-size", 32)
    assert status == 0
    assert "3 rows are left out" in " ".join(said.split())
    assert all(path.name in said for path in broken)
    error = error_of(cli("site", "check", site, "--strict", "--image-size", 32))
    assert broken[2].name in error


def test_a_site_folder_is_not_made_over_another(cli, phantoms, tmp_path) -> None:
    (tmp_path / "mine.txt").touch()
    assert "not empty" in error_of(init(cli, tmp_path, phantoms / "manifest.csv"))


@pytest.mark.parametrize("options", [["--delta", 2], ["--max-epsilon", "nan"]])
def test_a_site_with_an_impossible_policy_is_not_made(cli, phantoms, tmp_path, options) -> None:
    error_of(init(cli, tmp_path / "site", phantoms / "manifest.csv", *options))
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("command", ["check", "status"])
def test_a_folder_that_is_no_site_is_told(cli, tmp_path, command) -> None:
    error_of(cli("site", command, tmp_path))
