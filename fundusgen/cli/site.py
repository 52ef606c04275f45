"""`fundusgen site`: make a site folder and its keys, check its images, see what it has spent."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from fundusgen.cli.approval import approve, approve_code
from fundusgen.code import code_hash
from fundusgen.data.cache import framed_images
from fundusgen.data.manifest import ManifestSettings, read_manifest
from fundusgen.data.problems import left_out_count
from fundusgen.errors import SiteError
from fundusgen.privacy.keys import (
    FINGERPRINT_KEY,
    PRIVATE_KEY,
    PUBLIC_KEY,
    key_fingerprint,
    make_keys,
    site_public_key,
)
from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.ledger_file import head_file
from fundusgen.privacy.policy import Policy
from fundusgen.site import SiteData, SiteFolder, SiteSettings
from fundusgen.study import describe

site_app = typer.Typer(help="Site folders: what a hospital keeps.", no_args_is_help=True)
_SiteArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The site folder.")]
_SHOWN_PROBLEMS = 20


@site_app.command()
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Site folder to make; must be new or empty.")
    ],
    name: Annotated[str, typer.Option(help="Name of the site: a-z, 0-9, - and _; public.")],
    manifest: Annotated[Path, typer.Option(help="CSV file that lists the images.")],
    declared_patients: Annotated[
        int, typer.Option(min=1, help="Number of patients to make public; round it.")
    ],
    root: Annotated[
        Path | None, typer.Option(help="Folder the manifest's files are in; its own if absent.")
    ] = None,
    max_epsilon: Annotated[
        float, typer.Option(help="Total over all studies that the site will not exceed.")
    ] = 8.0,
    delta: Annotated[float, typer.Option(help="At which epsilon is counted.")] = 1e-5,
    one_image_per_patient: Annotated[
        bool, typer.Option("--one-image-per-patient", help="No patient has two images.")
    ] = False,
) -> None:
    """Make a site folder with settings, policy and node keys."""
    if folder.exists() and any(folder.iterdir()):
        raise SiteError(
            f"{folder} is there already and not empty",
            expected="a new or empty folder",
            remedy="Choose another folder, or edit its site.yaml and policy.yaml",
        )
    try:
        settings = SiteSettings(
            name=name,
            data=SiteData(
                manifest=manifest.resolve(),
                root=(root or manifest.parent).resolve(),
                one_image_per_patient=one_image_per_patient,
                declared_patients=declared_patients,
            ),
        )
    except ValidationError as error:
        raise SiteError(describe(error, SiteSettings)) from error
    try:
        policy = Policy(max_epsilon=max_epsilon, delta=delta, code=(code_hash(),))
    except ValidationError as error:
        raise SiteError(describe(error, Policy)) from error
    site = SiteFolder(folder)
    site.write(settings, policy)
    typer.echo(f"{folder} is ready. Read {site.policy_file} and check the images with")
    typer.echo(f"  fundusgen site check {folder}")
    typer.echo(f"Give the study lead the public key {site.keys / PUBLIC_KEY}")
    typer.echo("and read out its fingerprint to them, which is shown by")
    typer.echo(f"  fundusgen site keys {folder}")


@site_app.command()
def check(
    folder: _SiteArgument,
    image_size: Annotated[int, typer.Option(help="Size of the study, in pixels.")] = 64,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first row that cannot be used.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that decode.")] = 1,
) -> None:
    """Read the manifest and every image as a study would, and list what cannot be used."""
    site = SiteFolder(folder)
    data = site.settings().data
    reading = read_manifest(ManifestSettings.of(data, strict=strict))
    framed = framed_images(reading.rows, image_size, site.cache, strict=strict, workers=workers)
    problems = sorted(reading.problems + framed.problems, key=lambda problem: problem.line)
    for problem in problems[:_SHOWN_PROBLEMS]:
        typer.echo(str(problem))
    if len(problems) > _SHOWN_PROBLEMS:
        typer.echo(f"... and {len(problems) - _SHOWN_PROBLEMS} more")
    patients, left_out = len({row.patient_id for row in framed.rows}), left_out_count(problems)
    typer.echo(
        f"{len(framed.rows)} images of {patients} patients can be used, {left_out} rows are left "
        f"out, {len(problems) - left_out} more have a warning; declared are "
        f"{data.declared_patients} patients"
    )


@site_app.command()
def status(folder: _SiteArgument) -> None:
    """Show what the site has spent, and what its policy leaves."""
    site = SiteFolder(folder)
    settings, policy = site.settings(), site.policy()
    console = Console(highlight=False)
    # A head without its database is a lost ledger, not a new one: reading it says so.
    if not site.ledger_file.exists() and not head_file(site.ledger_file).exists():
        console.print(f"{settings.name} has spent nothing of epsilon {policy.max_epsilon:g}")
        return
    with Ledger.read(site.ledger_file) as ledger:
        rows, spent = ledger.rows(), policy.total_epsilon(ledger.events())
    if not rows:
        console.print(f"{settings.name} has spent nothing of epsilon {policy.max_epsilon:g}")
        return
    table = Table("event", "study", "round", "mechanism", "noise", "rate", "steps", "state")
    for row in rows:
        event = row.event
        table.add_row(
            str(row.event_id), row.study_id, str(row.round_number), event.kind,
            f"{event.noise_multiplier:.4g}", f"{event.sample_rate:g}", str(event.steps), row.state,
        )  # fmt: skip
    console.print(table)
    console.print(
        f"{settings.name}: epsilon {spent:.3f} of {policy.max_epsilon:g} at delta {policy.delta:g}"
    )


site_app.command()(approve)
site_app.command("approve-code")(approve_code)


@site_app.command()
def keys(folder: _SiteArgument) -> None:
    """Make the keys that are missing, and show the public one and its fingerprint.

    The pair node and node.pub signs what leaves this site. The study lead gets node.pub, and
    nobody gets node. A key that is there is never changed.
    """
    site = SiteFolder(folder)
    name, public = site.settings().name, site.keys / PUBLIC_KEY
    had_public = public.exists()
    try:
        made = make_keys(site.keys)
        fingerprint = key_fingerprint(site_public_key(site.keys))
    except OSError as error:
        raise SiteError(
            f"The keys in {site.keys} cannot be written: {error.strerror or error}",
            expected="a folder that this user may write",
            remedy="Correct its permissions",
        ) from error
    except SiteError as error:
        raise SiteError(
            error.found,
            expected=error.expected,
            remedy="Restore it from a backup. Without one, move the file away and run this again",
        ) from error
    for line in _made(name, made, had_public=had_public):
        typer.echo(line)
    typer.echo(f"The public key of {name}, for the study lead:")
    typer.echo(f"  {public}")
    typer.echo("Its fingerprint, to be compared with the study lead by telephone:")
    typer.echo(f"  {fingerprint}")


def _made(name: str, made: tuple[str, ...], *, had_public: bool) -> Iterator[str]:
    if not made:
        yield "No key is missing. Nothing was changed."
    if PRIVATE_KEY in made:
        yield f"Made {PRIVATE_KEY} and {PUBLIC_KEY}, a new pair of keys."
        yield f"The study lead must register the new {PUBLIC_KEY} before {name} can take part."
        if had_public:
            yield f"The old {PUBLIC_KEY} is kept with a number after its name. It checks what"
            yield "was signed before."
    elif PUBLIC_KEY in made:
        yield f"Made {PUBLIC_KEY} again, from {PRIVATE_KEY}. It is the same key as before."
    if FINGERPRINT_KEY in made:
        yield f"Made {FINGERPRINT_KEY}, a secret that stays here."
