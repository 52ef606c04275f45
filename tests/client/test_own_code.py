"""What a server sends is not run at a joined site: the parts of Flower that this replaces."""

import importlib.util
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest
from flwr.common.constant import ErrorCode
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND, TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
from flwr.supercore.superexec.executor.types import ExecutionSpec
from flwr.supernode import fleet_http_connection as connection
from flwr.supernode import start_client_internal as messages
from flwr.supernode.fleet_http_client import FleetHttpClient

import client.app
from client.clientapp import ERROR_TEXT, own_code_only
from client.supernode import (
    hide_durations,
    leave_bundles_closed,
    stay_with_the_server,
    write_programs,
)
from fundusgen.errors import SiteError

PARTS = [
    "pull_task_input",
    "install_from_fab",
    "install_app_dependencies",
    "get_load_client_app_fn",
    "Error",
    "runtime_dependency_install",
]


@pytest.fixture
def runner() -> ModuleType:
    """A fresh copy of Flower's runner, as the process of one answer has it."""
    spec = importlib.util.find_spec("flwr.supernode.runtime.run_clientapp")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_bundle_is_dropped_before_anything_can_use_it(runner) -> None:
    sent = ("message", "context", "run", Fab("hash", b"code of the server", {"valid": "yes"}))
    runner.pull_task_input = lambda _client: sent
    own_code_only(runner)
    assert runner.pull_task_input("client") == (*sent[:3], Fab("hash", b"", {"valid": "yes"}))


def test_a_bundle_that_got_through_is_not_unpacked(runner) -> None:
    own_code_only(runner)
    runner.install_from_fab(b"", skip_prompt=True)
    with pytest.raises(SiteError, match="about to be unpacked"):
        runner.install_from_fab(b"code of the server", skip_prompt=True)


def test_packages_that_a_bundle_asks_for_are_not_installed(runner, tmp_path: Path) -> None:
    own_code_only(runner)
    with pytest.raises(SiteError, match="asked for packages"):
        runner.install_app_dependencies(tmp_path, launch_id="token", run_id=1, index_context={})


def test_the_app_that_answers_is_the_installed_one(runner) -> None:
    own_code_only(runner)
    load = runner.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
    assert load("somebody/else", "9.9.9", "hash") is client.app.app


def test_an_error_says_the_same_whatever_happened(runner) -> None:
    own_code_only(runner)
    error = runner.Error(code=ErrorCode.LOAD_CLIENT_APP_EXCEPTION, reason="patient-4711")
    assert (error.code, error.reason) == (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, ERROR_TEXT)


@pytest.mark.parametrize("missing", PARTS)
def test_a_flower_that_works_in_another_way_is_refused(missing: str) -> None:
    other = ModuleType("flower_of_tomorrow")
    uses = "\n    ".join(part for part in PARTS if part != missing)
    exec(f"def run_clientapp():\n    {uses}", vars(other))  # noqa: S102 - a made-up Flower
    with pytest.raises(SiteError, match=rf"does not use {missing}\. Expected: flwr"):
        own_code_only(other)
    assert set(vars(other)) & set(PARTS) == set()


def test_a_flower_without_the_runner_is_refused() -> None:
    with pytest.raises(SiteError, match="does not use Error"):
        own_code_only(ModuleType("flower_of_tomorrow"))


def test_how_long_an_answer_took_is_not_sent(monkeypatch) -> None:
    monkeypatch.setattr(connection, "PushMessagesRequest", PushMessagesRequest)  # put back after
    hide_durations()
    sent = connection.PushMessagesRequest(messages_list=[], clientapp_runtime_list=[1.25])
    assert sent == PushMessagesRequest()


@pytest.fixture
def hosts() -> Iterator[tuple[str, list[str]]]:
    """A server that sends whoever calls it to another host, and what that one was asked."""
    asked: list[str] = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    class Server(Other):
        def do_POST(self) -> None:
            self.send_response(307)
            self.send_header("Location", f"http://127.0.0.1:{other.server_port}/admin/reboot")
            self.end_headers()

    other, server = (ThreadingHTTPServer(("127.0.0.1", 0), kind) for kind in (Other, Server))
    for one in (other, server):
        threading.Thread(target=one.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", asked
    for one in (other, server):
        one.shutdown()
        one.server_close()


def test_a_server_cannot_send_a_site_to_another_host(hosts, monkeypatch) -> None:
    address, asked = hosts

    def call() -> None:
        caller = FleetHttpClient.from_server_address(address, True, None, interceptors=[])
        with suppress(Exception):
            caller.PullMessages(PullMessagesRequest(node=Node(node_id=5)))

    call()
    assert asked == ["/admin/reboot"]  # as Flower has it
    monkeypatch.setattr(ProtobufClient, "__init__", ProtobufClient.__init__)  # put back after
    stay_with_the_server()
    call()
    assert asked == ["/admin/reboot"]


def test_a_client_that_follows_redirects_in_another_way_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(ProtobufClient, "__init__", lambda self, *_: None)
    with pytest.raises(SiteError, match="follows redirects in another way"):
        stay_with_the_server()


def test_a_bundle_is_not_parsed_by_the_process_that_receives_it(monkeypatch) -> None:
    name = "get_fused_config_from_fab"
    monkeypatch.setattr(messages, name, vars(messages)[name])  # put back after
    leave_bundles_closed()
    assert vars(messages)[name](b"no archive at all", object()) == {}
    monkeypatch.setattr(messages, "_pull_and_store_message", lambda: None)
    with pytest.raises(SiteError, match=f"does not use {name}"):
        leave_bundles_closed()


@pytest.mark.parametrize("kind", list(TaskType))
def test_whatever_kind_of_task_the_server_asks_for_starts_no_other_program(
    kind: TaskType, tmp_path: Path, monkeypatch, capfd
) -> None:
    programs = write_programs(tmp_path / "programs")
    flowers = tmp_path / "flowers"
    flowers.mkdir()
    for name in TASK_TYPE_TO_COMMAND.values():  # what a server would like to have started
        (flowers / name).write_text("#!/bin/sh\necho code of the server\n")
        (flowers / name).chmod(0o700)
    monkeypatch.setenv("PATH", f"{programs}:{flowers}:/usr/bin:/bin")
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *args, **more: started.append(start(*args, **more))
    )
    # A certificate that is not there ends the site's own program before it calls a SuperNode.
    spec = ExecutionSpec(
        task_type=kind, task_id=1, runtime_api_address="127.0.0.1:1", token=kind.name,
        insecure=False, root_certificates_path=f"{tmp_path}/away.crt",
        runtime_dependency_install=True, parent_pid=None, suppress_output=False,
    )  # fmt: skip
    SubprocessExecutor().launch(spec)
    assert started[0].wait(timeout=60) == 1
    out, err = capfd.readouterr()
    assert "code of the server" not in out
    if kind is TaskType.CLIENT_APP:
        assert "Exit Code: 604" in err
    else:
        assert err == f"refused to start {kind}, which the server asked for\n"


def test_the_programs_stay_first_when_their_folder_is_odd(tmp_path: Path) -> None:
    programs = write_programs(tmp_path / "a 'site' of \"ours\"")
    found = shutil.which("flwr-agentapp", path=f"{programs}:/usr/bin")
    assert found == str(programs / "flwr-agentapp")
