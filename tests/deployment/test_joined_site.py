"""A site that joins with `fundusgen site join` runs its own code, whatever the server sends."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from deployed_sites import deployed_study, known_sites, phantom_site
from federation_processes import Federation, processes_of

from client.clientapp import ERROR_TEXT
from fundusgen.code import code_hash
from fundusgen.privacy.ledger import Ledger
from fundusgen.run_folder import RunFolder

pytestmark = pytest.mark.xdist_group("flower")
REPOSITORY = Path(__file__).parents[2]
ECHO_APP = Path(__file__).parents[1] / "echo-app"
MARK = "the-server-was-here"
# What a server might add to the code that it sends to hospitals.
ADDED = f"""

import os
from pathlib import Path

Path(os.environ["FLWR_HOME"], "{MARK}").write_text("with the rights of the hospital")
"""


@pytest.mark.slow
def test_a_joined_site_answers_with_its_own_code_what_another_runs_for_the_server(
    tmp_path: Path,
) -> None:
    study = deployed_study(tmp_path / "study.yaml", sites=2)
    joined = phantom_site(tmp_path / "joined", study, code=code_hash())
    plain = phantom_site(tmp_path / "plain", study, code="any")
    keys = known_sites(tmp_path / "keys", joined, plain)
    with Federation(tmp_path / "federation") as federation:
        for site in (joined, plain):
            federation.register(site.keys / "node.pub", site.path.name)
        federation.join_site("joined", joined.path)
        federation.start_node(
            "plain", site=plain.path, private_key=plain.keys / "node", environment={}
        )
        run = RunFolder(tmp_path / "run")
        run_config = f'run="{run.path}" study="{tmp_path}/study.yaml" sites="{keys}"'
        record = federation.wait_finished(
            federation.run(app_with_added_code(tmp_path / "app"), run_config), limit_s=300
        )
        assert record["status"] == "finished:completed", (record, run.status())
        federation.wait_logged("joined", "round 1 of deployed answered")
        assert federation.interrupt("joined", signal.SIGTERM) == 0
    # The same bundle: what it was made for happens where the server's code is run, and there only.
    assert (federation.home("plain") / MARK).is_file()
    assert not list(joined.path.rglob(MARK))
    codes = {}
    for site in (joined, plain):
        with Ledger.read(site.ledger_file) as ledger:
            (row,) = ledger.rows()
            codes[site.path.name] = row.code_hash
    assert codes["joined"] == code_hash() != codes["plain"]
    shown = federation.log("joined")
    assert f"joined {federation.address}" in shown
    assert "epsilon is" in shown
    assert "Traceback" not in shown
    # Flower reports the length of an answer to the server, from the plain one only.
    assert record["compute-time"]["clientapp-seconds"] > 0  # type: ignore[index]


def test_another_app_than_its_own_gets_one_fixed_sentence_from_a_joined_site(
    tmp_path: Path,
) -> None:
    study = deployed_study(tmp_path / "study.yaml", sites=1)
    site = phantom_site(tmp_path / "north", study, code=code_hash())
    with Federation(tmp_path / "federation") as federation:
        federation.register(site.keys / "node.pub", "north")
        federation.join_site("north", site.path)
        federation.wait_logged("north", f"joined {federation.address}")
        # At a plain SuperNode this app sends the site's path and environment to the server:
        # tests/deployment/test_deployment_runtime.py.
        run_id = federation.run(ECHO_APP, f'sites=1 rounds=1 result="{tmp_path}/result.json"')
        record = federation.wait_finished(run_id, limit_s=90)
        assert record["status-details"] == (
            f"ServerApp failed with exception: a site failed: {ERROR_TEXT}"
        )
        assert record["compute-time"]["clientapp-seconds"] == 0  # type: ignore[index]
        assert str(site.path) not in federation.log("server")
        federation.wait_logged("north", "a message was not answered")
        home = site.path / "flower"
        assert processes_of(home)
        # Two who would be this site: the second is told so, the first goes on.
        second = subprocess.run(
            federation.join_command(site.path), capture_output=True, text=True, timeout=60
        )
        assert second.returncode == 1
        assert "has joined a federation already" in second.stderr
        assert federation.interrupt("north", signal.SIGINT) == 0
    assert "north has left; its ledger keeps what was spent" in federation.log("north")
    assert not processes_of(home)
    assert not (home / "apps").exists()


def test_a_killed_join_leaves_no_process_behind(tmp_path: Path) -> None:
    study = deployed_study(tmp_path / "study.yaml", sites=1)
    site = phantom_site(tmp_path / "north", study, code=code_hash())
    home = site.path / "flower"
    with Federation(tmp_path / "federation") as federation:
        federation.register(site.keys / "node.pub", "north")
        # Without the guardian of the tests, which would end what is left.
        with subprocess.Popen(federation.join_command(site.path), stdout=subprocess.PIPE) as join:
            assert join.stdout is not None
            while b"joined" not in join.stdout.readline():
                assert join.poll() is None
            assert len(processes_of(home)) >= 3  # guardian, SuperNode, SuperExec
            join.kill()
        deadline = time.monotonic() + 20
        while processes_of(home):
            assert time.monotonic() < deadline, processes_of(home)
            time.sleep(0.1)


def test_a_site_that_the_server_does_not_know_is_told_so_in_a_sentence(tmp_path: Path) -> None:
    study = deployed_study(tmp_path / "study.yaml", sites=1)
    site = phantom_site(tmp_path / "north", study, code="0" * 64)
    with Federation(tmp_path / "federation") as federation:
        done = subprocess.run(
            federation.join_command(site.path), capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: The server does not take this site: its key is not")
    assert "Traceback" not in done.stderr + done.stdout
    assert "this code is not approved here" in done.stdout
    assert not processes_of(site.path / "flower")


def app_with_added_code(folder: Path) -> Path:
    """A copy of the project's app, whose client does something else as well."""
    folder.mkdir()
    for package in ("server", "client", "fundusgen"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / package, folder / package, ignore=ignored)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder / name)
    with (folder / "client" / "app.py").open("a") as app:
        app.write(ADDED)
    return folder
