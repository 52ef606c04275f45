"""Flower's deployment runtime as docs/deployment.md sets it up, tried with a tiny app."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from federation_processes import Federation, make_node_key

pytestmark = pytest.mark.xdist_group("flower")
ECHO_APP = Path(__file__).parents[1] / "echo-app"


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    with Federation(tmp_path) as started:
        yield started


def test_two_registered_sites_answer_two_rounds_over_tls(
    federation: Federation, tmp_path: Path
) -> None:
    for name in ("north", "south"):
        site = tmp_path / "sites" / name
        private, public = make_node_key(site / "keys")
        federation.register(public, name)
        mark = {"SITE_SECRET": f"of {name}"}
        federation.start_node(name, site=site, private_key=private, environment=mark)
    private, _ = make_node_key(tmp_path / "stranger")
    federation.start_node("stranger", site=tmp_path, private_key=private, environment={})

    result = tmp_path / "result.json"
    run_id = federation.run(ECHO_APP, f'sites=2 rounds=2 result="{result}"')
    record = federation.wait_finished(run_id, limit_s=90)

    assert record["status"] == "finished:completed", record
    replies = json.loads(result.read_text())["replies"]
    assert [reply["round"] for reply in replies] == [1, 1, 2, 2]
    assert all(reply["same"] for reply in replies)
    for replying in (replies[:2], replies[2:]):
        sites = {json.loads(reply["node"])["site"] for reply in replying}
        assert sites == {str(tmp_path / "sites" / name) for name in ("north", "south")}
    # What the operator sets for the SuperNode reaches the app, what the server sets does not.
    environments = [json.loads(reply["environment"]) for reply in replies]
    assert {one["SITE_SECRET"] for one in environments} == {"of north", "of south"}
    assert {one["FLWR_HOME"] for one in environments} == {
        str(federation.home(name)) for name in ("north", "south")
    }
    assert "SuperNode ID" not in federation.log("stranger")
