"""`fundusgen plan`: what a study would cost and do, before anything is spent.

Reads the study, `site.yaml`, `policy.yaml` and the ledger. No manifest and no image is read, and
nothing is written. With `--json`, one object on the standard output, with these keys; what is not
known is null:

    study_id, study_hash, site, declared_patients, sites_patients
    delta                      at which every epsilon is counted
    composition                how: fixed or adaptive
    events_spent, epsilon_spent
    epsilon_after              of all that is spent and the whole study
    max_epsilon, epsilon_left_after
    target_epsilon, target_delta   of the study itself
    allowed                    whether the site's policy allows the study now
    objections                 list of {reason, sentence}
    minutes, bytes_down, bytes_up   of all rounds left
    stages                     list, in order, of
        stage, mechanism, rounds, rounds_left, steps_left, sample_rate, noise_multiplier
        epsilon_alone, epsilon_after
        private_parameters
        noise_over_signal_alone, noise_over_signal_pooled, noise_over_signal_warn_above, verdict
        bytes_down_per_round, bytes_up_per_round
        minutes, seconds_per_step, seconds_per_round_besides, batches_per_step
        device, threads, cores, load   load: before measuring, over a minute; if high, the
                                       minutes are too many
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from fundusgen.errors import SiteError
from fundusgen.site import SiteData, SiteFolder, SiteSettings
from fundusgen.study import Study, load_study
from fundusgen.training.forecast import WARN_NOISE_OVER_SIGNAL, WARN_NOISE_OVER_VOTES
from fundusgen.training.plan import StagePlan, StudyPlan
from fundusgen.training.plan import plan as make_plan
from fundusgen.training.standing import Standing, standing_of

NOT_ALLOWED = 2


def plan(
    study: Annotated[Path, typer.Argument(help="Study file.")],
    site: Annotated[Path | None, typer.Option(help="Site folder to plan for.")] = None,
    declared_patients: Annotated[
        int | None,
        typer.Option(min=1, help="Instead of --site: patients that a site declares."),
    ] = None,
    sites_patients: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N,N,...",
            help="Declared patients of all sites of the study, this one included.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Say what a study would cost and do at a site, before anything is spent.

    Reads no patient's data: not the manifest, and no image. How long it takes is measured by a
    few steps on a phantom, on this machine.

    Exit status: 0 if the site's policy allows the study now, 2 if it does not, 1 if no plan
    could be made.
    """
    wanted = load_study(study)
    standing = _standing(wanted, site, declared_patients, patients_of_sites(sites_patients or []))
    # To the terminal, not into what a program reads.
    with Console(stderr=True).status("counting, and taking a few steps on a phantom ..."):
        made = make_plan(wanted, standing)
    if as_json:
        typer.echo(json.dumps(plan_json(made), indent=2, allow_nan=False))
    else:
        print_plan(made, Console(highlight=False))
    if made.objections:
        raise typer.Exit(NOT_ALLOWED)


def _standing(
    study: Study, site: Path | None, declared_patients: int | None, sites_patients: list[int]
) -> Standing:
    if (site is None) == (declared_patients is None):
        raise SiteError(
            "Neither a site nor a number of patients was given"
            if site is None
            else "Both --site and --declared-patients were given",
            expected="one of the two",
            remedy="Give --site DIR at a site; without one, --declared-patients N",
        )
    if site is not None:
        return standing_of(SiteFolder(site), sites_patients)
    thought_of = SiteSettings(
        name="site",
        data=SiteData(manifest=Path(), root=Path(), declared_patients=declared_patients or 1),
    )
    return Standing(thought_of, study.privacy.target_delta, sites_patients=tuple(sites_patients))


def patients_of_sites(texts: list[str]) -> list[int]:
    """Read numbers of patients, given one by one or with commas.

    Raises:
        SiteError: One is no whole number from 1.
    """
    words = [word.strip() for text in texts for word in text.split(",")]
    wrong = [word for word in words if not re.fullmatch("0*[1-9][0-9]{0,8}", word)]
    if wrong:
        raise SiteError(
            f"--sites-patients has {wrong[0]!r}",
            expected="whole numbers from 1, such as 500,400,300",
        )
    return [int(word) for word in words]


