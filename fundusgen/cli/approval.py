"""`fundusgen site approve` and `approve-code`: at a hospital runs what a person there has allowed.

Both show what would be let in and take everything but a yes for a no. A yes goes into the ledger
first and then into `policy.yaml`, and no client works with the site between the two. A crash
between leaves a yes that lets nothing in. Who says yes is who they say they are: nothing here
proves a name.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fundusgen import __version__
from fundusgen.cli.consent import ByOption, YesOption, agreed, checked_name
from fundusgen.cli.plan import patients_of_sites, print_plan
from fundusgen.code import code_hash
from fundusgen.errors import LedgerError, SiteError
from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.outbox import Outbox
from fundusgen.privacy.policy import Policy
from fundusgen.privacy.policy_file import add_to_list
from fundusgen.privacy.remarks import note_approval, note_code_approval, note_policy
from fundusgen.site import SiteFolder
from fundusgen.study import GANSettings, Study, load_study
from fundusgen.training.answering import require_whole
from fundusgen.training.plan import StudyPlan
from fundusgen.training.plan import plan as make_plan
from fundusgen.training.standing import standing_of

LEDGER_WAIT_S = 10.0


def approve(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="Study file.")],
    site: Annotated[Path, typer.Option(metavar="DIR", help="The site folder.")],
    by: ByOption = None,
    yes: YesOption = False,
    sites_patients: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N,N,...",
            help="Declared patients of all sites of the study, this one included. The forecast "
            "then covers the whole study.",
        ),
    ] = None,
) -> None:
    """Show what a study would do and cost here, ask, and allow it.

    Nothing is allowed without a yes. A yes is written into the ledger, with your name and the
    cost that you were shown. Then the study's hash is added to the list `studies` in policy.yaml.
    To take a yes back, delete that line.

    Exit status: 0 if the study is approved, 1 if it is not.
    """
    person = None if by is None else checked_name(by)
    wanted, folder = load_study(study), SiteFolder(site)
    name = folder.settings().name
    console = Console(highlight=False)
    if wanted.study_hash in folder.policy().studies:
        _say(
            console, f"Study {wanted.study_id} is approved at {name} already. Nothing was changed."
        )
        _tell_study_hash(wanted, console)
        return
    made = _plan_once_approved(wanted, folder, patients_of_sites(sites_patients or []))
    _print_study(made, console)
    person = agreed(f"Approve study {wanted.study_id} at {name}?", person, yes=yes)

    def note(ledger: Ledger, policy: Policy) -> None:
        note_approval(
            ledger,
            policy,
            study_id=wanted.study_id,
            study_hash=wanted.study_hash,
            by=person,
            cost=made.epsilon_after,
        )

    _keep(folder, "studies", wanted.study_hash, f"{wanted.study_id}, {_approved(person)}", note)
    _say(
        console,
        f"\nStudy {wanted.study_id} is approved at {name}, by {person}. The ledger and policy.yaml "
        "say so.",
    )
    _tell_study_hash(wanted, console)
    if made.objections:
        _say(console, f"\n{name} will still refuse it, until this is changed:")
        _print_objections(made, console)


def approve_code(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The site folder.")],
    by: ByOption = None,
    yes: YesOption = False,
) -> None:
    """Show which version of fundusgen is installed here, ask, and allow it to run.

    A site answers only with code that a person here has approved. After every update of
    fundusgen, approve the new code. A yes is written into the ledger, with your name. Then the
    code's hash is added to the list `code` in policy.yaml. To take a yes back, delete that line.

    Exit status: 0 if the code is approved, 1 if it is not.
    """
    person = None if by is None else checked_name(by)
    site, installed = SiteFolder(folder), code_hash()
    name, policy = site.settings().name, site.policy()
    console = Console(highlight=False)
    _say(console, f"Installed here is fundusgen {__version__}. The hash of its code:")
    _say(console, f"  {installed}")
    if policy.code == "any":
        _say(console, f"The policy of {name} allows any code (code: any).")
        _say(console, "There is nothing to approve. Nothing was changed.")
        return
    if installed in policy.code:
        _say(console, f"This code is approved at {name} already. Nothing was changed.")
        return
    # A ledger that cannot be relied on is told before anything is asked.
    standing_of(site)
    _print_listed_code(name, policy.code, console)
    person = agreed(f"Approve this code at {name}?", person, yes=yes)

    def note(ledger: Ledger, policy: Policy) -> None:
        note_code_approval(ledger, policy, code_hash=installed, version=__version__, by=person)

    _keep(site, "code", installed, f"fundusgen {__version__}, {_approved(person)}", note)
    _say(
        console,
        f"\nThis code is approved at {name}, by {person}. The ledger and policy.yaml say so.",
    )
    if policy.code:
        _say(
            console,
            "What was approved before stays approved. To forbid it, delete its line in the list "
            "`code` of policy.yaml.",
        )


def _plan_once_approved(study: Study, site: SiteFolder, sites_patients: list[int]) -> StudyPlan:
    """Plan a study as if it were approved: what is objected then is more than a missing yes."""
    standing = standing_of(site, sites_patients)
    policy = standing.policy and _with(standing.policy, "studies", study.study_hash)
    # To the terminal, not into what is kept of the output.
    with Console(stderr=True).status("counting, and taking a few steps on a phantom ..."):
        return make_plan(study, replace(standing, policy=policy))


def _print_study(plan: StudyPlan, console: Console) -> None:
    """Show what a person needs to know before they say yes."""
    study, name = plan.study, plan.standing.settings.name
    console.print(f"\nWhat study {study.study_id} would do at {name}, once it is approved:\n")
    print_plan(plan, console)
    # As wide on the left as the sections of the plan above.
    sections = Table.grid(padding=(0, 2))
    sections.add_column(min_width=len("learning"))
    settings = Table.grid(padding=(0, 2))
    for label, value in _settings(study):
        settings.add_row(label, escape(value))
    sections.add_row()
    sections.add_row("[bold]settings[/bold]", settings)
    sections.add_row()
    sections.add_row("[bold]hash[/bold]", study.study_hash)
    console.print(sections)
    if plan.objections:
        console.print(
            f"\nYou can approve the study all the same. But {name} will refuse it, until this is "
            "changed:",
            style="red",
        )
        _print_objections(plan, console)
    console.print()


def _print_objections(plan: StudyPlan, console: Console) -> None:
    reasons = Table.grid(padding=(0, 1))
    for refused in plan.objections:
        reasons.add_row("-", escape(str(refused)))
    console.print(reasons)


def _settings(study: Study) -> Iterator[tuple[str, str]]:
    """What of a study's settings a hospital should have read, in plain words."""
    model, stages, federation = study.model, study.stages, study.federation
    size = study.image_size
    yield "pictures", f"{', '.join(study.conditions)}; {size} by {size} pixels"
    private = "all of it" if "*" in model.private else f"its {', '.join(model.private)}"
    yield "model", f"{model.kind}, width {model.width}, latent {model.latent}"
    if stages.votes:
        yield (
            "votes",
            f"{stages.votes.rounds:,}, in which your patients vote for {stages.votes.candidates:,} "
            "artificial pictures like theirs",
        )
        if stages.votes.appearance_share:
            yield "asked", "light, colour and texture of their photographs too, in the same noise"
    if stages.dpsgd:
        yield "trained", f"{private}, on your patients"
        if isinstance(model, GANSettings):
            here = "here, from the part that your patients trained, and sent too"
            yield "generator", here if model.generator == "sites" else "at the server, not here"
        count = stages.dpsgd.steps_per_round
        steps = "1 step" if count == 1 else f"{count:,} steps"
        yield "rounds", f"{federation.rounds:,} of {steps} each"
    secure = study.privacy.noise == "secure"
    yield (
        "noise",
        "secure, from a cryptographic generator" if secure else "fast, which is not secure",
    )
    yield (
        "hospitals",
        f"at least {federation.min_sites} to begin a round, {federation.quorum} to finish it",
    )


