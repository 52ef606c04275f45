"""`fundusgen prior`: what it makes, what it says, and the sentences it ends in."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from fundusgen.cli.main import main
from fundusgen.study import load_study
from fundusgen.training.prior_file import load_prior

CONTENT = {
    "study_id": "t",
    "conditions": ["normal", "amd", "unknown"],
    "image_size": 32,
    "model": {"width": 4, "latent": 4},
    "prior": {"phantoms": 24, "steps": 3, "batch": 8},
    "privacy": {"target_epsilon": 8},
    "federation": {"rounds": 1},
}
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path) -> Cli:
    """Run `fundusgen prior` with arguments; gives its exit status, output and errors."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fundusgen", "prior", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(CONTENT))
    return path


def error_of(result: tuple[int, str, str]) -> str:
    status, _, err = result
    assert status == 1
    assert "Traceback" not in err
    assert err.startswith("error: ")
    return err


def test_it_explains_itself(cli) -> None:
    status, out, err = cli("--help")
    assert (status, err) == (0, "")
    for word in (
        "Usage:",
        "prior [OPTIONS] STUDY",
        "--out",
        "--workers",
        "--cache",
        "--sheet",
        "epsilon",
    ):
        assert word in out


def test_a_prior_is_made_then_found_again(cli, file, tmp_path) -> None:
    out, sheet = tmp_path / "made" / "prior.safetensors", tmp_path / "prior.png"
    status, said, err = cli(file, "--out", out, "--sheet", sheet)
    assert (status, err) == (0, "")
    assert "26 phantoms" in said
    assert "held-out distance" in said
    assert "epsilon 0" in said
    prior = load_prior(out, load_study(file))
    assert prior.digest[:12] in said
    with Image.open(sheet) as picture:
        assert picture.width > 8 * 96

    status, said, _ = cli(file, "--out", tmp_path / "again.safetensors")
    assert status == 0
    assert "was there already" in said
    again = load_prior(tmp_path / "again.safetensors", load_study(file))
    assert again.facts == prior.facts
    assert (tmp_path / "again.safetensors").read_bytes() == out.read_bytes()


def test_the_cache_is_where_it_is_said_to_be(cli, file, tmp_path) -> None:
    cli(file, "--out", tmp_path / "p.safetensors", "--cache", tmp_path / "mine")
    assert [path.suffix for path in (tmp_path / "mine").iterdir()] == [".safetensors"]
    assert not (tmp_path / "cache").exists()


def test_a_study_without_a_prior_is_an_error(cli, file, tmp_path) -> None:
    file.write_text(yaml.safe_dump({**CONTENT, "prior": None}))
    assert "prior:" in error_of(cli(file, "--out", tmp_path / "p.safetensors"))


@pytest.mark.parametrize("study", ["missing", "no yaml", "misspelt"])
def test_a_study_that_cannot_be_read_is_an_error(cli, tmp_path, study: str) -> None:
    path = tmp_path / "s.yaml"
    if study == "no yaml":
        path.write_text("{")
    elif study == "misspelt":
        path.write_text(yaml.safe_dump({**CONTENT, "priro": {}}))
    error_of(cli(path, "--out", tmp_path / "p.safetensors"))


@pytest.mark.parametrize("option", ["--out", "--sheet", "--cache"])
def test_a_place_that_cannot_be_written_is_an_error_before_anything_is_trained(
    cli, file, tmp_path, monkeypatch, option: str
) -> None:
    monkeypatch.setattr("fundusgen.cli.prior.pretrained", lambda *a, **s: pytest.fail("trained"))
    (tmp_path / "file").write_text("")
    places = {"--out": tmp_path / "p.safetensors", option: tmp_path / "file" / "below"}
    error_of(cli(file, *[part for pair in places.items() for part in pair]))


def test_a_folder_as_out_is_an_error(cli, file, tmp_path) -> None:
    assert "is a folder" in error_of(cli(file, "--out", tmp_path))