def plan_json(plan: StudyPlan) -> dict[str, Any]:
    """Give a plan as plain JSON values; the module's docstring lists the keys."""
    study, standing, policy = plan.study, plan.standing, plan.standing.policy
    return {
        "study_id": study.study_id,
        "study_hash": study.study_hash,
        "site": standing.settings.name if policy else None,
        "declared_patients": standing.declared_patients,
        "sites_patients": list(standing.sites_patients) or None,
        "delta": standing.delta,
        "composition": policy.composition if policy else "fixed",
        "events_spent": len(standing.rows),
        "epsilon_spent": plan.epsilon_spent,
        "epsilon_after": plan.epsilon_after,
        "max_epsilon": policy.max_epsilon if policy else None,
        "epsilon_left_after": policy.max_epsilon - plan.epsilon_after if policy else None,
        "target_epsilon": study.privacy.target_epsilon,
        "target_delta": study.privacy.target_delta,
        "allowed": not plan.objections if policy else None,
        "objections": [
            {"reason": refused.reason.value, "sentence": str(refused)}
            for refused in plan.objections
        ],
        "minutes": plan.minutes,
        "bytes_down": plan.bytes_down,
        "bytes_up": plan.bytes_up,
        "stages": [_stage_json(stage) for stage in plan.stages],
    }


def _stage_json(stage: StagePlan) -> dict[str, Any]:
    event, measured = stage.event, stage.rehearsal
    return {
        "stage": stage.stage,
        "mechanism": event.kind,
        "rounds": stage.rounds,
        "rounds_left": stage.rounds_left,
        "steps_left": event.steps,
        "sample_rate": event.sample_rate,
        "noise_multiplier": event.noise_multiplier,
        "epsilon_alone": stage.epsilon_alone,
        "epsilon_after": stage.epsilon_after,
        "private_parameters": stage.private_parameters,
        "noise_over_signal_alone": stage.noise_over_signal,
        "noise_over_signal_pooled": stage.noise_over_signal_pooled,
        "noise_over_signal_warn_above": (
            WARN_NOISE_OVER_VOTES if stage.stage == "votes" else WARN_NOISE_OVER_SIGNAL
        ),
        "verdict": stage.verdict,
        "bytes_down_per_round": stage.traffic.down,
        "bytes_up_per_round": stage.traffic.up,
        "minutes": stage.minutes,
        "seconds_per_step": measured and measured.seconds_per_step,
        "seconds_per_round_besides": measured and measured.seconds_per_round_besides,
        "batches_per_step": measured and measured.batches_per_step,
        "device": measured and measured.device,
        "threads": measured and measured.threads,
        "cores": measured and measured.cores,
        "load": measured and measured.load,
    }


def print_plan(plan: StudyPlan, console: Console) -> None:
    """Show a plan to a person: the one sentence first, then yes or no, then why."""
    console.print(_headline(plan), style="bold")
    _print_allowed(plan, console)
    sections = Table.grid(padding=(0, 2))
    for name, content in _sections(plan):
        sections.add_row()
        sections.add_row(f"[bold]{name}[/bold]", content)
    console.print(sections)


def _headline(plan: StudyPlan) -> str:
    policy, delta = plan.standing.policy, plan.standing.delta
    if policy is None:
        return (
            f"This study would bring a site that has spent nothing to epsilon "
            f"{plan.epsilon_after:.2f} at delta {delta:g}."
        )
    if not any(stage.rounds_left for stage in plan.stages):
        return (
            f"This study is complete here: epsilon is {plan.epsilon_spent:.2f} of "
            f"{policy.max_epsilon:g} at delta {delta:g}."
        )
    return (
        f"This study would bring epsilon from {plan.epsilon_spent:.2f} to "
        f"{plan.epsilon_after:.2f} of {policy.max_epsilon:g} at delta {delta:g}."
    )


def _print_allowed(plan: StudyPlan, console: Console) -> None:
    name = plan.standing.settings.name
    if plan.standing.policy is None:
        return
    if not plan.objections:
        console.print(f"The policy of {name} allows it.", style="green")
        return
    console.print(f"The policy of {name} does not allow it now:", style="red")
    reasons = Table.grid(padding=(0, 1))
    for refused in plan.objections:
        reasons.add_row("-", escape(str(refused)))
    console.print(reasons)


