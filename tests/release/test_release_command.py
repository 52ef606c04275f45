"""`fundusgen release` and `verify`: what leaves, what does not, and what others can check."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from finished_run import evaluation_values_of, finished_run, write_evidence

from fundusgen.cli.main import main
from fundusgen.release.bundle import CHECKSUMS, PUBLIC_KEY, SIGNATURE
from fundusgen.run_folder import RunFolder

Cli = Callable[..., tuple[int, str, str]]
REASON = "For a closed course; the test set is too small to measure leakage."


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fundusgen", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = finished_run(tmp_path / "run")
    write_evidence(made)
    return made


@pytest.fixture
def bundle(run: RunFolder, tmp_path: Path, cli: Cli) -> Path:
    status, out, err = cli("release", run.path, "--out", tmp_path / "bundle")
    assert (status, err) == (0, ""), out
    return tmp_path / "bundle"


def key_of(run: RunFolder) -> Path:
    return run.path / "keys" / PUBLIC_KEY


def test_a_bundle_has_all_that_a_user_needs(bundle: Path, run: RunFolder) -> None:
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert files == {
        "generator.safetensors", "model.json", "README.md", "card.html", "evaluation.json",
        "evaluation.html", "gate.json", "mechanism.json", "study.yaml", "known-sites/a.pub",
        "known-sites/b.pub", "receipts/a/000001.json", "receipts/a/000002.json",
        "receipts/b/000001.json", "receipts/b/000002.json", CHECKSUMS, SIGNATURE, PUBLIC_KEY,
    }  # fmt: skip
    gate = json.loads((bundle / "gate.json").read_text())
    assert gate["passed"] is True
    assert gate["override"] is None
    card = (bundle / "README.md").read_text()
    for said in ("AUC of 0.70", "| a | 300 | 2 |", "FAILED", "Not for: diagnosis"):
        assert (said in card) == (said != "FAILED")
    assert "data:image/png;base64" in (bundle / "card.html").read_text()


def test_a_bundle_draws(bundle: Path, tmp_path: Path, cli: Cli) -> None:
    options = ["--condition", "amd", "--count", "3", "--out", tmp_path / "images"]
    assert cli("generate", bundle, *options)[0] == 0
    assert len(list((tmp_path / "images" / "images").iterdir())) == 3


def test_a_whole_bundle_is_verified(bundle: Path, run: RunFolder, cli: Cli) -> None:
    status, out, _ = cli("verify", bundle, "--key", key_of(run))
    assert status == 0
    assert "whole" in out


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_bundle_can_be_verified_without_us(bundle: Path, run: RunFolder) -> None:
    sums = [
        sys.executable,
        "-c",
        "import hashlib, sys, pathlib\n"
        "for line in pathlib.Path('SHA256SUMS').read_text().splitlines():\n"
        "    digest, name = line.split('  ')\n"
        "    assert hashlib.sha256(pathlib.Path(name).read_bytes()).hexdigest() == digest",
    ]
    subprocess.run(sums, cwd=bundle, check=True)  # fmt: skip
    subprocess.run(
        ["openssl", "dgst", "-sha384", "-verify", key_of(run), "-signature", SIGNATURE, CHECKSUMS],
        cwd=bundle, check=True, capture_output=True,
    )  # fmt: skip


def spoil_file(bundle: Path) -> str:
    (bundle / "model.json").write_text("{}")
    return "model.json was changed"


def remove_file(bundle: Path) -> str:
    (bundle / "receipts" / "a" / "000001.json").unlink()
    return "receipts/a/000001.json is missing"


def add_file(bundle: Path) -> str:
    (bundle / "notes.txt").write_text("trust me")
    return "notes.txt was added"


def rewrite_sums(bundle: Path) -> str:
    sums = bundle / CHECKSUMS
    sums.write_text("".join(sums.read_text().splitlines(keepends=True)[1:]))
    return "not signed by this key"


def link_file(bundle: Path) -> str:
    path = bundle / "gate.json"
    path.rename(bundle.parent / "gate.json")
    path.symlink_to(bundle.parent / "gate.json")
    return "gate.json is a link"


@pytest.mark.parametrize("spoil", [spoil_file, remove_file, add_file, rewrite_sums, link_file])
def test_a_bundle_that_was_tampered_with_is_refused(
    bundle: Path, run: RunFolder, cli: Cli, spoil: Callable[[Path], str]
) -> None:
    said = spoil(bundle)
    status, out, _ = cli("verify", bundle, "--key", key_of(run))
    assert status == 2
    assert said in out


def test_a_bundle_of_somebody_else_is_refused(
    bundle: Path, run: RunFolder, tmp_path: Path, cli: Cli
) -> None:
    assert cli("release", run.path, "--out", tmp_path / "b", "--keys", tmp_path / "k")[0] == 0
    assert cli("verify", tmp_path / "b", "--key", key_of(run))[0] == 2
    assert cli("verify", tmp_path / "b", "--key", tmp_path / "k" / PUBLIC_KEY)[0] == 0


def test_a_failed_gate_writes_nothing_and_names_what_failed(
    run: RunFolder, tmp_path: Path, cli: Cli
) -> None:
    values = evaluation_values_of(run)
    values["leakage"] = []
    write_evidence(run, values)
    status, out, _ = cli("release", run.path, "--out", tmp_path / "bundle")
    assert status == 2
    assert "not released: evidence.leakage" in out
    assert not (tmp_path / "bundle").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_an_override_needs_a_reason_that_goes_on_the_card(
    run: RunFolder, tmp_path: Path, cli: Cli
) -> None:
    values = evaluation_values_of(run)
    values["leakage"] = []
    write_evidence(run, values)
    out = tmp_path / "bundle"
    status, _, err = cli("release", run.path, "--out", out, "--override", "because")
    assert status == 1
    assert "Expected: a sentence" in err
    assert cli("release", run.path, "--out", out, "--override", REASON)[0] == 0
    for card in ("README.md", "card.html"):
        assert REASON in (out / card).read_text()
    gate = json.loads((out / "gate.json").read_text())
    assert (gate["passed"], gate["override"]) == (False, REASON)


def test_an_override_that_was_not_needed_is_not_on_the_card(
    run: RunFolder, tmp_path: Path, cli: Cli
) -> None:
    assert cli("release", run.path, "--out", tmp_path / "b", "--override", REASON)[0] == 0
    assert REASON not in (tmp_path / "b" / "README.md").read_text()


def test_the_gate_of_a_file_is_used_and_a_wrong_key_in_it_is_named(
    run: RunFolder, tmp_path: Path, cli: Cli
) -> None:
    file = tmp_path / "gate.yaml"
    file.write_text("receipts: {max_epsilon: 0.01}\n")
    status, out, _ = cli("release", run.path, "--gate", file, "--out", tmp_path / "b")
    assert status == 2
    assert "not released: receipts.max_epsilon" in out
    file.write_text("receipts: {max_epsilom: 1}\n")
    status, _, err = cli("release", run.path, "--gate", file, "--out", tmp_path / "b")
    assert status == 1
    assert "did you mean 'max_epsilon'" in err


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda run: (run.path / "evaluation" / "evaluation.json").write_text("{"), "evaluation"),
        (lambda run: shutil.rmtree(run.generator), "no whole generator"),
        (lambda run: run.study_file.unlink(), "no study"),
    ],
)
def test_a_run_that_is_not_whole_ends_in_a_sentence(
    run: RunFolder, tmp_path: Path, cli: Cli, break_it: Callable[[RunFolder], None], said: str
) -> None:
    break_it(run)
    status, _, err = cli("release", run.path, "--out", tmp_path / "b")
    assert status == 1
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "b").exists()
