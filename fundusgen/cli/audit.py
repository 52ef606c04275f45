"""`fundusgen audit ledger`: check what a site has spent, offline and on a copy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric import ec
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from fundusgen.errors import FundusgenError, LedgerError, SiteError
from fundusgen.federation.payload import receipts_in
from fundusgen.privacy.audit import Audit, Evidence, audit_ledger
from fundusgen.privacy.keys import public_keys, read_public_key
from fundusgen.privacy.ledger_file import head_file
from fundusgen.privacy.ledger_salvage import Salvage, lost_ledger, salvage
from fundusgen.privacy.outbox import OUTBOX, Outbox
from fundusgen.privacy.policy import Policy, load_policy
from fundusgen.privacy.receipt_folder import scan_receipts
from fundusgen.privacy.receipts import Receipt
from fundusgen.report.audit_json import write_audit_json
from fundusgen.report.audit_page import write_audit_page
from fundusgen.run_folder import RunFolder
from fundusgen.site import SiteFolder

audit_app = typer.Typer(help="Check what can be checked without trust.", no_args_is_help=True)
FOUND = 2
_SHOWN = 20
# A ledger that grows while it is read is read again, so often.
_READINGS = 5
_LEDGER = "ledger.db"


@audit_app.command()
def ledger(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A ledger.db, or the folder that it is in.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where audit.html and audit.json go.")],
    receipts: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Receipts that a server keeps: RUN/receipts; may be repeated."
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The policy; policy.yaml beside the ledger if absent."),
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="node.pub of the site; keys/ beside the ledger, or known-sites/ of the run, if "
            "absent; may be repeated.",
        ),
    ] = None,
    site: Annotated[
        str | None, typer.Option(metavar="NAME", help="The site, where it is not clear.")
    ] = None,
) -> None:
    """Check a ledger against itself, its receipts and its policy.

    Works offline and changes nothing: give it the site folder, or a copy of ledger.db with
    ledger.db.head and, where there is one, ledger.db-wal. Writes audit.html, to read, and
    audit.json, for programs.

    Exit status: 0 only if all that was checked holds, 2 if there are findings, 1 if nothing could
    be checked.
    """
    file = path / _LEDGER if path.is_dir() else path
    for _ in range(_READINGS):
        found = _ledger_at(file)
        name, evidence = _evidence(file, found, receipts, policy, key, site)
        # What a client has written meanwhile would be in the one and not in the other.
        if _ledger_at(file).last_digest == found.last_digest:
            break
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("ledger", total=1.0)
        made = audit_ledger(
            found,
            evidence,
            site=name,
            progress=lambda what, share: bar.update(task, description=what, completed=share),
        )
    try:
        write_audit_json(out / "audit.json", made)
        write_audit_page(out / "audit.html", made)
    except OSError as error:
        raise SiteError(
            f"{out} cannot be written: {error.strerror or error}",
            expected="a folder for audit.html and audit.json",
            remedy="Choose another --out",
        ) from error
    _print(made, out, Console(highlight=False))
    if not made.holds:
        raise typer.Exit(FOUND)


def _evidence(
    file: Path,
    ledger: Salvage,
    receipts: list[Path] | None,
    policy: Path | None,
    key: list[Path] | None,
    site: str | None,
) -> tuple[str, Evidence]:
    """The site's name, and everything that its ledger is held against."""
    all_receipts, unreadable, studies, key_folders = _all_receipts(receipts)
    name = site or _site_name(file, ledger, all_receipts or [])
    own = None
    if all_receipts is not None:
        own = tuple(receipt for receipt in all_receipts if receipt.site == name)
    several = len({receipt.site for receipt in all_receipts or []}) > 1
    return name, Evidence(
        receipts=own,
        unreadable=tuple(
            (f"{where.parent.name}/{where.name}", why)
            for where, why in unreadable
            if where.parent.name == name or not several
        ),
        studies=studies,
        keys=tuple(_keys(key, file, key_folders, name)),
        replies=_replies(file),
        policy=_policy(policy, file),
    )


def _ledger_at(file: Path) -> Salvage:
    if file.is_file():
        return salvage(file)
    if head_file(file).exists():
        return lost_ledger(file)
    raise LedgerError(
        f"There is no ledger at {file}",
        expected="a ledger.db, a copy of one, or the site folder that it is in",
        remedy="Check the path. A site that was never asked has no ledger yet",
    )


