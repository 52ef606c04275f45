"""`fundusgen release` and `verify`: what leaves, what does not, and what others can check."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from finished_run import (
    KEYS,
    STUDY,
    evaluation_values_of,
    finished_run,
    mechanism_values,
    write_evidence,
)
from safetensors.numpy import load_file, save_file

from fundusgen.models.factory import build_model
from fundusgen.models.generator import TRAINING_FILE, WEIGHTS_FILE, save_generator
from fundusgen.privacy.keys import make_keys, signing_key
from fundusgen.release.bundle import (
    CHECKSUMS,
    PUBLIC_KEY,
    SIGNATURE,
    public_pem,
    verify_bundle,
    write_bundle,
)
from fundusgen.release.finished_generator import read_generator
from fundusgen.run_folder import RunFolder
from fundusgen.storage import write_json
from fundusgen.study import Study, dump_study

Cli = Callable[..., tuple[int, str, str]]
REASON = "For a closed course; the test set is too small to measure leakage."


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


def add_folder(bundle: Path) -> str:
    (bundle / "receipts" / "c").mkdir()
    return "receipts/c was added"


def other_key(bundle: Path) -> str:
    (bundle / PUBLIC_KEY).write_bytes(public_pem(KEYS["a"].public_key()))
    return "release.pub was changed"


def no_key(bundle: Path) -> str:
    (bundle / PUBLIC_KEY).unlink()
    return "release.pub is missing"


def pipe(bundle: Path) -> str:
    (bundle / "gate.json").unlink()
    os.mkfifo(bundle / "gate.json")
    return "gate.json is no file"


def link_folder(bundle: Path) -> str:
    (bundle / "receipts").rename(bundle.parent / "receipts")
    (bundle / "receipts").symlink_to(bundle.parent / "receipts")
    return "receipts was added"


def link_sums(bundle: Path) -> str:
    (bundle / CHECKSUMS).rename(bundle.parent / CHECKSUMS)
    (bundle / CHECKSUMS).symlink_to(bundle.parent / CHECKSUMS)
    return f"{CHECKSUMS} was added"


def file_for_folder(bundle: Path) -> str:
    shutil.rmtree(bundle / "receipts")
    (bundle / "receipts").write_text("")
    return "receipts/a/000001.json is missing"


def other_line_ends(bundle: Path) -> str:
    sums = bundle / CHECKSUMS
    sums.write_bytes(sums.read_bytes().replace(b"\n", b"\r\n"))
    return "not signed by this key"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "spoil",
    [
        spoil_file, remove_file, add_file, rewrite_sums, link_file, add_folder, other_key, no_key,
        pipe, link_folder, link_sums, file_for_folder, other_line_ends,
    ],
)  # fmt: skip
def test_a_bundle_that_was_tampered_with_is_refused(
    bundle: Path, run: RunFolder, cli: Cli, spoil: Callable[[Path], str]
) -> None:
    said = spoil(bundle)
    status, out, _ = cli("verify", bundle, "--key", key_of(run))
    assert status == 2
    assert said in out


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", "a//x", "x\ny", "é", ".x", CHECKSUMS])
def test_names_that_lead_elsewhere_are_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be paths"):
        write_bundle(tmp_path / "bundle", {name: b""}, KEYS["a"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", ["{0}  ../x", "{0}  a.txt", "{0} *a.txt", "{0}  /etc/passwd", ""])
def test_a_signed_list_that_can_be_read_in_two_ways_is_refused(tmp_path: Path, line: str) -> None:
    bundle, key = tmp_path / "bundle", KEYS["a"]
    write_bundle(bundle, {"a.txt": b"a"}, key)
    assert verify_bundle(bundle, key.public_key()) == []
    sums = (bundle / CHECKSUMS).read_bytes() + f"{line.format('0' * 64)}\n".encode()
    (bundle / CHECKSUMS).write_bytes(sums)
    (bundle / SIGNATURE).write_bytes(key.sign(sums, ec.ECDSA(hashes.SHA384())))
    assert "no checksum" in verify_bundle(bundle, key.public_key())[0]


def test_the_key_in_the_bundle_does_not_vouch_for_it(bundle: Path, cli: Cli) -> None:
    status, _, err = cli("verify", bundle, "--key", bundle / PUBLIC_KEY)
    assert status == 1
    assert "the one in the bundle" in err


def test_what_is_no_bundle_and_no_key_ends_in_a_sentence(
    tmp_path: Path, run: RunFolder, bundle: Path, cli: Cli
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for folder, key in ((tmp_path, key_of(run)), (bundle, tmp_path / "pipe"),
                        (bundle, run.path / "keys" / "node"), (bundle, tmp_path)):  # fmt: skip
        status, _, err = cli("verify", folder, "--key", key)
        assert (status, err[:7]) == (1, "error: ")


def test_only_what_was_understood_leaves(run: RunFolder, tmp_path: Path, cli: Cli) -> None:
    """No private key, note or comment that lies among receipts and public keys."""
    make_keys(run.known_sites)
    (run.known_sites / "backup.pem").write_text("secret")
    (run.known_sites / "c.pub").write_text((run.known_sites / "node.pub").read_text())
    (run.receipts / "a" / "notes.txt").write_text("secret")
    with (run.known_sites / "a.pub").open("r+") as file:
        text = file.read().strip()
        file.seek(0)
        file.write(f"{text} secret@host\n")
    out = tmp_path / "bundle"
    assert cli("release", run.path, "--out", out, "--keys", run.known_sites)[0] == 0
    private = signing_key(run.known_sites)
    assert verify_bundle(out, private.public_key()) == []
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {name for name in files if name.startswith(("known-sites", "receipts"))} == {
        "known-sites/a.pub", "known-sites/b.pub", "receipts/a/000001.json",
        "receipts/a/000002.json", "receipts/b/000001.json", "receipts/b/000002.json",
    }  # fmt: skip
    for name in files:
        content = (out / name).read_bytes()
        assert b"secret@host" not in content
        assert b"PRIVATE" not in content


@pytest.mark.parametrize("where", ["receipts/x", "known-sites", "keys", "evaluation/new", "."])
def test_a_bundle_is_not_written_into_what_is_read(run: RunFolder, cli: Cli, where: str) -> None:
    before = sorted(run.path.rglob("*"))
    status, _, err = cli("release", run.path, "--out", run.path / where)
    assert status == 1
    assert "Expected" in err
    assert sorted(run.path.rglob("*")) == before


def test_keys_are_not_made_within_the_bundle(run: RunFolder, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "bundle"
    assert cli("release", run.path, "--out", out, "--keys", out / "keys")[0] == 1
    assert not out.exists()


def test_a_generator_of_another_study_is_refused(run: RunFolder, tmp_path: Path, cli: Cli) -> None:
    other = STUDY.model_copy(update={"seed": STUDY.seed + 1})
    weights = load_file(run.generator / "generator.safetensors")
    save_generator(run.generator, other, weights, {"rounds": 2})
    status, _, err = cli("release", run.path, "--out", tmp_path / "b", "--override", REASON)
    assert status == 1
    assert "of another study" in err


def test_what_only_training_needs_stays(bundle: Path, run: RunFolder) -> None:
    assert load_file(run.generator / TRAINING_FILE)
    (path,) = bundle.rglob("*.safetensors")
    assert path.read_bytes() == (run.generator / WEIGHTS_FILE).read_bytes()
    assert {name.partition(".")[0] for name in load_file(path)} == {"decoder"}


def test_the_discriminator_of_a_gan_stays(tmp_path: Path) -> None:
    gan = {"kind": "gan", "width": 4, "latent": 5, "discriminator_width": 4}
    study = Study.model_validate({**STUDY.model_dump(), "model": gan})
    weights = {
        name: np.random.default_rng(place).standard_normal(value.shape).astype(np.float32)
        for place, (name, value) in enumerate(build_model(study).state_dict().items())
    }
    run = RunFolder(tmp_path)
    run.study_file.write_text(dump_study(study))
    save_generator(run.generator, study, weights, {})
    leaving = read_generator(run).leaving(set())
    assert leaving.keys() == {"generator.safetensors", "model.json"}
    everything = b"".join(leaving.values())
    for name, array in weights.items():
        assert (array.tobytes() in everything) == name.startswith("generator."), name


def test_of_a_generator_of_the_first_format_only_what_draws_leaves(
    run: RunFolder, tmp_path: Path, cli: Cli
) -> None:
    path, rest = run.generator / WEIGHTS_FILE, run.generator / TRAINING_FILE
    draws = path.read_bytes()
    save_file(load_file(path) | load_file(rest), path, {"more": "weights, as text"})
    rest.unlink()
    described = run.generator / "model.json"
    described.write_text(json.dumps({**json.loads(described.read_text()), "format": 1}))
    assert cli("release", run.path, "--out", tmp_path / "b")[0] == 0
    assert (tmp_path / "b" / WEIGHTS_FILE).read_bytes() == draws
    assert json.loads((tmp_path / "b" / "model.json").read_text())["format"] == 2
    options = ["--condition", "amd", "--count", "3", "--out", tmp_path / "images"]
    assert cli("generate", tmp_path / "b", *options)[0] == 0


def test_an_attack_on_another_runs_model_does_not_count(
    run: RunFolder, tmp_path: Path, cli: Cli
) -> None:
    whole = load_file(run.generator / WEIGHTS_FILE) | load_file(run.generator / TRAINING_FILE)
    moved = {n: array + n.startswith("encoder.") for n, array in whole.items()}
    # It draws the same, and its encoder is not the one that was attacked.
    save_generator(run.generator, STUDY, moved, {"rounds": 2})
    status, out, _ = cli("release", run.path, "--out", tmp_path / "b")
    assert status == 2
    assert "those of another model were attacked" in " ".join(out.split())


def voted(run: RunFolder) -> Path:
    """Lay phantoms beside the network, and give the folder of an evaluation of them."""
    content = b"{}"
    (run.generator / "population.json").write_bytes(content)
    values = evaluation_values_of(run)
    digest = hashlib.sha256(content).hexdigest()
    values["subject"] = {**values["subject"], "kind": "voted phantoms", "digest": digest}
    write_json(run.path / "phantoms" / "evaluation.json", {**values, "model_attack": None})
    return run.path / "phantoms"


def test_phantoms_that_nobody_has_judged_stay(run: RunFolder, tmp_path: Path, cli: Cli) -> None:
    judged = voted(run)
    status, out, _ = cli("release", run.path, "--out", tmp_path / "a")
    assert status == 0
    assert "population.json stays" in out
    assert not (tmp_path / "a" / "population.json").exists()
    both = ["--evaluation", run.path / "evaluation", "--evaluation", judged]
    assert cli("release", run.path, "--out", tmp_path / "b", *both)[0] == 0
    assert (tmp_path / "b" / "population.json").exists()
    assert (tmp_path / "b" / "evaluation-2.json").exists()


def test_an_evaluation_of_the_phantoms_does_not_let_the_network_out(
    run: RunFolder, tmp_path: Path, cli: Cli
) -> None:
    status, out, _ = cli("release", run.path, "--out", tmp_path / "b", "--evaluation", voted(run))
    assert status == 2
    assert "none is of generator.safetensors" in out


def test_the_page_of_an_evaluation_is_made_of_its_figures(
    run: RunFolder, tmp_path: Path, cli: Cli
) -> None:
    (run.path / "evaluation" / "evaluation.html").write_text("<script>all is well</script>")
    assert cli("release", run.path, "--out", tmp_path / "b")[0] == 0
    page = (tmp_path / "b" / "evaluation.html").read_text()
    assert "all is well" not in page
    assert "AUC of 0.70" in page


@pytest.mark.parametrize("junk", ["null", "NaN", "Infinity", '"0.1"', "{}"])
def test_an_attack_without_a_figure_never_leaves(
    run: RunFolder, tmp_path: Path, cli: Cli, junk: str
) -> None:
    values = evaluation_values_of(run)
    values["model_attack"]["auc"] = "JUNK"
    path = run.path / "evaluation" / "evaluation.json"
    path.write_text(json.dumps(values).replace('"JUNK"', junk))
    status, out, err = cli("release", run.path, "--out", tmp_path / "b")
    assert (status, "Traceback" in out + err) == (1 if junk in ("NaN", "Infinity") else 2, False)
    out = tmp_path / "b"
    status, _, err = cli("release", run.path, "--out", out, "--override", REASON)
    # A dash may stand on the card where null was; nothing stands where nothing is known.
    if junk == "null":
        assert (status, json.loads((out / "gate.json").read_text())["passed"]) == (0, False)
    else:
        assert (status, err[:7], out.exists()) == (1, "error: ", False)


@pytest.mark.parametrize("content", ["[]", "3", '{"holds": true}', "{", "[" * 100_000, "\xff"])
def test_an_audit_that_is_none_ends_in_a_sentence(
    run: RunFolder, tmp_path: Path, cli: Cli, content: str
) -> None:
    (run.path / "mechanism" / "mechanism.json").write_bytes(content.encode("latin-1"))
    status, _, err = cli("release", run.path, "--out", tmp_path / "b")
    assert status == 1
    assert "mechanism.json cannot be used" in err


def test_an_audit_that_could_see_nothing_fails(run: RunFolder, tmp_path: Path, cli: Cli) -> None:
    weak = {**mechanism_values(), "sufficient": False}
    write_json(run.path / "mechanism" / "mechanism.json", weak)
    status, out, _ = cli("release", run.path, "--out", tmp_path / "b")
    assert status == 2
    assert "too few canaries" in out


def test_a_gate_that_was_opened_wide_is_on_the_card(
    run: RunFolder, tmp_path: Path, cli: Cli
) -> None:
    file = tmp_path / "gate.yaml"
    file.write_text("leakage: {max_auc: 1.0}\n")
    assert cli("release", run.path, "--gate", file, "--out", tmp_path / "b")[0] == 0
    assert "leakage.max_auc was 1.0; without" in (tmp_path / "b" / "README.md").read_text()


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


def test_conditions_that_no_vote_was_heard_for_are_on_the_card(
    run: RunFolder, tmp_path: Path, cli: Cli
) -> None:
    path = run.generator / "model.json"
    model = json.loads(path.read_text())
    # What is no condition of the study is nobody's finding, and is not repeated.
    write_json(path, {**model, "facts": {**model["facts"], "undecided": ["amd", "<b>no</b>"]}})
    write_evidence(run)
    assert cli("release", run.path, "--out", tmp_path / "b")[0] == 0
    for name in ("README.md", "card.html"):
        card = (tmp_path / "b" / name).read_text()
        assert "vote for amd stood out of the noise" in card
        assert "<b>no</b>" not in card


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
