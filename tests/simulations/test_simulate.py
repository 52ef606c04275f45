"""`fundusgen simulate` as its user meets it: processes, files, kills, mistakes, busy ports."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from processes import MARK, eventually_none

from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.receipt_folder import read_receipt
from fundusgen.run_folder import RunFolder
from fundusgen.site import SiteFolder

pytestmark = [pytest.mark.xdist_group("flower"), pytest.mark.slow]

COMMAND = Path(sys.executable).with_name("fundusgen")
# What Flower and Ray would take for themselves if nobody told them otherwise.
DEFAULT_PORTS = (9091, 9092, 9093, 9094, 39091, 39093, 8000, 8080, 8265, 6379)
CAP = 9.0
ROUNDS, LONG_ROUNDS = 2, 12
STUDY = """
study_id: tiny
conditions: [normal, amd]
image_size: 32
model: {{width: 4, latent: 4}}
stages: {{dpsgd: {{steps_per_round: 1, sample_rate: 0.5, views_per_patient: 1}}}}
privacy: {{target_epsilon: 8, target_delta: 1.0e-3}}
federation: {{rounds: {rounds}, min_sites: 3, quorum: 3, timeout_s: 120}}
evaluation: {{samples_per_condition: 2, every_rounds: 1, phantoms: 4}}
simulation:
  max_epsilon: 9
  phantom_sites:
    - {{name: north, patients: 10, camera: rose, mix: {{normal: 1, amd: 1}}}}
    - {{name: south, patients: 10, camera: amber, mix: {{normal: 1, amd: 1}}}}
    - {{name: west, patients: 10, camera: dusk, mix: {{normal: 1, amd: 1}}}}
