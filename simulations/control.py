"""Speaks to a SuperLink's Control API: starts a run, asks for its state, follows its log.

The `flwr` command does the same, but a process of it costs a second of CPU for every question,
its run configuration cannot hold a quotation mark, and it exits 0 whether or not a run started.
Nothing else in the project touches these inner modules of Flower.
"""

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest, StreamLogsRequest
from flwr.proto.federation_config_pb2 import SimulationConfig
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab

from fundusgen.errors import RunError

COMPLETED = "finished:completed"


@dataclass(frozen=True)
class FlowerRun:
    """What Flower says about a run.

    Attributes:
        run_id: Flower's number of the run, in decimal.
        status: `pending`, `starting`, `running` or `finished:` with one of `completed`, `failed`
            and `stopped`.
        details: Flower's reason, of a run that failed.
    """

    run_id: str
    status: str
    details: str

    @property
    def finished(self) -> bool:
        """Whether the run has ended, well or not."""
        return self.status.startswith("finished")


class Control:
    """A connection to the Control API of a SuperLink on this machine, without TLS."""

    def __init__(self, port: int) -> None:
        """Connect to `port` of the loopback interface at the first request."""
        self._client = ControlHttpClient.from_server_address(
            f"127.0.0.1:{port}", insecure=True, root_certificates=None, interceptors=()
        )
        # A proxy of the environment must not be asked for our own machine.
        self._client._client = httpx.Client(timeout=30.0, trust_env=False)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def start(
        self,
        files: Mapping[str, Path],
        run_config: Mapping[str, str | int | float | bool],
        *,
        num_supernodes: int,
        cpus_per_client: int,
        gpus_per_client: float,
    ) -> str:
        """Bundle an app and start a run of it on the simulation runtime.

        Args:
            files: The app's files by relative POSIX path, `pyproject.toml` among them.
            run_config: Values for keys that the app's `[tool.flwr.app.config]` has.
            num_supernodes: Number of simulated sites, at least 1.
            cpus_per_client: CPU cores that one working client occupies, at least 1.
            gpus_per_client: Share of a GPU that one working client occupies, at least 0.

        Returns:
            The run's id.

        Raises:
            RunError: The app cannot be bundled, or the SuperLink refuses it.
        """
        try:
            content = build_fab_from_files(files)[0]
        except ValueError as error:
            raise RunError(
                f"Flower cannot bundle the app: {error}",
                remedy="Correct the app's pyproject.toml",
            ) from error
        request = StartRunRequest(
            fab=fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {})),
            override_config=user_config_to_proto(dict(run_config)),
            override_federation_config=SimulationConfig(
                num_supernodes=num_supernodes,
                client_resources_num_cpus=cpus_per_client,
                client_resources_num_gpus=gpus_per_client,
            ),
        )
        response = self._client.StartRun(request)
        if not response.HasField("run_id"):
            raise RunError(
                "Flower's SuperLink did not accept the run",
                expected=f"run configuration with keys of the app: {', '.join(run_config)}",
                remedy="Compare them with [tool.flwr.app.config] in the app's pyproject.toml",
            )
        return str(response.run_id)

    def state(self, run_id: str) -> FlowerRun:
        """Ask what a run is doing; a few milliseconds.

        Raises:
            httpx.HTTPError: The SuperLink does not answer.
        """
        response = self._client.ListRuns(ListRunsRequest(run_id=int(run_id)))
        status = response.run_dict[int(run_id)].status
        words = [word for word in (status.status, status.sub_status) if word]
        return FlowerRun(run_id, ":".join(words), status.details)

    def follow_log(self, run_id: str, path: Path) -> threading.Thread:
        """Append a run's log to a file until the run has ended.

        Args:
            run_id: The run.
            path: The file, which the returned thread opens and closes: whoever is interrupted
                while waiting for it takes nothing away from it.

        Returns:
            The started thread. It ends with the run, or when the connection breaks.
        """

        def copy() -> None:
            with path.open("a", encoding="utf-8") as sink:
                try:
                    for part in self._client.StreamLogs(StreamLogsRequest(run_id=int(run_id))):
                        sink.write(part.log_output)
                        sink.flush()
                except (httpx.HTTPError, ValueError, RuntimeError) as error:
                    sink.write(f"[the log of Flower's run broke off: {error!r}]\n")

        thread = threading.Thread(target=copy, name=f"log of run {run_id}", daemon=True)
        thread.start()
        return thread