def _print_listed_code(name: str, listed: tuple[str, ...], console: Console) -> None:
    _say(console, f"\nApproved at {name} until now:")
    for digest in listed or ("nothing",):
        _say(console, f"  {digest}")
    _say(
        console,
        "\nApproved code reads the photographs of your patients. Approve it if you know where it "
        "came from. Compare the hash above with one that you got another way, such as from "
        "another hospital with the same version.\n",
    )


def _tell_study_hash(study: Study, console: Console) -> None:
    _say(console, "What is approved is the study with this hash:")
    _say(console, f"  {study.study_hash}")
    _say(
        console,
        "The study lead's hash must be equal to it: any other study is refused here. They find "
        "it as study_hash in what this prints:",
    )
    _say(console, "  fundusgen plan STUDY.yaml --declared-patients 100 --json")


def _say(console: Console, text: str) -> None:
    """Print sentences, broken between words where the terminal ends."""
    console.print(text, markup=False, emoji=False)


def _approved(person: str) -> str:
    return f"approved {datetime.now(UTC):%Y-%m-%d} by {person}"


def _keep(
    site: SiteFolder,
    key: str,
    digest: str,
    comment: str,
    note: Callable[[Ledger, Policy], None],
) -> None:
    """Write a yes into the ledger, then let in what it is about, while no client is at work.

    Args:
        site: The site.
        key: The policy's list: `studies` or `code`.
        digest: What is let in.
        comment: For people who read the policy.
        note: Writes the yes, given the ledger and the policy that will hold.

    Raises:
        LedgerError: The ledger cannot be written. Nothing was let in.
        SiteError: The policy cannot be changed. The yes is in the ledger.
    """
    with ExitStack() as held:
        try:
            with Console(stderr=True).status("opening the ledger ..."):
                ledger = held.enter_context(Ledger.open(site.ledger_file, wait_s=LEDGER_WAIT_S))
            require_whole(ledger, Outbox(site.outbox).requests())
            note(ledger, _with(site.policy(), key, digest))
        except LedgerError as error:
            raise LedgerError(
                f"Nothing was approved: {error.found}",
                expected=error.expected,
                remedy=f"{error.remedy or 'Correct this'}. Then approve again",
            ) from error
        try:
            policy = add_to_list(site.policy_file, key, digest, comment)
        except OSError as error:
            raise SiteError(
                f"{site.policy_file} cannot be written: {error.strerror or error}",
                expected="a file that this user may change",
                remedy="Correct its permissions, and approve again",
            ) from error
        note_policy(ledger, policy)


def _with(policy: Policy, key: str, digest: str) -> Policy:
    listed: tuple[str, ...] | str = getattr(policy, key)
    if listed == "any" or digest in listed:
        return policy
    return policy.model_copy(update={key: (*listed, digest)})
