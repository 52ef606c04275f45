"""Runs a measurement in a process of its own, and says what a row of results is.

A fresh process has its own peak of memory, and takes the number of threads and the allocator's
settings from its environment, which a process that has begun cannot change.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

Row = dict[str, Any]
# One thread for numpy's and torch's libraries, whatever the machine has.
ONE_CORE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_CODE = """
import importlib, json, sys
module, function, arguments = sys.argv[1:]
rows = getattr(importlib.import_module(module), function)(*json.loads(arguments))
print("\\n" + json.dumps(rows))
"""


def row(name: str, value: float, unit: str, target: float | None = None) -> Row:
    """Make a row; what is counted a second should reach its target, all else stay below it.

    Returns:
        `name`, `value`, `unit`, `target` (None without one) and `met` (None without a target).
    """
    met = None if target is None else value >= target if at_least(unit) else value <= target
    return {"name": name, "value": value, "unit": unit, "target": target, "met": met}


def at_least(unit: str) -> bool:
    """Whether more of a unit is better."""
    return unit.endswith("/s")


def rows_of_child(
    module: str, function: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> list[Row]:
    """Call a function of a module in a fresh Python process.

    Args:
        module: Full name of the module.
        function: Its function; takes texts, returns rows.
        arguments: What it takes.
        environment: Variables in addition to this process's own.

    Raises:
        subprocess.CalledProcessError: It raised; its traceback is on standard error.
    """
    result = subprocess.run(
        [sys.executable, "-c", _CODE, module, function, json.dumps(arguments)],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        check=True,
    )
    # Libraries may print; the rows are the last line.
    rows: list[Row] = json.loads(result.stdout.splitlines()[-1])
    return rows
