"""`fundusgen site join`: a hospital takes part in the studies of a server."""

import datetime
import re
import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from cryptography import x509

from client.membership import Membership
from fundusgen.code import code_hash
from fundusgen.errors import SiteError
from fundusgen.privacy.keys import PRIVATE_KEY, signing_key
from fundusgen.privacy.policy import Policy
from fundusgen.site import SiteFolder

_ADDRESS = re.compile(
    r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?):([0-9]{1,5})"
)
_THIS_MACHINE = re.compile(r"localhost|127(?:\.[0-9]{1,3}){3}|\[::1\]")
_LAST_PORT = 65535


def join(
    folder: Annotated[Path, typer.Argument(help="The site folder.")],
    superlink: Annotated[str, typer.Option(help="The server, as HOST:PORT.")],
    root_certificates: Annotated[
        Path | None, typer.Option(help="ca.crt, by which the study lead's server is known.")
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="No TLS and no key; for a server on this machine."),
    ] = False,
) -> None:
    """Take part in a federation, with the code that is installed here, until Ctrl-C.

    What the server sends is data, never code that is run. What happens is shown here and logged
    in the site folder.
    """
    site = SiteFolder(folder.expanduser().resolve())
    settings, policy = site.settings(), site.policy()
    signing_key(site.keys)
    host = _require_address(superlink)
    certificates = _certificates(root_certificates, insecure, host)
    typer.echo(f"{settings.name}, with the code {code_hash()}")
    _warn_of_refusals(policy, folder)
    signal.signal(signal.SIGTERM, _interrupt)
    membership = Membership(
        site,
        superlink,
        certificates=certificates,
        private_key=None if insecure else site.keys / PRIVATE_KEY,
        say=typer.echo,
    )
    try:
        with membership:
            membership.follow()
    except KeyboardInterrupt:
        typer.echo(f"{settings.name} has left; its ledger keeps what was spent")


def _require_address(address: str) -> str:
    """The host of an address, after making sure that it is one."""
    parts = _ADDRESS.fullmatch(address)
    if parts is None or not 0 < int(parts[2]) <= _LAST_PORT:
        raise SiteError(
            f"The address '{address}' of the server cannot be used",
            expected="HOST:PORT, such as study.example.org:8443, without https://",
            remedy="Ask the study lead for the server's address",
        )
    return parts[1]


def _certificates(path: Path | None, insecure: bool, host: str) -> Path | None:
    """The authority's certificates, or nothing where the server is on this machine."""
    if insecure:
        if path is not None:
            raise SiteError(
                "Both --insecure and --root-certificates are given",
                expected="one of them",
                remedy="Leave out --insecure",
            )
        if _THIS_MACHINE.fullmatch(host) is None:
            raise SiteError(
                f"--insecure is given for {host}, which is another machine",
                expected="TLS and a registered key, without which anyone can be the server",
                remedy="Give --root-certificates instead",
            )
        return None
    if path is None:
        raise SiteError(
            "No certificate is given",
            expected="--root-certificates ca.crt, which the study lead hands out",
            remedy="Ask the study lead for it",
        )
    _require_certificate(path)
    return path.expanduser().resolve()


def _require_certificate(path: Path) -> None:
    try:
        found = x509.load_pem_x509_certificates(path.expanduser().read_bytes())
    except (OSError, ValueError) as error:
        raise SiteError(
            f"{path} cannot be read as a certificate: {' '.join(str(error).split())}",
            expected="certificates in PEM, such as ca.crt of the study lead",
            remedy="Ask the study lead for the file again",
        ) from error
    last = max(certificate.not_valid_after_utc for certificate in found)
    if last < datetime.datetime.now(datetime.UTC):
        raise SiteError(
            f"The certificate {path} was valid until {last:%Y-%m-%d}",
            expected="one that is valid",
            remedy="Ask the study lead for the new one, and look at this machine's clock",
        )


def _warn_of_refusals(policy: Policy, folder: Path) -> None:
    """Say at once what would otherwise be refused round by round."""
    if not policy.studies:
        typer.echo(
            "no study is approved here yet, so all are refused: "
            f"fundusgen site approve STUDY.yaml --site {folder}"
        )
    if policy.code != "any" and code_hash() not in policy.code:
        typer.echo(
            "this code is not approved here, so all studies are refused: "
            f"fundusgen site approve-code {folder}"
        )


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """End as Ctrl-C does when a service manager ends us."""
    raise KeyboardInterrupt
