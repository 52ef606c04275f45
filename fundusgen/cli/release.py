"""`fundusgen release` and `fundusgen verify`: the last door, and how others check it."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fundusgen import __version__
from fundusgen.errors import RunError, StudyError
from fundusgen.models.generator import MODEL_FILE, WEIGHTS_FILE, Generator
from fundusgen.privacy.keys import make_keys, signing_key
from fundusgen.release.bundle import (
    PUBLIC_KEY,
    public_pem,
    read_public_pem,
    require_free,
    verify_bundle,
    write_bundle,
)
from fundusgen.release.card import as_page, as_text, card_of
from fundusgen.release.gate import Check, Gate, checks
from fundusgen.release.receipt_proof import proofs_of
from fundusgen.report.evaluation_values import FORMAT
from fundusgen.report.pictures import draw_sheet
from fundusgen.run_folder import RunFolder
from fundusgen.settings_file import read_settings
from fundusgen.study import Study, describe
from fundusgen.training.population import POPULATION_FILE

FAILED = 2
_EVALUATION, _VALUES, _PAGE = "evaluation", "evaluation.json", "evaluation.html"
_KEYS = "keys"
_LEAST_REASON = 20
_COLUMNS = 8


def release(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[
        Path, typer.Option(metavar="BUNDLE", help="Folder to write; must be new or empty.")
    ],
    gate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Rules that differ from the defaults.", show_default="none"
        ),
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="What `fundusgen evaluate` wrote; may be repeated, and then each must pass.",
            show_default="RUN/evaluation",
        ),
    ] = None,
    mechanism: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="mechanism.json, which `fundusgen audit mechanism` wrote.",
            show_default="RUN/mechanism/mechanism.json",
        ),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the key that signs; made if absent. Keep it, and give release.pub to "
            "those who are to trust it.",
            show_default="RUN/keys",
        ),
    ] = None,
    override: Annotated[
        str | None,
        typer.Option(
            metavar="REASON",
            help="Release although the gate fails; the reason stands on the card, first of all.",
        ),
    ] = None,
) -> None:
    """Check a generator against the gate, and write the release bundle if it passes.

    The bundle has the generator, its card, its evaluations, the sites' receipts, checksums and a
    signature. A failed gate writes nothing and exits with 2.
    """
    folder = RunFolder(run)
    study = folder.study()
    require_free(out)
    if override is not None and len(override.strip()) < _LEAST_REASON:
        raise RunError(
            f"the reason of --override is '{override}'",
            expected=f"a sentence of {_LEAST_REASON} letters or more, which readers of the card "
            "can weigh",
        )
    rules = _rules(gate)
    generator = folder.generator
    drawn = Generator.load(generator)
    digest = hashlib.sha256((generator / WEIGHTS_FILE).read_bytes()).hexdigest()
    reports = evaluation or [run / _EVALUATION]
    values = [_read(report / _VALUES, FORMAT) for report in reports if _there(report, evaluation)]
    audit_file = mechanism or run / "mechanism" / "mechanism.json"
    audit = None
    if mechanism is not None or audit_file.is_file():
        audit = _read(audit_file, "")
    proofs = proofs_of(folder)
    found = checks(rules, digest, values, proofs, audit)
    console = Console(highlight=False)
    _print(found, console)
    failed = [check for check in found if not check.passed]
    if failed and override is None:
        names = ", ".join(dict.fromkeys(check.name for check in failed))
        console.print(f"\nnot released: {escape(names)}", style="bold red")
        raise typer.Exit(FAILED)
    rounds = max((entry["round"] for entry in folder.metrics()), default=0)
    reason = (override or "").strip() if failed else ""
    card = card_of(study, rounds, proofs, values, found, reason)
    files: dict[str, bytes | Path] = {
        WEIGHTS_FILE: generator / WEIGHTS_FILE,
        MODEL_FILE: generator / MODEL_FILE,
        "study.yaml": folder.study_file,
        "README.md": as_text(card).encode(),
        "card.html": as_page(card, draw_sheet(drawn, _COLUMNS, study.seed)).encode(),
        "gate.json": _gate_file(rules, found, reason, study),
    }
    if (generator / POPULATION_FILE).is_file():
        files[POPULATION_FILE] = generator / POPULATION_FILE
    if audit is not None:
        files["mechanism.json"] = audit_file
    for number, report in enumerate(reports if values else (), start=1):
        suffix = f"-{number}" if len(reports) > 1 else ""
        for name in (_VALUES, _PAGE):
            stem, dot, kind = name.partition(".")
            files[f"{stem}{suffix}{dot}{kind}"] = report / name
    for kept in (folder.receipts, folder.known_sites):
        for path in sorted(kept.rglob("*.*")):
            files[f"{kept.name}/{path.relative_to(kept).as_posix()}"] = path
    key_folder = keys or run / _KEYS
    try:
        made = make_keys(key_folder)
        key = signing_key(key_folder)
        write_bundle(out, files, key)
        (key_folder / PUBLIC_KEY).write_bytes(public_pem(key.public_key()))
    except OSError as error:
        raise RunError(
            f"{error.filename or out} cannot be written or read: {error.strerror}",
            expected="a whole run, its evaluations, and room for the bundle",
            remedy="Restore what is missing, or choose another --out",
        ) from error
    console.print(f"\n{out}: {len(files)} files, signed", style="bold")
    if made:
        console.print(f"A new key was made in {key_folder}: keep it, and give {PUBLIC_KEY} away.")


def verify(
    bundle: Annotated[Path, typer.Argument(help="A release bundle.")],
    key: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="release.pub of whoever released it; not the one in the bundle."
        ),
    ],
) -> None:
    """Check that a bundle is whole, unchanged, and signed by whom you trust.

    Without fundusgen: `openssl dgst -sha384 -verify release.pub -signature SHA256SUMS.sig
    SHA256SUMS`, then `sha256sum -c SHA256SUMS`.
    """
    faults = verify_bundle(bundle, read_public_pem(key))
    for fault in faults:
        typer.secho(fault, fg=typer.colors.RED)
    if faults:
        raise typer.Exit(FAILED)
    typer.echo(f"{bundle} is whole and as it was signed")


def _rules(file: Path | None) -> Gate:
    if file is None:
        return Gate()
    try:
        return read_settings(file.read_text(encoding="utf-8"), Gate)
    except OSError as error:
        raise StudyError(f"{file} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise StudyError(f"{file}: {describe(error, Gate)}") from error
    except ValueError as error:
        raise StudyError(f"{file} is no YAML: {error}") from error


def _there(report: Path, given: list[Path] | None) -> bool:
    """Whether there is an evaluation; one that was named must be there."""
    return given is not None or (report / _VALUES).is_file()


def _read(path: Path, expected: str) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if expected and values["format"] != expected:
            raise ValueError(f"format {values['format']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} cannot be used: {error}",
            expected=expected or "mechanism.json of `fundusgen audit mechanism`",
            remedy="Make it anew",
        ) from error
    return values


def _gate_file(rules: Gate, found: tuple[Check, ...], reason: str, study: Study) -> bytes:
    content = {
        "format": "fundusgen-gate-1",
        "made_by": __version__,
        "study_hash": study.study_hash,
        "passed": all(check.passed for check in found),
        "override": reason or None,
        "rules": rules.model_dump(mode="json"),
        "checks": [asdict(check) for check in found],
    }
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _print(found: tuple[Check, ...], console: Console) -> None:
    grid = Table.grid(padding=(0, 2))
    for check in found:
        word = "[green]passed[/]" if check.passed else "[red]FAILED[/]"
        grid.add_row(word, escape(check.demanded), escape(check.found))
    console.print(grid)
