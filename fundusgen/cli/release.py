"""`fundusgen release` and `fundusgen verify`: the last door, and how others check it."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fundusgen import __version__
from fundusgen.errors import RunError, StudyError
from fundusgen.privacy.keys import make_keys, signing_key
from fundusgen.release.bundle import (
    PUBLIC_KEY,
    public_pem,
    read_public_pem,
    require_apart,
    require_free,
    verify_bundle,
    write_bundle,
)
from fundusgen.release.card import as_page, as_text, card_of
from fundusgen.release.evidence import read_evidence
from fundusgen.release.finished_generator import DRAWS, read_generator
from fundusgen.release.gate import MECHANISM_FORMAT, Check, checks, subject_digest
from fundusgen.release.receipt_proof import proof_files, proofs_of, rounds_of
from fundusgen.release.rules import Gate
from fundusgen.report.evaluation_page import evaluation_page
from fundusgen.report.evaluation_values import FORMAT
from fundusgen.run_folder import RunFolder
from fundusgen.settings_file import read_settings
from fundusgen.study import Study, describe, dump_study
from fundusgen.training.population import POPULATION_FILE

FAILED = 2
_EVALUATION, _VALUES = "evaluation", "evaluation.json"
_KEYS = "keys"
_LEAST_REASON = 20


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
    folder, key_folder = RunFolder(run), keys or run / _KEYS
    study = folder.study()
    reports = evaluation or [run / _EVALUATION]
    audit_file = mechanism or run / "mechanism" / "mechanism.json"
    require_free(out)
    require_apart(
        out, [folder.receipts, folder.known_sites, folder.generator, key_folder, *reports]
    )
    if override is not None and len(override.strip()) < _LEAST_REASON:
        raise RunError(
            f"the reason of --override is '{override}'",
            expected=f"a sentence of {_LEAST_REASON} letters or more, which readers of the card "
            "can weigh",
        )
    rules = _rules(gate)
    generator = read_generator(folder)
    evidence = [
        read_evidence(report / _VALUES, FORMAT, "Make it anew with `fundusgen evaluate`")
        for report in reports
        if evaluation or (report / _VALUES).is_file()
    ]
    audit = None
    if mechanism is not None or audit_file.is_file():
        audit = read_evidence(
            audit_file, MECHANISM_FORMAT, "Make it anew with `fundusgen audit mechanism`"
        )
    values = [one.values for one in evidence]
    # Phantoms that nobody has judged stay where they are.
    leaving = generator.leaving({subject_digest(one, study) for one in values})
    proofs = proofs_of(folder)
    digests = {name: hashlib.sha256(leaving[name]).hexdigest() for name in leaving if name in DRAWS}
    found = checks(
        rules, study, digests, generator.rest_digest, values, proofs,
        audit.values if audit else None,
    )  # fmt: skip
    console = Console(highlight=False)
    _print(found, console)
    failed = [check for check in found if not check.passed]
    if failed and override is None:
        names = ", ".join(dict.fromkeys(check.name for check in failed))
        console.print(f"\nnot released: {escape(names)}", style="bold red")
        raise typer.Exit(FAILED)
    reason = (override or "").strip() if failed else ""
    sheet = generator.sheet()
    try:
        rounds, lost = rounds_of(folder), generator.undecided()
        card = card_of(study, rounds, proofs, values, rules, found, reason, lost)
        # Made of the figures, not copied: a page cannot say otherwise than they do.
        pages = [evaluation_page(one, {"Generated images": sheet}).encode() for one in values]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RunError(
            "an evaluation lacks figures that the card has to state",
            expected="evaluation.json, as `fundusgen evaluate` wrote it",
            remedy="Evaluate anew, or release without that evaluation",
        ) from error
    files: dict[str, bytes] = {
        **leaving,
        "study.yaml": dump_study(study).encode(),
        "README.md": as_text(card).encode(),
        "card.html": as_page(card, sheet).encode(),
        "gate.json": _gate_file(rules, found, reason, study),
        **proof_files(folder, proofs),
    }
    if audit is not None:
        files["mechanism.json"] = audit.content
    for place, (one, page) in enumerate(zip(evidence, pages, strict=True), start=1):
        suffix = f"-{place}" if len(evidence) > 1 else ""
        files[f"evaluation{suffix}.json"] = one.content
        files[f"evaluation{suffix}.html"] = page
    try:
        made = make_keys(key_folder)
        key = signing_key(key_folder)
        (key_folder / PUBLIC_KEY).write_bytes(public_pem(key.public_key()))
        write_bundle(out, files, key)
    except OSError as error:
        raise RunError(
            f"{error.filename or out} cannot be written or read: {error.strerror}",
            expected="room for the bundle, and a folder for the key",
            remedy="Choose another --out or --keys",
        ) from error
    console.print(f"\n{out}: {len(files)} files, signed", style="bold")
    if generator.population is not None and POPULATION_FILE not in leaving:
        console.print(
            f"{POPULATION_FILE} stays: no evaluation is of it. Add one that was made with "
            "--phantoms, by a second --evaluation."
        )
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
    if bundle.resolve() in key.resolve().parents:
        raise RunError(
            f"the key {key} is the one in the bundle: whoever changed the one can change the other",
            expected=f"{PUBLIC_KEY}, as whoever released it gave it to you",
            remedy="Ask them for it, on another way than the bundle came",
        )
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
    """Every check that failed; of the others, how many each rule had."""
    grid = Table.grid(padding=(0, 2))
    for name, count in Counter(check.name for check in found if check.passed).items():
        grid.add_row("[green]passed[/]", escape(name), f"{count} checks" if count > 1 else "")
    for check in found:
        if not check.passed:
            grid.add_row(
                "[red]FAILED[/]", escape(check.name), escape(f"{check.demanded}: {check.found}")
            )
    console.print(grid)
