"""The `fundusgen` command: gathers the command groups, and turns errors into sentences."""

import sys
from importlib.metadata import entry_points
from typing import Annotated

import typer

from fundusgen import __version__
from fundusgen.cli.audit import audit_app
from fundusgen.cli.audit_mechanism import mechanism
from fundusgen.cli.evaluate import evaluate
from fundusgen.cli.generate import generate
from fundusgen.cli.ledger import ledger_app
from fundusgen.cli.phantom import phantom_app
from fundusgen.cli.plan import plan
from fundusgen.cli.prior import prior
from fundusgen.cli.release import release, verify
from fundusgen.cli.site import site_app
from fundusgen.errors import FundusgenError

app = typer.Typer(
    name="fundusgen",
    help="A generator of retinal fundus photographs, learned across hospitals in private.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and end.")] = False,
) -> None:
    if version:
        typer.echo(f"fundusgen {__version__}")
        raise typer.Exit


app.command()(evaluate)
app.command()(generate)
app.command()(plan)
app.command()(prior)
app.command()(release)
app.command()(verify)
app.add_typer(phantom_app, name="phantom")
app.add_typer(site_app, name="site")
site_app.add_typer(ledger_app, name="ledger")
audit_app.command()(mechanism)
app.add_typer(audit_app, name="audit")
# Commands that start servers and clients live above the library and join here by name; one
# named `site.join` joins the group `site`.
_groups = {"": app, "site": site_app}
for _entry in entry_points(group="fundusgen.commands"):
    _group, _, _name = _entry.name.rpartition(".")
    _groups[_group].command(_name)(_entry.load())


def main() -> None:
    """Run the command line; what a user did wrong ends in a sentence and status 1."""
    try:
        app()
    except FundusgenError as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        sys.exit(130)