def _sections(plan: StudyPlan) -> Iterator[tuple[str, RenderableType]]:
    yield "privacy", Group(_stage_table(plan), *_budget(plan))
    for stage in plan.stages:
        yield (
            ("voting" if stage.stage == "votes" else "learning"),
            Group(stage.verdict, _what_patients_do(plan, stage)),
        )
    yield "time", Group(*_time(plan))
    yield "network", Group(*_network(plan))


def _what_patients_do(plan: StudyPlan, stage: StagePlan) -> str:
    declared = plan.standing.declared_patients
    if stage.stage == "votes":
        votes = plan.study.votes
        asked = " and says how bright, how coloured and how fine their photographs are"
        return (
            f"Each of {declared:,} patients votes once a round for the artificial pictures most "
            f"like theirs, among {votes.candidates:,}{asked if votes.appearance_share else ''}."
        )
    return (
        f"{stage.private_parameters:,} parameters are trained on patients, in steps of "
        f"{stage.event.sample_rate * declared:,.0f} of {declared:,} patients on average."
    )


def _stage_table(plan: StudyPlan) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("stage")
    for column in ("rounds", "steps", "sample rate", "noise", "epsilon alone", "epsilon after"):
        table.add_column(column, justify="right")
    for stage in plan.stages:
        event = stage.event
        table.add_row(
            stage.stage, f"{stage.rounds_left:,}", f"{event.steps:,}", f"{event.sample_rate:g}",
            f"{event.noise_multiplier:.4g}", f"{stage.epsilon_alone:.3f}",
            f"{stage.epsilon_after:.3f}",
        )  # fmt: skip
    return table


def _budget(plan: StudyPlan) -> Iterator[str]:
    standing, policy, privacy = plan.standing, plan.standing.policy, plan.study.privacy
    if policy is not None:
        left = policy.max_epsilon - plan.epsilon_after
        yield (
            f"Spent so far: epsilon {plan.epsilon_spent:.3f} in {len(standing.rows)} events. "
            + (f"Left after the study: {left:.3f}." if left >= 0 else f"Over the cap: {-left:.3f}.")
        )
    done, rounds = (
        sum(stage.rounds - stage.rounds_left for stage in plan.stages),
        sum(stage.rounds for stage in plan.stages),
    )
    if done:
        yield f"{done} of its {rounds} rounds are answered already: they are in what is spent."
    yield (
        f"The study's noise is set so that three accountants find at most epsilon "
        f"{privacy.target_epsilon:g} at delta {privacy.target_delta:g}. "
        + (
            f"This site counts by a privacy filter at delta {standing.delta:g}."
            if policy is not None and policy.composition == "adaptive"
            else f"Counted here is the tightest of them, at delta {standing.delta:g}."
        )
    )


def _time(plan: StudyPlan) -> Iterator[str]:
    for stage in plan.stages:
        measured = stage.rehearsal
        if measured is None:
            yield "Nothing is left to do."
            continue
        yield (
            f"About {_duration(60 * stage.minutes)} on this machine: {stage.event.steps:,} "
            f"{'votes' if stage.stage == 'votes' else 'steps'} of "
            f"{_duration(measured.seconds_per_step)}, and in each of {stage.rounds_left:,} "
            f"rounds {_duration(measured.seconds_per_round_besides)} to load the model and warm "
            "up. Besides, a round takes what is not measured: the start of the client, the "
            "site's files (in the first, all images), its ledger, the network, and the slowest "
            "site."
        )
        yield (
            f"Measured just now on a phantom: {measured.device}, {measured.threads} threads, "
            + (
                "one photograph of each patient."
                if stage.stage == "votes"
                else f"{measured.batches_per_step:.1f} batches of "
                f"{plan.standing.settings.batch_patients} patients a step."
            )
        )
        if measured.disturbed:
            yield (
                f"[yellow]Other work may have slowed it (a load of {measured.load:.1f} on "
                f"{measured.cores} cores): ask again when the machine is quiet.[/yellow]"
            )


def _network(plan: StudyPlan) -> Iterator[str]:
    for stage in plan.stages:
        down, up, rounds = stage.traffic.down, stage.traffic.up, stage.rounds_left
        of = f" of {stage.stage}" if len(plan.stages) > 1 else ""
        yield f"down  {decimal(down)} a round{of}, {decimal(rounds * down)} in all"
        yield f"up    {decimal(up)} a round{of}, {decimal(rounds * up)} in all"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.2g} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:,.1f} hours"
