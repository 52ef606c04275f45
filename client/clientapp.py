"""The program that answers a message at a site, in place of Flower's `flwr-clientapp`.

Flower's own unpacks the bundle that came from the server and runs what it holds: whoever can
start a run at the server could have any code run beside the patients' images. This one answers
with the code that the hospital has installed, and the bundle is dropped as it arrives.

    python -P -m client.clientapp --runtime-api-address ADDRESS --token TOKEN ...

It is Flower's program, with a few of its parts replaced. A Flower that lacks one of them would
run past the replacement: nothing is started then. Recheck on every new Flower.
"""

import dataclasses
import inspect
import sys
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any, NoReturn

from flwr.app import Error
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.supernode.runtime import run_clientapp as runner

from fundusgen.errors import SiteError

# All that a server learns of an exception at a site. `client.app` catches what it can; this is
# for what goes wrong around it.
ERROR_TEXT = "The site could not answer; its operator can read why."
_NO_BUNDLE = b""


def main() -> None:
    """Answer one message, as Flower's command does."""
    try:
        own_code_only(runner)
    except SiteError as error:
        sys.exit(f"error: {error}")
    # Its own import of the runner takes what has been replaced there.
    from flwr.supernode.cli import flwr_clientapp

    flwr_clientapp()


def own_code_only(module: ModuleType) -> None:
    """Make Flower's runner answer with the installed app, and keep its errors to itself.

    Guarantee: no byte of the server's bundle is unpacked, imported or installed, and the text of
    no exception is sent.
    Edge cases: a runner without one of the replaced parts is refused. An installed app that
    cannot be loaded is an error like any other; the bundle's is no second choice.

    Args:
        module: `flwr.supernode.runtime.run_clientapp`.

    Raises:
        SiteError: This version of Flower works in another way.
    """
    require_parts(module, "run_clientapp", (*_replacements(module), "runtime_dependency_install"))
    vars(module).update(_replacements(module))


def require_parts(module: ModuleType, function: str, names: tuple[str, ...]) -> None:
    """Make sure that a function of Flower uses the parts that are replaced.

    Raises:
        SiteError: It does not, so that replacing them would be without effect.
    """
    found = vars(module).get(function)
    used = _names(inspect.unwrap(found).__code__) if inspect.isfunction(found) else set()
    missing = sorted(set(names) - used)
    if missing:
        raise SiteError(
            f"{module.__name__}.{function} of this Flower does not use {', '.join(missing)}",
            expected="flwr 1.41, where a site can keep to its own code",
            remedy="Install the version of flwr that fundusgen's constraints.txt names",
        )


def installed_app() -> ClientApp:
    """The app that the hospital has installed."""
    from client.app import app

    return app


def _names(code: CodeType) -> set[str]:
    """All names that a function and those within it use, of keyword arguments too."""
    names = {*code.co_names, *code.co_varnames}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
        elif isinstance(constant, tuple):
            names |= {word for word in constant if isinstance(word, str)}
    return names


def _replacements(module: ModuleType) -> dict[str, Callable[..., Any]]:
    pull = getattr(module, "pull_task_input", None)

    def pull_without_bundle(*arguments: Any) -> tuple[Any, ...]:
        message, context, run, bundle = pull(*arguments)  # type: ignore[misc]
        return message, context, run, dataclasses.replace(bundle, content=_NO_BUNDLE)

    return {
        "pull_task_input": pull_without_bundle,
        "install_from_fab": _unpack_nothing,
        "install_app_dependencies": _install_nothing,
        "get_load_client_app_fn": _load_installed,
        "Error": _error_without_text,
    }


def _unpack_nothing(bundle: bytes, **_: Any) -> None:
    if bundle != _NO_BUNDLE:
        raise SiteError("A bundle of the server was about to be unpacked")


def _install_nothing(*_: Any, **__: Any) -> NoReturn:
    raise SiteError("A bundle of the server asked for packages to be installed")


def _load_installed(**_: Any) -> Callable[[str, str, str], ClientApp]:
    return lambda _name, _version, _hash: installed_app()


def _error_without_text(**_: Any) -> Error:
    return Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, ERROR_TEXT)


if __name__ == "__main__":
    main()
