"""The header of a manifest: which column is where, and what separates the cells."""

import csv
import difflib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fundusgen.errors import ManifestError

KNOWN_COLUMNS = (
    "file",
    "patient_id",
    "eye",
    "dr_grade",
    "dme_risk",
    "diagnosis",
    "sex",
    "age",
)
DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class Header:
    """Where to find what in a row.

    Attributes:
        delimiter: What separates cells.
        width: Cells in a row.
        columns: Known column to its place, counted from 0.
    """

    delimiter: str
    width: int
    columns: Mapping[str, int]


def read_header(
    text: str, manifest: Path, columns: Mapping[str, str], ignored: tuple[str, ...]
) -> Header:
    """Find the known columns of a manifest.

    Args:
        text: The manifest's text.
        manifest: Its file, for messages.
        columns: Known name to the name in the file.
        ignored: Names in the file to pass over.

    Raises:
        ManifestError: If a column is unknown, there twice, mapped but absent, or `file` is absent.
    """
    known_by_name = _names_in_file(columns)
    delimiter, names = _split_header(text, known_by_name)
    where = manifest.name
    if not any(names):
        raise ManifestError(
            f"{where} is empty",
            expected=f"a header with some of {', '.join(KNOWN_COLUMNS)}",
            remedy="Write a header and a row for each image",
        )
    for name in names:
        if names.count(name) > 1:
            raise ManifestError(
                f"{where} has the column {name!r} twice",
                expected="each column once",
                remedy="Remove or rename one of the two",
            )
        if name not in known_by_name and name not in ignored:
            raise _unknown_column(name, where, known_by_name)
    for known, name in columns.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise ManifestError(
                f"{where} has no column {name!r}, which `{known}` is mapped to",
                expected=f"one of its columns: {', '.join(names)}",
                remedy=f"Did you mean {near[0]!r}?" if near else "Correct the mapping",
            )
    places = {known_by_name[name]: i for i, name in enumerate(names) if name in known_by_name}
    if "file" not in places:
        raise ManifestError(
            f"{where} has no column `file`",
            expected="the image's file in every row",
            remedy="Add the column, or map it under `columns`",
        )
    return Header(delimiter, len(names), places)


def _names_in_file(columns: Mapping[str, str]) -> dict[str, str]:
    for known in columns:
        if known not in KNOWN_COLUMNS:
            near = difflib.get_close_matches(known, KNOWN_COLUMNS, n=1)
            raise ManifestError(
                f"the mapping of columns names {known!r}",
                expected=f"one of {', '.join(KNOWN_COLUMNS)}",
                remedy=f"Did you mean {near[0]!r}?" if near else "Remove it",
            )
    names = {columns.get(known, known): known for known in KNOWN_COLUMNS}
    if len(names) < len(KNOWN_COLUMNS):
        raise ManifestError(
            "the mapping of columns gives two known columns the same name in the file",
            expected="one column of the file for each known column",
            remedy="Correct the mapping",
        )
    return names


def _split_header(text: str, known_by_name: Mapping[str, str]) -> tuple[str, list[str]]:
    """Take the separator under which most names are known; a comma if in doubt."""
    best: tuple[int, str, list[str]] = (-1, ",", [])
    for delimiter in DELIMITERS:
        try:
            cells = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        except csv.Error:
            continue
        names = [cell.strip() for cell in cells]
        known = sum(name in known_by_name for name in names)
        if known > best[0]:
            best = (known, delimiter, names)
    return best[1], best[2]


def _unknown_column(name: str, where: str, known_by_name: Mapping[str, str]) -> ManifestError:
    near = difflib.get_close_matches(name.lower(), list(known_by_name), n=1, cutoff=0.4)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return ManifestError(
        f"{where} has the unknown column {name!r}",
        expected=f"some of {', '.join(known_by_name)}",
        remedy=f"{hint}Rename it, map it under `columns`, or list it under `ignored_columns`",
    )