"""


def start(study: Path, out: Path, *options: str, mark: str = "") -> subprocess.Popen[str]:
    command = [COMMAND, "simulate", study, "--out", out, *options]
    environment = {**os.environ, MARK: mark, "OMP_WAIT_POLICY": "passive"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def sites_of(run: RunFolder) -> list[SiteFolder]:
    return [SiteFolder(path.parent) for path in sorted(run.sites.glob("*/site.yaml"))]


def accepted_by_round(run: RunFolder) -> dict[int, set[str]]:
    return {
        entry["round"]: {s["site"] for s in entry["sites"] if s["state"] == "accepted"}
        for entry in run.metrics()
    }


def one_sentence_of_error(err: str) -> str:
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.format(rounds=ROUNDS))
    return file


@pytest.fixture(scope="module")
def busy_ports() -> Iterator[None]:
    with ExitStack() as stack:
        for port in DEFAULT_PORTS:
            taken = stack.enter_context(socket.socket())
            try:
                taken.bind(("127.0.0.1", port))
                taken.listen()
            except OSError:  # somebody else has it, which serves as well
                continue
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, busy_ports: None) -> tuple[RunFolder, str]:
    """A run to its end with default ports taken and three broken files at the site `north`."""
    folder = tmp_path_factory.mktemp("finished")
    file, out = folder / "study.yaml", folder / "run"
    file.write_text(STUDY.format(rounds=ROUNDS))
    status, said, err = finish(start(file, out, "--prepare-only"))
    assert status == 0, err
    assert "3 sites are ready" in said
    images = sorted((out / "sites" / "north" / "data" / "images").iterdir())
    images[0].write_bytes(b"")
    images[1].write_bytes(images[1].read_bytes()[:150])
    images[2].write_bytes(b"no image at all")
    status, said, err = finish(start(file, out, mark=str(folder)))
    assert status == 0, f"{said}\n{err}"
    assert eventually_none(str(folder)) == []
    return RunFolder(out), said


def test_a_run_leaves_the_whole_run_folder(finished: tuple[RunFolder, str]) -> None:
    run, _ = finished
    assert run.status()["state"] == "finished"
    assert run.study().federation.rounds == ROUNDS
    assert json.loads(run.environment_file.read_text())["packages"]["flwr"]
    for number in range(1, ROUNDS + 1):
        name = f"round-{number:04d}"
        assert (run.checkpoints / f"{name}.safetensors").is_file()
        assert json.loads((run.checkpoints / f"{name}.json").read_text())
        assert (run.samples / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        for site in ("north", "south", "west"):
            receipt = read_receipt(run.receipts / site / f"{number:06d}.json")
            assert (receipt.site, receipt.round_number) == (site, number)
    assert [entry["round"] for entry in run.metrics()] == list(range(1, ROUNDS + 1))
    assert (run.generator / "generator.safetensors").is_file()
    assert (run.generator / "model.json").is_file()
    assert "<html" in run.report.read_text()


def test_a_run_ends_with_a_table_of_epsilons_and_says_where_everything_is(
    finished: tuple[RunFolder, str],
) -> None:
    run, said = finished
    assert "largest epsilon" in said
    for site in sites_of(run):
        with Ledger.read(site.ledger_file) as ledger:
            assert f"{ledger.epsilon(1e-3):.3f}" in said
    for place in (run.samples, run.generator, run.report):
        assert str(place) in said


def test_three_broken_files_are_counted_at_the_site_and_the_run_goes_on(
    finished: tuple[RunFolder, str],
) -> None:
    run, _ = finished
    assert accepted_by_round(run) == {n: {"north", "south", "west"} for n in (1, 2)}
    assert "3 rows" in SiteFolder(run.sites / "north").log_file.read_text()
    assert "0 rows" in SiteFolder(run.sites / "south").log_file.read_text()


def test_nothing_that_a_server_keeps_names_a_patient_or_a_file(
    finished: tuple[RunFolder, str],
) -> None:
    run, _ = finished
    names = set()
    for site in sites_of(run):
        with (site.path / "data" / "manifest.csv").open(newline="") as manifest:
            for row in csv.DictReader(manifest):
                names |= {row["patient_id"], Path(row["file"]).name}
    kept = [
        path
        for path in run.path.rglob("*")
        if path.is_file() and not path.is_relative_to(run.sites)
    ]
    assert {"server.log", "flower.log", "metrics.jsonl"} <= {path.name for path in kept}
    for path in kept:
        content = path.read_bytes()
        assert not [name for name in names if name.encode() in content], path


def test_a_finished_run_is_not_run_again(finished: tuple[RunFolder, str], study: Path) -> None:
    run, _ = finished
    before = run.metrics_file.read_bytes()
    status, _, err = finish(start(study, run.path))
    assert status == 1
    error = one_sentence_of_error(err)
    assert "is finished" in error
    assert "another --out" in error
    assert run.metrics_file.read_bytes() == before


def test_a_run_that_was_killed_goes_on_where_it_stood_and_its_ledgers_add_up(
    tmp_path: Path,
) -> None:
    study, run = tmp_path / "study.yaml", RunFolder(tmp_path / "run")
    study.write_text(STUDY.format(rounds=LONG_ROUNDS))
    first = start(study, run.path, mark=str(tmp_path))
    wait_for(run.study_file.is_file, first)
    # While it runs, nobody else may have its folder.
    status, _, err = finish(start(study, run.path))
    assert status == 1
    assert "Another simulation is running" in one_sentence_of_error(err)
    wait_for(lambda: len(run.metrics()) >= 2, first)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=30)
    assert eventually_none(str(tmp_path)) == []
    stood = len(run.metrics())

    status, said, err = finish(start(study, run.path, mark=str(tmp_path)))
    assert status == 0, f"{said}\n{err}"
    assert "going on with" in said
    assert 2 <= stood < LONG_ROUNDS
    assert run.status()["state"] == "finished"
    everyone = {"north", "south", "west"}
    assert accepted_by_round(run) == dict.fromkeys(range(1, LONG_ROUNDS + 1), everyone)
    last = {site["site"]: site["epsilon"] for site in run.metrics()[-1]["sites"]}
    for site in sites_of(run):
        with Ledger.read(site.ledger_file) as ledger:
            ledger.verify()
            rows, spent = ledger.rows(), ledger.epsilon(1e-3)
        released = [row.round_number for row in rows if row.state == "released"]
        assert released == list(range(1, LONG_ROUNDS + 1))
        assert len(rows) - len(released) <= 1
        assert spent <= CAP
        assert last[site.settings().name] == pytest.approx(spent)
    assert eventually_none(str(tmp_path)) == []


def test_a_study_with_a_gan_is_run_stopped_gone_on_with_and_drawn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    study, run = tmp_path / "study.yaml", RunFolder(tmp_path / "run")
    gan = (
        "{kind: gan, width: 4, latent: 4, discriminator_width: 4, generator_steps: 1}\n"
        "prior: {phantoms: 16, steps: 3, batch: 4}"
    )
    study.write_text(
        STUDY.format(rounds=4)
        .replace("{width: 4, latent: 4}", gan)
        .replace("every_rounds: 1", "every_rounds: 2")
    )
    first = start(study, run.path, mark=str(tmp_path))
    wait_for(lambda: len(run.metrics()) >= 1, first)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert eventually_none(str(tmp_path)) == []

    status, said, err = finish(start(study, run.path, mark=str(tmp_path)))
    assert status == 0, f"{said}\n{err}"
    rounds = run.metrics()
    assert [entry["round"] for entry in rounds] == [1, 2, 3, 4]
    assert all(entry["generator"]["floor"] > 0 for entry in rounds)
    assert [path.name for path in sorted(run.samples.iterdir())] == [
        "round-0002.png", "round-0004.png",
    ]  # fmt: skip
    assert run.film.is_file()
    drawn = subprocess.run(
        [COMMAND, "generate", run.path, "--condition", "amd", "--count", "2", "--out",
         tmp_path / "drawn"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr
    assert len(list((tmp_path / "drawn").rglob("*.png"))) == 2


def test_a_mistyped_key_ends_in_a_sentence_that_names_the_nearest_one(
    study: Path, tmp_path: Path
) -> None:
    study.write_text(study.read_text().replace("target_epsilon", "target_epsilom"))
    status, _, err = finish(start(study, tmp_path / "run"))
    assert status == 1
    assert "did you mean 'target_epsilon'?" in one_sentence_of_error(err)
