"""The hash that names the code of a site."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fundusgen.code import PACKAGES, code_hash, hash_of
from fundusgen.errors import SiteError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The packages as an installed wheel or an unpacked bundle has them."""
    root = tmp_path / "site-packages"
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, root / name, ignore=ignored)
    return root


def test_a_copy_of_the_same_files_has_the_hash_of_the_running_code(copied: Path) -> None:
    assert hash_of(copied) == code_hash()


def test_a_process_that_runs_an_installed_copy_gives_the_same_hash(copied: Path) -> None:
    (copied / "server").mkdir()
    (copied / "server" / "app.py").write_text("")
    (copied / "client" / "README.md").write_text("not code")
    script = "import client.app, fundusgen.code as code; print(code.__file__, code.code_hash())"
    said = run_with(copied, script)
    assert said.split() == [str(copied / "fundusgen" / "code.py"), code_hash()]
    # The process has compiled what it imported; the hash is of the sources.
    assert (copied / "fundusgen" / "__pycache__").is_dir()
    assert hash_of(copied) == code_hash()


def changed_byte(root: Path) -> None:
    path = root / "client" / "app.py"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def renamed(root: Path) -> None:
    (root / "client" / "site.py").rename(root / "client" / "sites.py")


def added(root: Path) -> None:
    (root / "fundusgen" / "training" / "more.py").write_text("")


def added_subpackage(root: Path) -> None:
    (root / "client" / "more").mkdir()
    (root / "client" / "more" / "__init__.py").write_text("")


def removed(root: Path) -> None:
    (root / "fundusgen" / "cli" / "phantom.py").unlink()


def swapped(root: Path) -> None:
    one, other = root / "client" / "app.py", root / "client" / "site.py"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def compiled_beside_its_source(root: Path) -> None:
    # Python imports an extension module before a source file of the same name.
    (root / "client" / "app.abi3.so").write_bytes(b"machine code")


@pytest.mark.parametrize(
    "change",
    [
        changed_byte, renamed, added, added_subpackage, removed, swapped,
        compiled_beside_its_source,
    ],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_whatever_changes_the_code_changes_the_hash(copied: Path, change) -> None:
    change(copied)
    assert hash_of(copied) != code_hash()


def test_code_without_its_client_is_an_error(copied: Path) -> None:
    shutil.rmtree(copied / "client")
    with pytest.raises(SiteError, match="`client` is missing"):
        hash_of(copied)


@pytest.mark.parametrize("linked", ["client", "client/site.py", "fundusgen/training"])
def test_a_link_is_an_error_since_what_it_names_may_change(copied: Path, linked: str) -> None:
    elsewhere = copied.parent / "elsewhere"
    (copied / linked).rename(elsewhere)
    (copied / linked).symlink_to(elsewhere)
    with pytest.raises(SiteError, match="symbolic link"):
        hash_of(copied)


def test_a_client_from_another_place_is_an_error(copied: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(copied / "client", other / "client")
    script = (
        f"import sys; sys.path.insert(0, {str(other)!r}); import client\n"
        "import fundusgen.code as code\n"
        "try:\n    code.code_hash()\nexcept code.SiteError as error:\n    print(error)"
    )
    assert f"`client` comes from {other / 'client'}" in run_with(copied, script)


def run_with(root: Path, script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": ""},
        cwd=root.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
