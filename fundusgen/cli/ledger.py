"""`fundusgen site ledger repair`: a person decides about a damaged ledger."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric import ec
from rich.console import Console
from rich.markup import escape

from fundusgen.cli.consent import ByOption, YesOption, agreed, checked_name
from fundusgen.errors import SiteError
from fundusgen.federation.payload import receipts_in
from fundusgen.privacy.audit_receipts import sift_signed
from fundusgen.privacy.keys import public_keys, read_public_key
from fundusgen.privacy.ledger_file import exclusive_lock
from fundusgen.privacy.ledger_repair import RepairPlan, plan_repair
from fundusgen.privacy.ledger_rewrite import carry_out
from fundusgen.privacy.outbox import Outbox
from fundusgen.privacy.policy import Policy
from fundusgen.privacy.receipt_folder import numbers_of, scan_receipts
from fundusgen.privacy.receipts import Receipt
from fundusgen.site import SiteFolder

ledger_app = typer.Typer(help="A site's ledger.", no_args_is_help=True)
_LOCK_WAIT_S = 10.0
_MAX_REASON = 500
_SHOWN = 12


@ledger_app.callback()
def _ledger() -> None:
    """Keep `repair` a command of its own, although there is no other yet."""


@ledger_app.command()
def repair(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The site folder.")],
    receipts: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Receipts of this site, as a server keeps them in RUN/receipts. Give those of "
            "every server that this site has answered; may be repeated.",
        ),
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="An earlier node.pub of this site, if its keys were changed; may be repeated.",
        ),
    ] = None,
    nothing_else_was_sent: Annotated[
        bool,
        typer.Option(
            "--nothing-else-was-sent",
            help="You are sure that the site has sent nothing but what ledger, outbox and the "
            "receipts you give tell of. Without this, what may be missing counts as the whole "
            "budget.",
        ),
    ] = False,
    cap_then: Annotated[
        float | None,
        typer.Option(
            metavar="EPSILON",
            help="The largest max_epsilon that this site's policy ever had, if it was lowered "
            "since: what may be missing counts as that much.",
        ),
    ] = None,
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What happened, for the ledger.")
    ] = None,
    by: ByOption = None,
    yes: YesOption = False,
) -> None:
    """Make a damaged, changed or outdated ledger whole again.

    Shows what is wrong and what would be counted, asks, and writes a new ledger from all that can
    still be read of the old one, and from receipts. It never counts less than before. The old
    ledger is kept beside it, and the repair is an entry of the new one, with your name.

    Exit status: 0 if the ledger is whole now, 1 if it is not.
    """
    person = None if by is None else checked_name(by)
    site = SiteFolder(folder)
    name, policy = site.settings().name, site.policy()
    console = Console(highlight=False)
    with exclusive_lock(site.ledger_file.with_name("ledger.db.lock"), _LOCK_WAIT_S):
        keys = [*public_keys(site.keys), *(read_public_key(path) for path in key or [])]
        known, asides = _receipts(receipts or [], name, keys)
        for line in asides:
            console.print(escape(line), style="yellow")
        replies = {
            where: receipt if receipt is not None and sift_signed([receipt], keys)[0] else None
            for where, receipt in receipts_in(Outbox(site.outbox)).items()
        }
        plan = plan_repair(
            site.ledger_file,
            known,
            replies,
            max_epsilon=max(policy.max_epsilon, _cap(cap_then)),
            delta=policy.delta,
            nothing_else_was_sent=nothing_else_was_sent,
        )
        if not plan.needed:
            _tell_whole(name, known, console)
            return
        _print_plan(name, plan, policy, console)
        why = _reason(reason, yes=yes)
        person = agreed(f"Repair the ledger of {name} like this?", person, yes=yes)
        kept = carry_out(plan, by=person, reason=why)
    console.print(f"\nThe ledger of {name} is whole again. The old one is kept in")
    console.print(f"  {kept}")
    console.print("Look at it with: fundusgen audit ledger DIR --receipts RUN/receipts --out OUT")


def _cap(value: float | None) -> float:
    if value is None:
        return 0.0
    if not 0 < value < math.inf:
        raise SiteError(f"--cap-then is {value}", expected="a number above 0")
    return value


def _receipts(
    folders: list[Path], name: str, keys: Sequence[ec.EllipticCurvePublicKey]
) -> tuple[list[Receipt], list[str]]:
    """The site's own receipts, and sentences about what lies beside them."""
    found: dict[str, Receipt] = {}
    asides: list[str] = []
    for folder in folders:
        receipts, unreadable = scan_receipts(folder)
        asides += [f"Left aside: {path} ({why})" for path, why in unreadable]
        own = [receipt for receipt in receipts if receipt.site == name]
        signed, others = sift_signed(own, keys)
        asides += [
            f"Left aside: receipt {receipt.sequence} is not signed by a key of {name}. If the "
            "keys were changed, give the earlier node.pub with --key."
            for receipt in others[:_SHOWN]
        ]
        if not own:
            asides.append(f"{folder} holds no receipt of {name}.")
        found |= {receipt.digest: receipt for receipt in signed}
    return list(found.values()), asides


