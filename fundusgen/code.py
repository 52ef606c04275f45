"""Which code runs: one hash over the files that answer for a site.

A policy names the hashes of the code that may touch its patients, and every receipt and event
says under which one it was made. The same files have the same hash wherever they lie: in a
checkout, in an installed wheel, in a bundle that Flower has unpacked.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib.machinery import all_suffixes
from pathlib import Path

from fundusgen.errors import SiteError

# What runs at a site. `server` and `simulations` lie beside them, and do not.
PACKAGES = ("client", "fundusgen")
_BYTECODE = "__pycache__"


@lru_cache(maxsize=1)
def code_hash() -> str:
    """SHA-256 of the code that this process runs, in hexadecimal digits.

    Guarantee: two processes with the same hash import the same files of `client` and `fundusgen`,
    up to collisions of SHA-256.
    Edge cases: read once a process, so that files changed under a running one, and bytecode in
    `__pycache__` that does not match its source, go unseen. Other packages (torch, Flower, Python
    itself) are not in it.

    Raises:
        SiteError: `client` is missing, comes from elsewhere, or a file cannot be read.
    """
    root = Path(__file__).parents[1]
    for name in PACKAGES:
        loaded = getattr(sys.modules.get(name), "__file__", None)
        if loaded is not None and Path(loaded).parent.resolve() != (root / name).resolve():
            raise SiteError(
                f"The package `{name}` comes from {Path(loaded).parent}",
                expected=f"{root / name}, where the rest of fundusgen is",
                remedy="Install fundusgen anew, in an environment of its own",
            )
    return hash_of(root)


def hash_of(root: Path) -> str:
    """Hash of the code below a folder that holds `client` and `fundusgen`.

    Args:
        root: A checkout, a `site-packages`, or an unpacked bundle.

    Returns:
        SHA-256 over the canonical JSON of {path from the root with slashes: SHA-256 of the file},
        for every file that Python would import from the two packages.

    Raises:
        SiteError: A package is missing, holds a link, or cannot be read.
    """
    files: dict[str, str] = {}
    try:
        for name in PACKAGES:
            for path in _imported_below(root / name):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                files[path.relative_to(root).as_posix()] = content
    except OSError as error:
        raise SiteError(
            f"The code at {error.filename} cannot be read: {error.strerror}",
            expected=f"the packages {' and '.join(PACKAGES)} in {root}",
            remedy="Install fundusgen anew",
        ) from error
    text = json.dumps(files, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _imported_below(package: Path) -> Iterator[Path]:
    """Every file below a package that Python may take code from: sources, and what it prefers."""
    _require_no_link(package)
    if not (package / "__init__.py").is_file():
        raise SiteError(
            f"The package `{package.name}` is missing in {package.parent}",
            expected=f"the packages {' and '.join(PACKAGES)} side by side",
            remedy="Install fundusgen anew",
        )
    for folder, folders, names in os.walk(package, onerror=_raise):
        folders[:] = [name for name in folders if name != _BYTECODE]
        paths = [Path(folder, name) for name in names if name.endswith(tuple(all_suffixes()))]
        for path in (*paths, *(Path(folder, name) for name in folders)):
            _require_no_link(path)
        yield from paths


def _require_no_link(path: Path) -> None:
    """Refuse what a link would bring in from elsewhere: it is run, but would not be hashed."""
    if path.is_symlink():
        raise SiteError(
            f"{path} is a symbolic link",
            expected="code that lies in the package itself",
            remedy="Install fundusgen with copied files",
        )


def _raise(error: OSError) -> None:
    raise error
