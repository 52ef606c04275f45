"""`fundusgen audit mechanism` as a study lead and a privacy officer meet it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from fundusgen.auditing.audit import MechanismAudit, audit_mechanism
from fundusgen.auditing.mechanisms import STANDARD
from fundusgen.cli import audit_mechanism as command
from fundusgen.cli.main import app
from fundusgen.errors import FundusgenError
from fundusgen.privacy.events import merged
from fundusgen.privacy.noise import FastNoise, SecureNoise
from fundusgen.report.mechanism_page import mechanism_page
from fundusgen.study import load_study
from fundusgen.training.mechanisms import planned_events

VOTES = STANDARD[2]
STUDY = {
    "study_id": "retina",
    "conditions": ["normal", "amd"],
    "image_size": 32,
    "model": {"width": 4, "latent": 4},
    "prior": {"phantoms": 16, "steps": 1},
    "stages": {
        "votes": {"rounds": 2, "candidates": 50},
        "dpsgd": {"steps_per_round": 2, "sample_rate": 0.5, "max_grad_norm": 0.7},
    },
    "privacy": {"target_epsilon": 8, "target_delta": 1e-4, "noise": "fast"},
    "federation": {"rounds": 3},
}


def run(*words: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["audit", "mechanism", *map(str, words)])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Votes alone: what is tested here is the command."""
    monkeypatch.setattr(command, "STANDARD", (VOTES,))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    return path


def test_sound_code_ends_in_success_with_its_bounds(tmp_path: Path) -> None:
    result = run("--canaries", 1000, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "the accountant claims epsilon 8.04 at delta 1e-05" in result.output
    for word in ("Clopper-Pearson", "Nasr", "Andrew", "Steinke", "Mahloujifar", "holds"):
        assert word in result.output
    assert "NOT SO" not in result.output
    made = json.loads((tmp_path / "out" / "mechanism.json").read_text())
    assert (made["holds"], made["sufficient"], made["noise"]) == (True, True, "secure")
    (votes,) = made["mechanisms"]
    assert votes["canaries"] == 1000
    assert 400 < votes["included"] < 600
    assert votes["event"] == VOTES.event.to_json()
    by_method = {bound["method"]: bound["epsilon"] for bound in votes["bounds"]}
    assert 0.6 * votes["claim"] < by_method["Gaussian, scores"]
    assert 0 < by_method["one run"] < by_method["one run, f-DP"]
    assert len(votes["checks"]) == 7


def test_a_fault_is_named_and_ends_in_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SecureNoise.gaussian
    monkeypatch.setattr(
        SecureNoise, "gaussian", lambda self, shape, deviation: whole(self, shape, deviation / 2)
    )
    result = run("--canaries", 600, "--out", tmp_path)
    assert result.exit_code == 2, result.output
    assert "NOT SO" in result.output
    assert "ABOVE THE CLAIM" in result.output
    assert "noise-size: not so" in result.output
    assert re.search(r"claim: epsilon is at least \d+\.\d\d by Gaussian", result.output)
    made = json.loads((tmp_path / "mechanism.json").read_text())
    assert not made["holds"]
    assert any(bound["exceeds"] for bound in made["mechanisms"][0]["bounds"])
    page = (tmp_path / "mechanism.html").read_text()
    assert "Not everything is as claimed" in page
    assert "not so: noise has a standard deviation" in page


def test_an_audit_that_saw_little_ends_in_two(monkeypatch: pytest.MonkeyPatch) -> None:
    def weak(*arguments: Any, **more: Any) -> MechanismAudit:
        found = audit_mechanism(*arguments, **more)
        return replace(found, bounds=tuple(replace(b, epsilon=1.0) for b in found.bounds))

    monkeypatch.setattr(command, "audit_mechanism", weak)
    result = run("--canaries", 200)
    assert result.exit_code == 2
    assert "the best Gaussian bound is 12% of the claim" in result.output
    assert "Use more --canaries" in result.output
    assert "NOT SO" not in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--canaries", 19), "19 canaries in 1 runs"),
        (("--canaries", 1000, "--runs", 51), "51 runs"),
        (("--runs", 0), "0 runs"),
        (("--seed", -1), "seed"),
        (("absent.yaml",), "absent.yaml"),
    ],
)
def test_what_cannot_be_run_ends_in_a_sentence(words: tuple[object, ...], message: str) -> None:
    result = run(*words)
    assert isinstance(result.exception, FundusgenError)
    assert message in str(result.exception)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("--canaries", 40, "--out", tmp_path / "file")
    assert isinstance(result.exception, FundusgenError)
    assert "cannot be written" in str(result.exception)


def test_a_seed_repeats_the_coins(tmp_path: Path) -> None:
    made = []
    for name in ("one", "other"):
        run("--canaries", 400, "--seed", 3, "--out", tmp_path / name)
        made.append(json.loads((tmp_path / name / "mechanism.json").read_text())["mechanisms"][0])
    assert made[0]["included"] == made[1]["included"]
    assert made[0]["bounds"] != made[1]["bounds"]


def test_a_study_is_audited_with_its_own_settings(study: Path) -> None:
    loaded = load_study(study)
    audited = command.mechanisms_of(loaded)
    assert [one.stage for one in audited] == ["votes", "dpsgd"]
    assert merged(one.planned for one in audited) == merged(planned_events(loaded))
    assert audited[0].statement_share == loaded.votes.appearance_share > 0
    assert audited[1].max_grad_norm == 0.7
    assert audited[1].rounds == 3


def test_the_stages_of_a_study_are_shown(study: Path, tmp_path: Path) -> None:
    result = run(study, "--canaries", 300, "--runs", 2, "--out", tmp_path / "out")
    assert result.exit_code in (0, 2), result.exception
    assert "retina, votes" in result.output
    assert "at delta 0.0001" in result.output
    made = json.loads((tmp_path / "out" / "mechanism.json").read_text())
    assert made["noise"] == "fast"
    assert [one["rounds"] for one in made["mechanisms"]] == [2, 3]
    assert made["holds"], made
    page = (tmp_path / "out" / "mechanism.html").read_text()
    assert "retina, dpsgd" in page


def test_the_page_needs_nothing_else() -> None:
    made = audit_mechanism(VOTES, FastNoise(), np.random.default_rng(0), canaries=60)
    page = mechanism_page([made], "fast")
    assert "<script" not in page
    assert "http" not in page
    assert page.count("<tr>") == 2 + len(made.bounds) + len(made.checks)