def _all_receipts(
    folders: list[Path] | None,
) -> tuple[list[Receipt] | None, list[tuple[Path, str]], frozenset[str], list[Path]]:
    """Receipts, what cannot be read, studies they should be complete for, and folders of keys."""
    if folders is None:
        return None, [], frozenset(), []
    found: dict[str, Receipt] = {}
    unreadable: list[tuple[Path, str]] = []
    studies: set[str] = set()
    keys: list[Path] = []
    for folder in folders:
        receipts, wrong = scan_receipts(folder)
        found |= {receipt.to_json(): receipt for receipt in receipts}
        unreadable += wrong
        for parent in (folder.resolve().parent, folder.resolve().parent.parent):
            run = RunFolder(parent)
            if run.receipts in (folder.resolve(), folder.resolve().parent):
                keys.append(run.known_sites)
                try:
                    studies.add(run.study().study_hash)
                except FundusgenError:
                    continue
    return list(found.values()), unreadable, frozenset(studies), keys


def _site_name(file: Path, ledger: Salvage, receipts: Sequence[Receipt]) -> str:
    """The site that a ledger belongs to, by its folder or by the receipts that it knows."""
    folder = SiteFolder(file.parent)
    if folder.settings_file.is_file():
        return folder.settings().name
    known = {row.receipt_digest for row in ledger.rows if row.receipt_digest}
    names = {receipt.site for receipt in receipts if receipt.digest in known}
    if len(names) != 1:
        names = {receipt.site for receipt in receipts}
    if len(names) == 1:
        return names.pop()
    if not receipts:
        return "this site"
    raise SiteError(
        f"The receipts are of {', '.join(sorted(names))}, and the ledger does not say whose it is",
        expected="one of them",
        remedy="Give --site NAME",
    )


def _keys(
    given: list[Path] | None, file: Path, folders: list[Path], name: str
) -> list[ec.EllipticCurvePublicKey]:
    """The keys that were given; else the site's own; else those that the server knows."""
    if given:
        return [read_public_key(path) for path in given]
    if own := public_keys(file.parent / "keys"):
        return own
    paths = [folder / f"{name}.pub" for folder in folders]
    return [read_public_key(path) for path in paths if path.is_file()]


def _replies(file: Path) -> dict[tuple[str, str], Receipt | None] | None:
    outbox = Outbox(file.parent / OUTBOX)
    return receipts_in(outbox) if outbox.folder.is_dir() else None


def _policy(given: Path | None, file: Path) -> Policy | None:
    beside = file.parent / "policy.yaml"
    if given is None and not beside.is_file():
        return None
    return load_policy(given or beside)


def _print(audit: Audit, out: Path, console: Console) -> None:
    cap = f" of {audit.policy.max_epsilon:g}" if audit.policy else ""
    console.print(
        f"{audit.site}: epsilon {audit.totals.used:.3f}{cap} at delta {audit.delta:g}, "
        f"{_many(len(audit.ledger.rows), 'event')} of {_many(len(audit.studies), 'study')}",
        style="bold",
    )
    checks = Table.grid(padding=(0, 2))
    for check in audit.checks:
        if check.faults:
            checks.add_row("[red]NOT SO[/]", escape(check.claim))
        elif check.not_checked:
            checks.add_row("[yellow]not checked[/]", escape(f"{check.claim} ({check.not_checked})"))
        else:
            checks.add_row("[green]holds[/]", escape(check.claim))
    console.print(checks)
    for found in audit.faults[:_SHOWN]:
        console.print()
        console.print(escape(_sentence(found.found)), style="red")
        console.print(escape(_sentence(f"Expected: {found.expected.rstrip('.')}")))
        console.print(escape(found.meaning))
    if len(audit.faults) > _SHOWN:
        console.print(f"\nand {len(audit.faults) - _SHOWN} more, on the page")
    if audit.notices:
        console.print(f"\n{len(audit.notices)} things to know are on the page.")
    console.print(f"\n{out / 'audit.html'}")


def _many(number: int, thing: str) -> str:
    plural = f"{thing[:-1]}ies" if thing.endswith("y") else f"{thing}s"
    return f"{number:,} {thing if number == 1 else plural}"


def _sentence(text: str) -> str:
    """As a sentence for a terminal; what it must not obey is shown as a question mark."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return f"{shown[:1].upper()}{shown[1:]}" + ("" if shown.endswith(".") else ".")
