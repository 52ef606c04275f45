"""Images cannot reach the server by accident: the directions of imports, held."""

import ast
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
# What each room may import, by the longest prefix that fits; itself is always allowed.
ALLOWED = {
    "fundusgen.errors": set(),
    "fundusgen.storage": {"fundusgen.errors"},
    "fundusgen.pixels": set(),
    "fundusgen.logs": set(),
    "fundusgen.code": {"fundusgen.errors"},
    "fundusgen.guardian": set(),
    "fundusgen.environment": {"fundusgen", "fundusgen.storage"},
    "fundusgen.settings_file": set(),
    "fundusgen.study": {"fundusgen.errors", "fundusgen.settings_file"},
    "fundusgen.run_folder": {"fundusgen.errors", "fundusgen.storage", "fundusgen.study"},
    "fundusgen.site": {
        "fundusgen.errors",
        "fundusgen.privacy",
        "fundusgen.settings_file",
        "fundusgen.storage",
        "fundusgen.study",
    },
    "fundusgen.models": {
        "fundusgen.errors",
        "fundusgen.pixels",
        "fundusgen.storage",
        "fundusgen.study",
    },
    "fundusgen.data": {
        "fundusgen.errors",
        "fundusgen.pixels",
        "fundusgen.storage",
        "fundusgen.study",
    },
    "fundusgen.phantom": {"fundusgen.errors", "fundusgen.storage", "fundusgen.study"},
    "fundusgen.phantom.site": {"fundusgen.data", "fundusgen.phantom", "fundusgen.errors"},
    "fundusgen.privacy": {
        "fundusgen.errors",
        "fundusgen.settings_file",
        "fundusgen.storage",
        "fundusgen.study",
    },
    "fundusgen.federation": {"fundusgen.errors", "fundusgen.storage", "fundusgen.privacy"},
    "fundusgen.training": {"fundusgen"},
    "fundusgen.evaluation": {
        "fundusgen.errors",
        "fundusgen.models",
        "fundusgen.phantom",
        "fundusgen.pixels",
        "fundusgen.storage",
        "fundusgen.study",
    },
    # Real photographs, and what a run leaves, are read in one module each.
    "fundusgen.evaluation.real_images": {
        "fundusgen.data",
        "fundusgen.errors",
        "fundusgen.evaluation",
        "fundusgen.site",
    },
    "fundusgen.evaluation.subject": {
        "fundusgen.errors",
        "fundusgen.evaluation",
        "fundusgen.models",
        "fundusgen.run_folder",
        "fundusgen.training",
    },
    "fundusgen.auditing": {"fundusgen.errors", "fundusgen.privacy", "fundusgen.storage"},
    "fundusgen.release": {"fundusgen"},
    "fundusgen.report": {"fundusgen"},
    "fundusgen.cli": {"fundusgen"},
    "client": {"fundusgen"},
    "server": {"fundusgen"},
    "simulations": {"fundusgen", "client", "server"},
}
OURS = ("fundusgen", "client", "server", "simulations", "tests")


def modules() -> dict[str, Path]:
    found = {}
    for package in OURS[:-1]:
        for path in (REPOSITORY / package).rglob("*.py"):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@cache
def imports_of(module: str) -> frozenset[str]:
    tree = ast.parse(MODULES[module].read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in MODULES else node.module)
    return frozenset(names)


def room_of(module: str) -> str:
    fitting = [room for room in ALLOWED if module == room or module.startswith(f"{room}.")]
    return max(fitting, key=len, default="")


def reached_from(module: str) -> set[str]:
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        for name in imports_of(waiting.pop()):
            if name in MODULES and name not in seen:
                seen.add(name)
                waiting.append(name)
    return seen


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_its_room_may(module: str) -> None:
    room = room_of(module)
    if not room:
        assert module == "fundusgen", f"{module} belongs to no room of the design"
        return
    for name in imports_of(module):
        if name.split(".")[0] not in OURS:
            continue
        allowed = ALLOWED[room] | {room}
        assert any(name == way or name.startswith(f"{way}.") for way in allowed), (
            f"{module} imports {name}; {room} may import {sorted(allowed)}"
        )


@pytest.mark.parametrize("module", sorted(name for name in MODULES if name.startswith("server")))
def test_the_server_reaches_neither_images_nor_dpsgd(module: str) -> None:
    reached = reached_from(module)
    assert not {name for name in reached if name.startswith("fundusgen.data")}
    assert "fundusgen.privacy.dpsgd" not in reached


def test_only_federation_and_the_apps_import_flower() -> None:
    users = {
        module
        for module in MODULES
        if any(name.split(".")[0] == "flwr" for name in imports_of(module))
    }
    homes = ("fundusgen.federation", "server", "client", "simulations")
    assert not {module for module in users if not module.startswith(homes)}


def test_models_know_nothing_of_privacy() -> None:
    for module in MODULES:
        if module.startswith("fundusgen.models"):
            assert not {n for n in reached_from(module) if n.startswith("fundusgen.privacy")}