def _tell_whole(name: str, receipts: list[Receipt], console: Console) -> None:
    console.print(f"The ledger of {name} is whole. Nothing was changed.")
    if receipts:
        console.print(f"It knows all {len(receipts)} receipts that were given.")
    else:
        console.print(
            "No receipts were given. An older ledger that was put back as a whole is only seen "
            "with them: --receipts DIR"
        )


def _print_plan(name: str, plan: RepairPlan, policy: Policy, console: Console) -> None:
    console.print(f"\nWhat is wrong with the ledger of {name}:", style="bold")
    for line in _wrong(plan):
        console.print(escape(f"  - {line}"))
    old, new = policy.total_epsilon(plan.ledger.events), policy.total_epsilon(plan.events)
    console.print("\nWhat the repaired ledger would count:", style="bold")
    console.print(
        f"  epsilon {new:.3f} of {policy.max_epsilon:g} at delta {policy.delta:g}; what can be "
        f"read of the old one counts {old:.3f}"
    )
    for line in _added(plan):
        console.print(escape(f"  - {line}"))
    if plan.untold:
        console.print("\nWhat nobody can tell:", style="bold")
        for line in plan.untold:
            console.print(escape(f"  - {line}"))
        console.print(
            f"  So epsilon {plan.budget:.4g}, the whole budget, is counted on top. If the cap was "
            "ever higher, give it with --cap-then. If you are sure that nothing else was sent, "
            "because you have given the receipts of every server, and no reply of this site came "
            "too late for one, run this again with --nothing-else-was-sent.",
            style="yellow",
        )
    if new >= policy.max_epsilon:
        console.print(
            f"\n{name} will answer no study after this, until its cap is raised on purpose "
            "(max_epsilon in policy.yaml).",
            style="yellow",
        )
    console.print()


def _wrong(plan: RepairPlan) -> Iterator[str]:
    if plan.source != plan.path:
        yield "an earlier repair was cut short; this one goes on from the ledger that it kept"
    for flaw in plan.ledger.flaws[:_SHOWN]:
        yield f"{flaw.found[:1].upper()}{flaw.found[1:]}. Expected: {flaw.expected}."
    if len(plan.ledger.flaws) > _SHOWN:
        yield f"and {len(plan.ledger.flaws) - _SHOWN} more of the kind"
    if plan.receipts.unknown:
        yield (
            f"It does not know receipt {numbers_of(plan.receipts.unknown)}, which this site has "
            "signed and sent."
        )
    if plan.receipts.shortfall:
        yield "It lacks events that its own later receipts count."
    if plan.unread_replies:
        yield (
            f"The outbox holds {len(plan.unread_replies)} damaged replies that it does not know; "
            "they will be put with the old ledger."
        )


def _added(plan: RepairPlan) -> Iterator[str]:
    yield f"{len(plan.ledger.counted)} events that can be read"
    if plan.receipts.unknown:
        yield f"{len(plan.receipts.unknown)} events that are known from their receipts"
    for event in plan.receipts.shortfall:
        yield f"{event.steps} steps with noise {event.noise_multiplier:g}, in later receipts"
    for branch in plan.receipts.branches:
        for event in branch.untold:
            yield (
                f"{event.steps} steps with noise {event.noise_multiplier:g}, before receipt "
                f"{branch.receipts[-1].sequence}"
            )


def _reason(reason: str | None, *, yes: bool) -> str:
    """What happened, in the person's words."""
    if reason is None and not yes:
        try:
            reason = str(typer.prompt("What happened? One sentence for the ledger"))
        except typer.Abort:
            reason = ""
    text = " ".join((reason or "").split())
    if not text or len(text) > _MAX_REASON or not text.isprintable():
        raise SiteError(
            "There is no reason to keep" if not text else "The reason cannot be kept",
            expected=f"what happened, in 1 to {_MAX_REASON} characters",
            remedy="Give it with --reason TEXT. Nothing was changed",
        )
    return text
