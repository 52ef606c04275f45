"""The files that make up the Flower app, from a checkout or from an installed package.

Flower's own bundler looks at every file below the app's folder, a virtual environment and all
run folders included. Here only what ``fab-include`` can name is listed; Flower then applies its
own rules to the list, so the bundle is byte for byte the one of `flwr build`.
"""

import tomllib
from pathlib import Path

import simulations
from fundusgen.errors import RunError

_CONFIGURATION = "pyproject.toml"
_ALWAYS = (_CONFIGURATION, ".gitignore", "LICENSE", "LICENSE.md", "README.md")


def own_app() -> dict[str, Path]:
    """List the files of fundusgen's own Flower app.

    Returns:
        Relative POSIX path to file, as `app_files` returns it.

    Raises:
        RunError: Neither a checkout nor a complete installation is there.
    """
    home = Path(simulations.__file__).parent
    root = home.parent
    if (root / _CONFIGURATION).is_file():
        return app_files(root)
    # An installed package has no checkout; the wheel carries these two of its files.
    files = app_files(root, configuration=home / "flower_app.toml")
    return {**files, "LICENSE": home / "flower_app_license"}


def app_files(folder: Path, *, configuration: Path | None = None) -> dict[str, Path]:
    """List the files of a Flower app that may go into its bundle.

    Args:
        folder: Folder that the patterns of ``fab-include`` are relative to.
        configuration: The app's ``pyproject.toml``; `None` for the one in `folder`.

    Returns:
        Relative POSIX path to file. `pyproject.toml` is among them.

    Raises:
        RunError: There is no such file, or it describes no Flower app.
    """
    configuration = configuration or folder / _CONFIGURATION
    files = {name: folder / name for name in _ALWAYS if (folder / name).is_file()}
    files[_CONFIGURATION] = configuration
    for top in sorted({pattern.lstrip("/").split("/")[0] for pattern in _includes(configuration)}):
        for path in sorted(folder.glob(f"{top}/**/*")):
            if path.is_file() and not path.is_symlink():
                files[path.relative_to(folder).as_posix()] = path
    return files


def _includes(configuration: Path) -> list[str]:
    try:
        table = tomllib.loads(configuration.read_text(encoding="utf-8"))
        return [str(pattern) for pattern in table["tool"]["flwr"]["app"]["fab-include"]]
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise RunError(
            f"{configuration} describes no Flower app ({error!r})",
            expected="a table [tool.flwr.app] with a list `fab-include`",
            remedy="Install the package again, or name the folder of a Flower app",
        ) from error
