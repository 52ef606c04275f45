"""The simulation runtime does what it was asked, tells the truth, and leaves nothing behind."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk, build_fab_from_files
from processes import MARK, eventually_none, marked

from fundusgen.errors import RunError
from simulations import flower
from simulations.bundle import app_files, own_app
from simulations.flower import LocalFlower

pytestmark = [
    pytest.mark.xdist_group("flower"),
    # Flower's bundler uses a name that its library for file patterns has renamed.
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]
ECHO_APP = Path(__file__).parents[1] / "echo-app"


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFlower]:
    folder = tmp_path_factory.mktemp("runtime")
    mark = {MARK: str(folder)}
    with LocalFlower(folder / "home", log_file=folder / "run.log", environment=mark) as started:
        yield started
    assert marked(str(folder)) == []


def test_a_run_completes_and_its_environment_reaches_the_clients(
    runtime: LocalFlower, tmp_path: Path
) -> None:
    result = tmp_path / "it's a result.json"
    ticks = []
    run = runtime.run(
        app_files(ECHO_APP),
        run_config={"result": str(result), "sites": 3},
        num_supernodes=3,
        on_tick=lambda: ticks.append(marked(str(runtime.home.parent))),
    )
    assert run.status == "finished:completed"
    assert any("raylet" in command for tick in ticks for command in tick)
    told = json.loads(result.read_text())
    assert told["flwr_home"] == str(runtime.home)
    assert [reply["round"] for reply in told["replies"]] == [1] * 3 + [2] * 3
    assert all(reply["same"] for reply in told["replies"])
    nodes = [json.loads(reply["node"]) for reply in told["replies"][:3]]
    assert sorted(node["partition-id"] for node in nodes) == [0, 1, 2]
    environment = json.loads(told["replies"][0]["environment"])
    assert environment[MARK] == str(runtime.home.parent)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert "Starting Flower Simulation" in runtime.log_file.read_text()


def test_a_server_app_that_raises_is_a_run_error_with_its_message(
    runtime: LocalFlower,
) -> None:
    with pytest.raises(RunError, match="no quorum in round 3") as caught:
        runtime.run(
            app_files(ECHO_APP), run_config={"fail": "no quorum in round 3"}, num_supernodes=1
        )
    assert "finished:failed" in str(caught.value)
    assert str(runtime.log_file) in caught.value.remedy


def test_an_unknown_key_of_the_run_configuration_is_refused_with_its_name(
    runtime: LocalFlower,
) -> None:
    with pytest.raises(RunError, match="no-such-key"):
        runtime.run(app_files(ECHO_APP), run_config={"no-such-key": 1}, num_supernodes=1)


def test_an_app_that_cannot_be_bundled_is_refused(runtime: LocalFlower, tmp_path: Path) -> None:
    app = shutil.copytree(ECHO_APP, tmp_path / "echo-app")
    text = (app / "pyproject.toml").read_text().replace('publisher = "tests"\n', "")
    (app / "pyproject.toml").write_text(text)
    with pytest.raises(RunError, match="publisher"):
        runtime.run(app_files(app), run_config={}, num_supernodes=1)


def test_a_port_that_is_taken_in_between_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken: int = other.getsockname()[1]
        ports = iter([taken, flower._free_port()])
        monkeypatch.setattr(flower, "_free_port", lambda: next(ports))
        with LocalFlower(tmp_path / "home", log_file=tmp_path / "run.log") as runtime:
            assert runtime.port != taken


def test_a_missing_flower_is_told_with_the_place_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_arguments, **_options: None)
    with (
        pytest.raises(RunError, match="flower-superlink"),
        LocalFlower(tmp_path / "home", log_file=tmp_path / "run.log"),
    ):
        pass


@pytest.mark.parametrize("victim", ["/flower-superlink", "guardian.py"])
def test_a_runtime_process_dying_during_a_run_is_a_run_error(victim: str, tmp_path: Path) -> None:
    def kill() -> None:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:  # another process, which ended between the listing and the reading
                continue
            # Both command lines hold the port and the SuperLink's path, at different places.
            program = b" ".join(command[:4]).split(b" --")[0]
            if str(runtime.port).encode() in command and program.endswith(victim.encode()):
                os.kill(int(process.name), signal.SIGKILL)

    mark = {MARK: str(tmp_path)}
    with (
        LocalFlower(tmp_path / "home", log_file=tmp_path / "run.log", environment=mark) as runtime,
        pytest.raises(RunError, match="SuperLink"),
    ):
        runtime.run(app_files(ECHO_APP), run_config={}, num_supernodes=1, on_tick=kill)
    # Without its guardian, the SuperLink still gets the kernel's signal, its helpers notice.
    assert eventually_none(str(tmp_path), within_s=0 if "/" in victim else 10) == []


KILLED = """\
import sys
from pathlib import Path
from simulations.bundle import app_files, own_app
from simulations.flower import LocalFlower
app, folder = map(Path, sys.argv[1:])
mark = {"FUNDUSGEN_TEST_MARK": str(folder)}
with LocalFlower(folder / "home", log_file=folder / "run.log", environment=mark) as runtime:
    config = {"rounds": 10**6, "result": str(folder / "result")}
    runtime.run(app_files(app), run_config=config, num_supernodes=2)
"""


@pytest.mark.parametrize(
    ("how", "during"), [(signal.SIGKILL, "raylet"), (signal.SIGINT, "flwr-simulation")]
)
def test_no_process_is_left_when_ours_is_ended_during_a_run(
    how: signal.Signals, during: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # Its own folder, as other tests' runtimes come and go in the common one, and a short one, as
    # Ray's sockets lie in it.
    scratch = Path(tempfile.mkdtemp(prefix="t-"))
    request.addfinalizer(lambda: shutil.rmtree(scratch, ignore_errors=True))
    ours = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(ECHO_APP), str(tmp_path)],
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    deadline = time.monotonic() + 90
    while not any(during in command for command in marked(str(tmp_path))):
        assert time.monotonic() < deadline
        assert ours.poll() is None
        time.sleep(0.1)
    assert list(scratch.glob("fg-*"))
    ours.send_signal(how)
    ours.communicate(timeout=90)
    assert eventually_none(str(tmp_path), within_s=10) == []
    # The guardian removes the folder as its last act, when it is no longer seen as ours.
    deadline = time.monotonic() + 60
    while left := list(scratch.glob("fg-*")):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_the_bundle_is_the_one_flwr_build_makes() -> None:
    # A site allows a study's code by this digest, whoever has built it.
    assert build_fab_from_files(app_files(ECHO_APP))[0] == build_fab_from_disk(ECHO_APP)


def test_our_own_bundle_holds_the_apps_and_the_library_and_nothing_else() -> None:
    files = own_app()
    assert {"server/app.py", "client/app.py", "fundusgen/errors.py", "pyproject.toml"} <= set(files)
    bundle = zipfile.ZipFile(io.BytesIO(build_fab_from_files(files)[0]))
    tops = {name.split("/")[0] for name in bundle.namelist()}
    assert tops <= {"server", "client", "fundusgen", "pyproject.toml", "LICENSE", ".info"}


def test_a_folder_without_an_app_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="describes no Flower app"):
        app_files(tmp_path)
