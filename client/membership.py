"""A site's part in a federation, as processes of this machine that end with it.

    fundusgen site join -- guardian -- client.supernode -- flower-superexec -- client.clientapp

The guardian (`fundusgen.guardian`) ends all of them when this process ends, however it does.
"""

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import fundusgen
from client.watch import Watch
from fundusgen.environment import KEEP_MEMORY
from fundusgen.errors import RunError, SiteError
from fundusgen.site import SiteFolder
from fundusgen.storage import write_atomically

_GUARDIAN = Path(fundusgen.__file__).with_name("guardian.py")
_LOOK_S = 0.5
# The SuperNode takes its leave of the server before it ends; Flower gives it 5 s, then 3 s more.
_LEAVE_S = 10
_SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    "PYTHONUNBUFFERED": "1",
}


class Membership:
    """A SuperNode for a site folder, as a context manager.

    Guarantee: on leaving the context every process that was started has ended. If this process
    is killed, they end within about ten seconds by themselves.

    Args:
        site: The site folder; what Flower keeps goes to `flower/` in it.
        superlink: Host and port of the server.
        certificates: File with the authority's certificates; without one there is no TLS.
        private_key: The node key that the server knows; needs TLS.
        say: Takes each line that the operator should see.
    """

    def __init__(
        self,
        site: SiteFolder,
        superlink: str,
        *,
        certificates: Path | None,
        private_key: Path | None,
        say: Callable[[str], object],
    ) -> None:
        """Remember the settings; nothing is started before the context is entered."""
        self.site = site
        self.superlink = superlink
        self.certificates = certificates
        self.private_key = private_key
        self.home = site.path / "flower"
        self.log_file = self.home / "supernode.log"
        self._say = say
        self._stack = ExitStack()
        self._guardian: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start the SuperNode.

        Raises:
            SiteError: The folder cannot be written, or this site has joined already.
        """
        try:
            self.home.mkdir(mode=0o700, exist_ok=True)
            self._stack.enter_context(_only_one(self.home / "lock"))
            self._watch = Watch(self.superlink, self.site.log_file, self.log_file)
            self._start()
        except OSError as error:
            self._stack.close()
            raise SiteError(
                f"{error.filename or self.home} cannot be used: {error.strerror}",
                expected="a site folder that this user can write",
                remedy="Correct its permissions, or make room on its disk",
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the federation and end every process that was started."""
        with self._stack:
            if self._guardian is not None and self._guardian.stdin is not None:
                self._guardian.stdin.close()  # the guardian's sign to end everything
                self._guardian.wait()

    def follow(self) -> None:
        """Tell what happens, until the SuperNode ends.

        Raises:
            RunError: It has ended by itself; says why.
        """
        while self._guardian is not None and self._guardian.poll() is None:
            self._tell()
            time.sleep(_LOOK_S)
        self._tell()
        found, remedy = self._watch.why_ended()
        raise RunError(found, remedy=f"{remedy}. {self.log_file} says more")

    def _tell(self) -> None:
        for line in self._watch.news():
            self._say(line)

    def _start(self) -> None:
        node_config = self.home / "node.toml"
        path = json.dumps(str(self.site.path), ensure_ascii=False)
        write_atomically(node_config, f"site = {path}\n", mode=0o600)
        command = [sys.executable, "-P", "-m", "client.supernode", "--superlink", self.superlink]
        command += ["--port", str(_free_port()), "--node-config", str(node_config)]
        if self.certificates is None:
            command += ["--insecure"]
        else:
            command += ["--root-certificates", str(self.certificates)]
        if self.private_key is not None:
            command += ["--auth-supernode-private-key", str(self.private_key)]
        guardian = [sys.executable, "-I", "-S", str(_GUARDIAN), "--grace-s", str(_LEAVE_S), "--"]
        self.log_file.touch(mode=0o600)
        with self.log_file.open("ab") as log:
            self._guardian = subprocess.Popen(
                guardian + command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                cwd=self.home,
                start_new_session=True,  # Ctrl-C in a terminal is for us alone
            )

    def _environment(self) -> dict[str, str]:
        """The environment of all started processes: the operator's, without Flower's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
        # A hospital's proxy is for the server, not for the processes of this machine.
        direct = ",".join(filter(None, [kept.get("NO_PROXY"), "127.0.0.1", "localhost"]))
        own = {"NO_PROXY": direct, "no_proxy": direct, "FLWR_HOME": str(self.home)}
        return KEEP_MEMORY | kept | _SETTINGS | own


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SiteError(
                f"{path.parent.parent} has joined a federation already",
                expected="one `fundusgen site join` a site folder",
                remedy="End the other one first",
            ) from error
        yield


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
