"""What evaluations and audits say, read as files that anybody may have written.

Where a number should be there may be null, NaN, text or nothing: such a figure is None here, and
what was not measured does not pass the gate.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fundusgen.errors import RunError


@dataclass(frozen=True)
class Evidence:
    """A file that was read once, so that what was checked is what leaves.

    Attributes:
        content: Its bytes.
        values: The JSON object in it.
    """

    content: bytes
    values: dict[str, Any]


def read_evidence(path: Path, form: str, remedy: str) -> Evidence:
    """Read a file of JSON.

    Args:
        path: The file.
        form: Its `format`.
        remedy: How to make it anew.

    Raises:
        RunError: It is missing, no JSON object, or of another format. NaN and infinity are no JSON.
    """
    try:
        content = path.read_bytes()
        values = json.loads(content, parse_constant=_no_constant)
        if (found := at(values, "format")) != form:
            raise ValueError(f"its format is {found!r}")
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(
            f"{path} cannot be used: {error}", expected=f"a file of the format {form}",
            remedy=remedy,
        ) from error  # fmt: skip
    return Evidence(content, values)


def at(values: object, *path: str | int) -> Any:
    """What lies at a path of keys and places; None where nothing does."""
    for step in path:
        if isinstance(step, str):
            values = values.get(step) if isinstance(values, dict) else None
        else:
            values = values[step] if isinstance(values, list) and step < len(values) else None
    return values


def number(values: object, *path: str | int) -> float | None:
    """The number at a path; None where there is none that is finite."""
    found = at(values, *path)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    # An integer of hundreds of digits is no float.
    return float(found) if abs(found) < 1e300 and math.isfinite(found) else None


def listed(values: object, *path: str | int) -> Sequence[Any]:
    """The list at a path; empty where there is none."""
    found = at(values, *path)
    return found if isinstance(found, list) else ()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
