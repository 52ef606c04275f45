"""The process that keeps a site in a federation: Flower's SuperNode, closed where it is open.

    python -P -m client.supernode --superlink HOST:PORT ...   (the options of flower-supernode)

Flower's SuperNode starts its helpers by bare name, and lets the server choose which: a run of the
kind `agent` is answered by `flwr-agentapp`, which runs the server's code as well. So every such
name is taken here: `flwr-clientapp` is the site's own, the others refuse. It also tells the
server, to the microsecond, how long each answer took; that depends on patients, and is left out. It
follows the server's redirects to any host, of the hospital's own network too, and unpacks a part of
the server's bundle: neither is done here.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND, TaskType
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.utils import get_flwr_home
from flwr.supernode import fleet_http_connection as connection
from flwr.supernode import start_client_internal as messages

from client.clientapp import own_code_only, require_parts
from fundusgen.errors import SiteError
from fundusgen.storage import write_atomically

_ANSWERING = TASK_TYPE_TO_COMMAND[TaskType.CLIENT_APP]
_DURATIONS = "clientapp_runtime_list"
_CONFIGURATION = "get_fused_config_from_fab"
_SUPEREXEC = "from flwr.supercore.cli import flower_superexec; flower_superexec()"


def main() -> None:
    """Run the SuperNode until it is ended."""
    from flwr.supernode.cli import flower_supernode
    from flwr.supernode.runtime import run_clientapp

    try:
        # Of use in the process of every answer; here, the operator sees that it cannot be done.
        own_code_only(run_clientapp)
        hide_durations()
        stay_with_the_server()
        leave_bundles_closed()
        programs = write_programs(get_flwr_home() / "programs")
    except (SiteError, OSError) as error:
        sys.exit(f"error: {error}")
    os.environ["PATH"] = os.pathsep.join([str(programs), os.environ.get("PATH", os.defpath)])
    flower_supernode()


def hide_durations() -> None:
    """Leave out of what is sent how long the client app took.

    Guarantee: no measurement of the client app is sent.
    Edge cases: the server still sees when a reply arrives.

    Raises:
        SiteError: This version of Flower works in another way.
    """
    require_parts(connection, "http_request_response", ("PushMessagesRequest", _DURATIONS))
    vars(connection)["PushMessagesRequest"] = _request_without_durations


def stay_with_the_server() -> None:
    """Take a redirect for a failure.

    Guarantee: what the server answers never makes this process call another host or path.

    Raises:
        SiteError: This version of Flower works in another way.
    """
    make = ProtobufClient.__init__

    def make_without_redirects(self: ProtobufClient, *arguments: Any, **settings: Any) -> None:
        make(self, *arguments, **settings)
        self._client.follow_redirects = False

    ProtobufClient.__init__ = make_without_redirects  # type: ignore[method-assign]
    try:
        stays = ProtobufClient("http://127.0.0.1")._client.follow_redirects is False
    except AttributeError:
        stays = False
    if not stays:
        raise SiteError(
            "the client of this Flower follows redirects in another way",
            expected="flwr 1.41, where that can be turned off",
            remedy="Install the version of flwr that fundusgen's constraints.txt names",
        )


def leave_bundles_closed() -> None:
    """Do not read the configuration in the server's bundle, which nothing here uses.

    Guarantee: no byte of a bundle is unpacked or parsed by this process.

    Raises:
        SiteError: This version of Flower works in another way.
    """
    require_parts(messages, "_pull_and_store_message", (_CONFIGURATION,))
    vars(messages)[_CONFIGURATION] = lambda *_: {}


def write_programs(folder: Path) -> Path:
    """Write the programs that Flower starts by bare name.

    Guarantee: with this folder first on `PATH`, no kind of task of this Flower starts anything
    but `client.clientapp`.

    Args:
        folder: Where they go; made if absent.

    Returns:
        The folder.
    """
    python = shlex.quote(sys.executable)
    for command in TASK_TYPE_TO_COMMAND.values():
        told = f"refused to start {command}, which the server asked for"
        _write_program(folder / command, f"echo {shlex.quote(told)} >&2\nexit 1")
    _write_program(folder / _ANSWERING, f'exec {python} -P -m client.clientapp "$@"')
    superexec = f'exec {python} -P -c {shlex.quote(_SUPEREXEC)} "$@"'
    _write_program(folder / "flower-superexec", superexec)
    return folder


def _write_program(path: Path, text: str) -> None:
    write_atomically(path, f"#!/bin/sh\n{text}\n", mode=0o700)


def _request_without_durations(**fields: Any) -> PushMessagesRequest:
    return PushMessagesRequest(**{k: v for k, v in fields.items() if k != _DURATIONS})


if __name__ == "__main__":
    main()
