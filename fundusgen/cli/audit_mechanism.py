"""`fundusgen audit mechanism`: hold the code that trains against what its accountant claims."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from fundusgen.auditing.audit import CONFIDENCE, SUFFICIENT_POWER, MechanismAudit, audit_mechanism
from fundusgen.auditing.mechanisms import STANDARD, STANDARD_DELTA, AuditedMechanism
from fundusgen.auditing.record import write_mechanism_json
from fundusgen.cli.audit import FOUND
from fundusgen.errors import PrivacyError, RunError
from fundusgen.privacy.noise import FastNoise, NoiseSource, SecureNoise
from fundusgen.report.mechanism_page import write_mechanism_page
from fundusgen.study import Study, load_study
from fundusgen.training.mechanisms import round_event

# With fewer canaries a run no bound says anything, and some would be all in or all out.
_LEAST_CANARIES = 20


def mechanism(
    study: Annotated[
        Path | None,
        typer.Argument(
            metavar="STUDY.yaml",
            help="Audit the stages of this study, with its own settings.",
            show_default="three mechanisms of epsilon 8",
        ),
    ] = None,
    canaries: Annotated[int, typer.Option(help="Patients who do not exist.")] = 2000,
    runs: Annotated[
        int, typer.Option(help="Independent runs over which the canaries are spread.")
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where mechanism.html and mechanism.json go."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Of the coins that say which canaries take part; never of the mechanism's noise.",
            show_default="fresh",
        ),
    ] = None,
) -> None:
    """Bound epsilon from below by running the code that trains.

    Patients who do not exist take part in DP-SGD and in votes, or do not; how well the one is told
    from the other in what is released bounds epsilon from below, and the bound is held against
    what the accountant claims. Noise and sampling are tested besides. No patient's data is read,
    so the result may be shown to anyone. It can show that a claim is false, never that it is true.

    Exit status: 0 only if nothing contradicts a claim and the audit could have seen it, 2 if not,
    1 if it could not be run.
    """
    _check(canaries, runs, seed)
    plan, delta, noise = _plan(None if study is None else load_study(study))
    audits = []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("audit", total=len(plan))
        for number, audited in enumerate(plan):
            bar.update(task, description=audited.name, completed=number)
            # Each mechanism has coins of its own, whichever others are audited.
            rng = np.random.default_rng(None if seed is None else (seed, number))
            audits.append(
                audit_mechanism(audited, noise, rng, canaries=canaries, runs=runs, delta=delta)
            )
    if out is not None:
        try:
            write_mechanism_json(out / "mechanism.json", audits, noise.kind)
            write_mechanism_page(out / "mechanism.html", audits, noise.kind)
        except OSError as error:
            raise RunError(
                f"{out} cannot be written: {error.strerror or error}",
                expected="a folder for mechanism.html and mechanism.json",
                remedy="Choose another --out",
            ) from error
    console = Console(highlight=False)
    for audit in audits:
        _print(audit, console)
    if out is not None:
        console.print(f"\n{out / 'mechanism.html'}")
    if not all(audit.holds and audit.sufficient for audit in audits):
        raise typer.Exit(FOUND)


def mechanisms_of(study: Study) -> tuple[AuditedMechanism, ...]:
    """The mechanisms of a study's stages, with the events that a site would reserve.

    Raises:
        AccountingError: No noise meets the study's target.
    """

    def found() -> Iterator[AuditedMechanism]:
        for stage, rounds in study.stage_rounds.items():
            event = round_event(study, stage, ())
            name = f"{study.study_id}, {stage}"
            if stage == "votes":
                share = study.votes.appearance_share
                yield AuditedMechanism(name, stage, event, len(rounds), statement_share=share)
            else:
                bound = study.dpsgd.max_grad_norm
                yield AuditedMechanism(name, stage, event, len(rounds), bound)

    return tuple(found())


def _plan(study: Study | None) -> tuple[tuple[AuditedMechanism, ...], float, NoiseSource]:
    if study is None:
        return STANDARD, STANDARD_DELTA, SecureNoise()
    noise = SecureNoise() if study.privacy.noise == "secure" else FastNoise()
    return mechanisms_of(study), study.privacy.target_delta, noise


def _check(canaries: int, runs: int, seed: int | None) -> None:
    if runs < 1 or canaries < _LEAST_CANARIES * runs:
        raise PrivacyError(
            f"an audit of {canaries} canaries in {runs} runs was asked for",
            expected=f"one run or more, and at least {_LEAST_CANARIES} canaries in each",
            remedy="Give more --canaries or fewer --runs; 1,000 canaries tell enough of epsilon 8",
        )
    if seed is not None and seed < 0:
        raise PrivacyError(f"the seed is {seed}", expected="a whole number of 0 or more")


def _print(audit: MechanismAudit, console: Console) -> None:
    event, runs = audit.mechanism.event, "one run" if audit.runs == 1 else f"{audit.runs} runs"
    console.print(
        f"\n{escape(audit.mechanism.name)}: the accountant claims epsilon {audit.claim:.2f} at "
        f"delta {audit.delta:g}",
        style="bold",
    )
    console.print(
        f"{audit.mechanism.planned.steps:,} releases, noise multiplier {event.noise_multiplier:g}, "
        f"sample rate {event.sample_rate:g}; {audit.included:,} of {audit.canaries:,} canaries "
        f"took part, in {runs}"
    )
    bounds = Table.grid(padding=(0, 2))
    bounds.add_row("", "[bold]epsilon at least[/]", f"[bold]of the claim, at {CONFIDENCE:.0%}[/]")
    for bound in audit.bounds:
        share = bound.epsilon / audit.claim if audit.claim else 0.0
        mark = " [red]ABOVE THE CLAIM[/]" if bound in audit.exceeding else ""
        bounds.add_row(
            f"{bound.method} ({bound.source})", f"{bound.epsilon:.2f}", f"{share:.0%}{mark}"
        )
    console.print(bounds)
    checks = Table.grid(padding=(0, 2))
    for check in audit.checks:
        seen = "NOT SEEN" if math.isnan(check.p_value) else "NOT SO"
        word = "[green]holds[/]" if check.holds else f"[red]{seen}[/]"
        checks.add_row(word, escape(check.claim), escape(f"({check.found})"))
    console.print(checks)
    for bound in audit.exceeding:
        console.print(
            f"claim: epsilon is at least {bound.certain:.2f} by {bound.method}, almost surely. "
            "The accountant's claim is false, or the code is not what it accounts for.",
            style="red",
        )
    for check in audit.failed:
        said = "could not be seen" if math.isnan(check.p_value) else "not so"
        console.print(f"{check.code}: {said}: {escape(check.claim)}", style="red")
    if not audit.sufficient:
        console.print(
            f"power: the best Gaussian bound is {audit.power:.0%} of the claim, and should be at "
            f"least {SUFFICIENT_POWER:.0%} for faults to be seen. Use more --canaries.",
            style="red",
        )
