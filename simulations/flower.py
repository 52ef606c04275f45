"""Starts, watches and ends Flower's simulation runtime as processes of our own.

`flwr run` on its built-in local connection leaves a SuperLink behind that outlives the command,
and takes fixed ports and the user's own Flower folder. Here the SuperLink is a child on a free
port with a folder of its own, and a guardian process (`fundusgen.guardian`) ends all of them,
Ray's included, when the run is over, when it is interrupted and when this process is killed.

    fundusgen simulate -- guardian -- flower-superlink -- flower-superexec -- flwr-simulation -- ray
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

import fundusgen
from fundusgen.errors import RunError
from simulations.control import COMPLETED, Control, FlowerRun
from simulations.interrupts import Interrupts

_GUARDIAN = Path(fundusgen.__file__).with_name("guardian.py")
_START_LIMIT_S = 60.0
_STOP_LIMIT_S = 20.0
_PORT_TRIES = 5
_LOG_LINES = 12
# How Flower begins the details of a run whose app raised an error.
_APP_RAISED = "Simulation failed with exception: "
_ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

# The values stay in force below this process, in every worker of Ray.
_SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # 256 MiB of shared memory instead of a third of the machine: weights are all that passes.
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(2**28),
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "PYTHONUNBUFFERED": "1",
}


class LocalFlower:
    """A SuperLink of our own on this machine, as a context manager.

    On leaving the context every process it started has ended, whatever state it was in. If this
    process is killed, they end within about two seconds by themselves.

    Args:
        home: Flower's folder (`FLWR_HOME`) for this runtime, created if missing; the user's own
            is not touched. Holds `superlink.log`.
        log_file: File that the log of every run is appended to.
        environment: Variables for all started processes, for simulated clients too.

    Raises:
        RunError: Flower is not installed, no port is free, or the SuperLink does not start.
    """

    def __init__(
        self, home: Path, *, log_file: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """Remember the folders; nothing is started before the context is entered."""
        self.home = home.absolute()
        self.log_file = log_file.absolute()
        self.port = 0
        self._environment = dict(environment or {})
        self._superlink_log = self.home / "superlink.log"
        self._start_of_log = 0
        self._guardian: subprocess.Popen[bytes] | None = None
        self._control: Control | None = None
        self._interrupts = Interrupts()

    def __enter__(self) -> Self:
        """Start the SuperLink and wait until it answers."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self._interrupts.listen()
        try:
            for _ in range(_PORT_TRIES):
                if self._start(_free_port()):
                    return self
        except BaseException:
            self._interrupts.leave()
            self._stop()
            raise
        self._interrupts.leave()
        raise RunError(
            f"no port for Flower's SuperLink: {_PORT_TRIES} free ports were taken by others "
            "before it could use them",
            remedy="Try again, or end the programs that take ports of 127.0.0.1",
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End every process that was started."""
        self._interrupts.leave()
        self._stop()

    def run(
        self,
        files: Mapping[str, Path],
        *,
        run_config: Mapping[str, str | int | float | bool],
        num_supernodes: int,
        cpus_per_client: int = 1,
        gpus_per_client: float = 0.0,
        on_tick: Callable[[], None] = lambda: None,
        poll_s: float = 0.5,
    ) -> FlowerRun:
        """Run an app to its end.

        Args:
            files: The app's files by relative path, from `simulations.bundle`.
            run_config: Values for keys of the app's `[tool.flwr.app.config]`.
            num_supernodes: Number of simulated sites, at least 1.
            cpus_per_client: CPU cores that one working client occupies; as many clients work at
                once as the machine has cores for.
            gpus_per_client: Share of a GPU that one working client occupies.
            on_tick: Called about every `poll_s` seconds while the run goes on, and once after it;
                what it raises ends the run.
            poll_s: Pause between two looks, in seconds.

        Returns:
            The run, which has completed.

        Raises:
            RunError: The run failed or was stopped, or a process of Flower ended early. Holds the
                last lines of the log.
        """
        control = self._require_control()
        try:
            run_id = control.start(
                files,
                run_config,
                num_supernodes=num_supernodes,
                cpus_per_client=cpus_per_client,
                gpus_per_client=gpus_per_client,
            )
        except httpx.HTTPError as error:
            raise self._broken("Flower's SuperLink did not take the run") from error
        start_of_log = self.log_file.stat().st_size if self.log_file.exists() else 0
        log = control.follow_log(run_id, self.log_file)
        while log.is_alive():
            log.join(poll_s)
            self._check_superlink()
            on_tick()
        run = self._wait_finished(control, run_id, on_tick, poll_s)
        if run.status != COMPLETED:
            raise self._failed(run, start_of_log)
        return run

    def _wait_finished(
        self, control: Control, run_id: str, on_tick: Callable[[], None], poll_s: float
    ) -> FlowerRun:
        """Ask for the run's end, which follows that of its log at once."""
        while True:
            try:
                run = control.state(run_id)
            except httpx.HTTPError as error:
                raise self._broken("Flower's SuperLink does not answer") from error
            if run.finished:
                return run
            self._check_superlink()
            on_tick()
            time.sleep(poll_s)

    def _start(self, port: int) -> bool:
        """Start the SuperLink; return whether it got the port."""
        environment = self._full_environment()
        command = shutil.which("flower-superlink", path=environment["PATH"])
        if command is None:
            raise RunError(
                "the command flower-superlink of Flower is not there",
                expected=f"in {Path(sys.executable).parent}",
                remedy="Install the package with its dependencies again",
            )
        scratch = tempfile.mkdtemp(prefix="fg-")  # short: Ray puts socket paths below it
        guardian = [sys.executable, "-I", "-S", str(_GUARDIAN), "--remove", scratch, "--"]
        superlink = [command, "--insecure", "--simulation", "--isolation", "subprocess"]
        superlink += ["--host", "127.0.0.1", "--port", str(port)]
        with self._superlink_log.open("ab") as log:
            self._start_of_log = log.tell()
            self._guardian = subprocess.Popen(
                guardian + superlink,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment | {"RAY_TMPDIR": scratch},
                cwd=self.home,
                start_new_session=True,  # Ctrl-C in a terminal is for us alone
            )
        if self._answers(port):
            self.port = port
            self._control = Control(port)
            return True
        self._stop()
        text = self._superlink_log.read_bytes()[self._start_of_log :].decode(errors="replace")
        if "address already in use" in text:
            return False
        raise self._broken("Flower's SuperLink does not start")

    def _answers(self, port: int) -> bool:
        """Wait for the SuperLink; return whether it, and no other program, has the port."""
        deadline = time.monotonic() + _START_LIMIT_S
        with httpx.Client(trust_env=False, timeout=1.0) as client:
            while time.monotonic() < deadline and self._alive():
                try:
                    if client.get(f"http://127.0.0.1:{port}/health").is_success:
                        # One that did not get the port ends at once: it may not be ours.
                        time.sleep(0.1)
                        return self._alive()
                except httpx.HTTPError:
                    pass
                time.sleep(0.05)
        return False

    def _full_environment(self) -> dict[str, str]:
        """The environment of all started processes: the user's, without Flower's and Ray's."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "RAY_"))}
        path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
        hosts = ",".join(filter(None, [kept.get("NO_PROXY"), "127.0.0.1", "localhost"]))
        own = {"PATH": path, "NO_PROXY": hosts, "no_proxy": hosts, "FLWR_HOME": str(self.home)}
        return kept | _SETTINGS | own | self._environment

    def _alive(self) -> bool:
        return self._guardian is not None and self._guardian.poll() is None

    def _check_superlink(self) -> None:
        self._interrupts.check()
        if not self._alive():
            raise self._broken("Flower's SuperLink ended during the run")

    def _require_control(self) -> Control:
        if self._control is None:
            raise RunError("Flower is not started", remedy="Use LocalFlower in a `with` statement")
        return self._control

    def _failed(self, run: FlowerRun, start_of_log: int) -> RunError:
        found = f"the run ended as '{run.status}'"
        if run.details.startswith(_APP_RAISED):  # then its message is all there is to say
            found += f": {run.details.removeprefix(_APP_RAISED)}"
        else:
            found += (
                f" ({run.details}). The log ends:\n{_last_lines(self.log_file, start_of_log)}\n"
            )
        remedy = f"Read {self.log_file}, correct the cause and run again"
        return RunError(found, expected=COMPLETED, remedy=remedy)

    def _broken(self, found: str) -> RunError:
        lines = _last_lines(self._superlink_log, self._start_of_log)
        return RunError(
            f"{found}. Its log ends:\n{lines}\n",
            remedy=f"Read {self._superlink_log}, correct the cause and run again",
        )

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._guardian is None:
            return
        guardian, self._guardian = self._guardian, None
        assert guardian.stdin is not None  # noqa: S101
        guardian.stdin.close()  # the guardian's sign to end everything
        try:
            guardian.wait(timeout=_STOP_LIMIT_S)
        except subprocess.TimeoutExpired as error:
            raise RunError(
                f"Flower's processes did not end within {_STOP_LIMIT_S:.0f} s",
                remedy=f"End process {guardian.pid} and its children",
            ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _last_lines(log: Path, start: int) -> str:
    """The end of a log from an offset in bytes on, without terminal colours, indented."""
    try:
        text = log.read_bytes()[start:].decode(errors="replace")
    except OSError:
        return "    (no log)"
    lines = [_ANSI_COLOUR.sub("", line) for line in text.splitlines()]
    shown = [line for line in lines if line.strip() and "uvicorn." not in line]
    return "\n".join(f"    {line}" for line in shown[-_LOG_LINES:])
