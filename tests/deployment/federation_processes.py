"""A federation on this machine as it is in the field: own processes, TLS, registered node keys.

The commands are those of docs/deployment.md, with ports and folders of the test. Every process
runs below a guardian, so that an interrupted test leaves none behind.
"""

import contextlib
import datetime
import ipaddress
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

GUARDIAN = Path(__file__).parents[2] / "fundusgen" / "guardian.py"
BIN = Path(sys.executable).parent
SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",  # a client process a message: a second each
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "PYTHONUNBUFFERED": "1",
}


@dataclass
class Federation:
    """A SuperLink with TLS on loopback and SuperNodes that know its certificate.

    Attributes:
        folder: Everything goes below it: `certificates`, `server`, `logs`, one home a node.
        address: The SuperLink's host and port, once the context is entered.
    """

    folder: Path
    address: str = ""
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        """Make the certificates and start the SuperLink."""
        certificates = self.folder / "certificates"
        make_certificates(certificates)
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.home("server").mkdir(parents=True)
        (self.home("server") / "config.toml").write_text(
            '[superlink]\ndefault = "study"\n\n[superlink.study]\n'
            f'address = "{self.address}"\nroot-certificates = "{certificates}/ca.crt"\n'
        )
        tls = {"ca-certfile": "ca.crt", "certfile": "server.pem", "keyfile": "server.key"}
        command = ["flower-superlink", "--host", "127.0.0.1", "--port", str(port)]
        for option, name in tls.items():
            command += [f"--ssl-{option}", str(certificates / name)]
        self._start("server", [*command, "--enable-supernode-auth"])
        self._wait_healthy(certificates / "ca.crt")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End every process."""
        for name in list(self._processes):
            self.stop_node(name)

    def home(self, name: str) -> Path:
        """The `FLWR_HOME` of a node, or of the `server`."""
        return self.folder / f"{name}-home"

    def log(self, name: str) -> str:
        """What a node, or the `server`, has printed."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def register(self, public_key: Path, name: str) -> None:
        """Allow the holder of a key to take part."""
        answer = self.flwr("supernode", "register", str(public_key), "study", "--name", name)
        assert answer["success"], answer

    def start_node(
        self, name: str, *, site: Path, private_key: Path, environment: Mapping[str, str]
    ) -> None:
        """Start a SuperNode for a site folder."""
        self.home(name).mkdir(parents=True, exist_ok=True)
        command = ["flower-supernode", "--superlink", self.address, "--port", str(free_port())]
        command += ["--root-certificates", str(self.folder / "certificates" / "ca.crt")]
        command += ["--auth-supernode-private-key", str(private_key)]
        command += ["--node-config", f'site="{site}"']
        self._start(name, command, environment)

    def join_site(self, name: str, site: Path) -> None:
        """Let a site take part as its operator does, with `fundusgen site join`."""
        self._start(name, self.join_command(site))

    def join_command(self, site: Path) -> list[str]:
        """The operator's one command."""
        ca = self.folder / "certificates" / "ca.crt"
        command = [str(BIN / "fundusgen"), "site", "join", str(site)]
        return [*command, "--superlink", self.address, "--root-certificates", str(ca)]

    def interrupt(self, name: str, number: int) -> int:
        """Send a signal to a process that was started; return its exit status."""
        guardian = self._processes.pop(name)
        children = Path(f"/proc/{guardian.pid}/task/{guardian.pid}/children")
        with guardian:  # closes its standard input too, after the signal
            os.kill(int(children.read_text().split()[0]), number)
            return guardian.wait(timeout=30)

    def wait_logged(self, name: str, text: str, *, limit_s: float = 60) -> None:
        """Wait until a process has printed something."""
        deadline = time.monotonic() + limit_s
        while text not in self.log(name):
            assert time.monotonic() < deadline, f"no '{text}' of {name}:\n{self.log(name)}"
            time.sleep(0.1)

    def stop_node(self, name: str) -> None:
        """End a node, or the `server`, with all its processes."""
        guardian = self._processes.pop(name)
        assert guardian.stdin is not None
        guardian.stdin.close()
        guardian.wait(timeout=20)

    def run(self, app: Path, run_config: str) -> str:
        """Start a run of an app and return its id."""
        answer = self.flwr("run", str(app), "study", "--run-config", run_config)
        assert answer["success"], answer
        return str(answer["run-id"])

    def wait_finished(self, run_id: str, *, limit_s: float) -> dict[str, object]:
        """Wait for a run's end and return Flower's record of it."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            runs = self.flwr("list", "study", "--run-id", run_id)["runs"]
            assert isinstance(runs, list)
            if str(runs[0]["status"]).startswith("finished"):
                return dict(runs[0])
            time.sleep(1)
        raise AssertionError(
            f"the run did not end within {limit_s} s:\n{self.log('server')[-3000:]}"
        )

    def flwr(self, *arguments: str) -> dict[str, object]:
        """Run a `flwr` command as the study lead and return its answer."""
        done = subprocess.run(
            [str(BIN / "flwr"), *arguments, "--format", "json"],
            env=self._environment("server", {}),
            capture_output=True,
            text=True,
            timeout=120,
        )
        start = done.stdout.find("{")
        assert start >= 0, done.stdout + done.stderr
        answer = json.loads(done.stdout[start:])
        assert isinstance(answer, dict)
        return answer

    def _start(
        self, name: str, command: list[str], environment: Mapping[str, str] | None = None
    ) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-I", "-S", str(GUARDIAN), "--", *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(name, environment or {}),
                start_new_session=True,
            )

    def _environment(self, name: str, more: Mapping[str, str]) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("FLWR_")}
        path = f"{BIN}{os.pathsep}{kept.get('PATH', os.defpath)}"
        home = {"FLWR_HOME": str(self.home(name)), "NO_PROXY": "127.0.0.1", "PATH": path}
        return kept | SETTINGS | home | dict(more)

    def _wait_healthy(self, ca: Path) -> None:
        context = ssl.create_default_context(cafile=str(ca))
        deadline = time.monotonic() + 60
        with httpx.Client(verify=context, trust_env=False, timeout=2) as client:
            while time.monotonic() < deadline:
                try:
                    if client.get(f"https://{self.address}/health").is_success:
                        return
                except httpx.HTTPError:
                    time.sleep(0.1)
        raise AssertionError(f"the SuperLink did not start:\n{self.log('server')}")


def make_certificates(folder: Path) -> None:
    """Write `ca.crt`, `server.key` and `server.pem` for this machine's loopback."""
    folder.mkdir(parents=True)
    ca_key, server_key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
    server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now = datetime.datetime.now(datetime.UTC)

    def certificate(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    authority = certificate(ca_name, ca_key).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    server = certificate(server_name, server_key).add_extension(
        x509.SubjectAlternativeName(names), critical=False
    )
    for name, built in (("ca.crt", authority), ("server.pem", server)):
        signed = built.sign(ca_key, hashes.SHA384())
        (folder / name).write_bytes(signed.public_bytes(Encoding.PEM))
    write_private_key(folder / "server.key", server_key, PrivateFormat.PKCS8)


def make_node_key(folder: Path) -> tuple[Path, Path]:
    """Write an EC P-384 key pair as `ssh-keygen -t ecdsa -b 384` does; return both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP384R1())
    private, public = folder / "node", folder / "node.pub"
    write_private_key(private, key, PrivateFormat.OpenSSH)
    public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return private, public


def write_private_key(path: Path, key: ec.EllipticCurvePrivateKey, form: PrivateFormat) -> None:
    path.write_bytes(key.private_bytes(Encoding.PEM, form, NoEncryption()))
    path.chmod(0o600)


def processes_of(home: Path) -> list[int]:
    """Every process whose `FLWR_HOME` is a folder."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"FLWR_HOME={home}".encode() in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
