"""A person's yes, and their name, for what a hospital does on purpose and writes into its ledger.

Everything but a yes is a no. Who says yes is who they say they are: nothing here proves a name.
"""

import getpass
import sys
from typing import Annotated

import typer

from fundusgen.errors import SiteError

NOT_AGREED = 1
_MAX_NAME = 100
ByOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Your name, for the ledger. If absent, you are asked; where nobody is there to ask, "
        "it is the login name.",
    ),
]
YesOption = Annotated[
    bool, typer.Option("--yes", help="Say yes without being asked. For when nobody is there.")
]


def agreed(question: str, person: str | None, *, yes: bool) -> str:
    """Ask for a yes and for a name; ends the command without both.

    Args:
        question: What is asked.
        person: Their name, if it was given.
        yes: Whether the yes was given on the command line.

    Returns:
        The name of the person, fit for the ledger.

    Raises:
        typer.Exit: The answer was no, or there was none.
        SiteError: The name cannot be kept.
    """
    if yes:
        return person or checked_name(_login_name())
    try:
        if typer.confirm(question):
            return person or checked_name(_asked_name())
        typer.echo("That was a no. Nothing was changed.")
    except typer.Abort:
        typer.echo("\nNo answer is a no. Nothing was changed.")
        if not sys.stdin.isatty():
            typer.echo(
                "Run this in a terminal. Where nobody is there to type, give --yes and --by NAME,\n"
                "after a person has read what is shown here."
            )
    raise typer.Exit(NOT_AGREED)


def _asked_name() -> str:
    login = _login_name()
    if not sys.stdin.isatty():
        return login
    return str(typer.prompt("Your name, for the ledger", default=login or None))


def _login_name() -> str:
    try:
        return getpass.getuser()
    # No name in the environment, and none for this user on this machine.
    except (OSError, KeyError):
        return ""


def checked_name(name: str) -> str:
    """Check a name that the ledger and a line of the policy will hold.

    Raises:
        SiteError: It is empty, too long, or not of one line.
    """
    name = name.strip()
    if not name or len(name) > _MAX_NAME or not name.isprintable():
        shown = repr(name if len(name) <= 40 else f"{name[:37]}...")
        raise SiteError(
            f"The name {shown} cannot be kept" if name else "There is no name to keep",
            expected=f"who decides, in 1 to {_MAX_NAME} characters on one line",
            remedy="Give it with --by NAME",
        )
    return name
