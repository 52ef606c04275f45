"""A site's list of images: reading, checking and writing the manifest.

The first step of everything that touches patient data. The manifest is a CSV file with a header;
its columns are `KNOWN_COLUMNS`, of which `file` and `patient_id` are needed. Comma, semicolon and
tab are accepted between cells (a spreadsheet in a European locale saves semicolons), as are a byte
order mark and any line ending. The text must be UTF-8.

A row that cannot be used becomes a `RowProblem`; a manifest that cannot be understood at all (no
such file, UTF-16, an unknown or missing column) is a `ManifestError`.

Guarantee: whether and how a row is used depends on that row and on rows of its own patient only,
as differential privacy per patient demands of all preprocessing. So every line is read by itself:
a stray quote, or a byte in another encoding, in one patient's row neither swallows the rows of
others nor stops the reading, which a server would be told of in one word. In return no cell goes on
over a line break.
"""

import codecs
import csv
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fundusgen.data.cells import (
    DIAGNOSES,
    EYES,
    MAX_AGE_YEARS,
    SEXES,
    CellError,
    one_of,
    whole_number,
)
from fundusgen.data.duplicates import Repeats
from fundusgen.data.header import KNOWN_COLUMNS, Header, read_header
from fundusgen.data.problems import RowProblem, refuse
from fundusgen.errors import ManifestError
from fundusgen.storage import replacing

__all__ = [
    "KNOWN_COLUMNS",
    "ImageRow",
    "ManifestReading",
    "ManifestSettings",
    "ManifestSource",
    "RowProblem",
    "read_manifest",
    "write_manifest",
]


@dataclass(frozen=True)
class ImageRow:
    """One usable row: an image, whose it is, and what is known about it.

    Attributes:
        line: Line of the manifest, counted from 1, the header included.
        file: The image as the manifest names it, relative to the root.
        path: The same file as an absolute path without links.
        patient_id: The privacy unit; all rows of a patient carry the same id.
        eye: `L`, `R` or empty.
        dr_grade: Diabetic retinopathy on the ICDR scale, 0 to 4, or None.
        dme_risk: Risk of macular oedema, 0 to 2, or None.
        diagnosis: One of `fundusgen.data.cells.DIAGNOSES`, or empty.
        sex: `F`, `M` or empty.
        age: In years, 0 to 130, or None.
    """

    line: int
    file: str
    path: Path
    patient_id: str
    eye: str
    dr_grade: int | None
    dme_risk: int | None
    diagnosis: str
    sex: str
    age: int | None


class ManifestSource(Protocol):
    """What a site says of its manifest; `fundusgen.site.SiteData` does, and is not known here."""

    @property
    def manifest(self) -> Path:
        """The CSV file."""

    @property
    def root(self) -> Path:
        """Folder that `file` is relative to."""

    @property
    def columns(self) -> Mapping[str, str]:
        """Known name to the name in the file."""

    @property
    def ignored_columns(self) -> tuple[str, ...]:
        """Further columns, to be passed over."""

    @property
    def one_image_per_patient(self) -> bool:
        """The statement that no patient has two images."""


@dataclass(frozen=True)
class ManifestSettings:
    """Where a site's manifest is and how it is to be read.

    Attributes:
        manifest: The CSV file.
        root: Folder that `file` is relative to; no image outside of it is ever opened.
        columns: Known name to the name in the file, for files with other names.
        one_image_per_patient: The site states that no patient has two images; only then may
            a row do without a patient id, and the file within the root takes its place.
        strict: Stop at problems instead of leaving rows out.
        ignored_columns: Further columns of the file, to be passed over.
    """

    manifest: Path
    root: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    one_image_per_patient: bool = False
    strict: bool = False
    ignored_columns: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: ManifestSource, *, strict: bool = False) -> "ManifestSettings":
        """Read the manifest as a site's own settings say."""
        return cls(
            manifest=source.manifest,
            root=source.root,
            columns=source.columns,
            one_image_per_patient=source.one_image_per_patient,
            strict=strict,
            ignored_columns=source.ignored_columns,
        )


@dataclass(frozen=True)
class ManifestReading:
    """The usable rows of a manifest, in its order, and what is wrong with the others.

    Attributes:
        rows: Rows to be used.
        problems: Why others are left out, and warnings of rows that are used.
    """

    rows: tuple[ImageRow, ...]
    problems: tuple[RowProblem, ...]


def read_manifest(settings: ManifestSettings) -> ManifestReading:
    """Read and check a manifest; images are looked for, not opened.

    Args:
        settings: Where it is and how to read it.

    Returns:
        Usable rows and problems. A file that a patient names twice is used once, in the first
        row. A file that two patients name is used in both rows, with a warning.

    Raises:
        ManifestError: If the manifest as a whole cannot be read, or, with `settings.strict`,
            if any row has a problem.
    """
    root = Path(os.path.realpath(settings.root))
    if not root.is_dir():
        raise ManifestError(
            f"the image folder {settings.root} does not exist",
            expected="the folder that the manifest's files are relative to",
            remedy="Correct `root` in the site's configuration",
        )
    rows: list[ImageRow] = []
    problems: list[RowProblem] = []
    repeats = Repeats("is the same file as")
    header, lines = _lines(settings)
    for line, content in enumerate(lines, start=2):
        try:
            cells = _cells(content, header)
            if not any(cells):
                continue
            row = _image_row(line, cells, header, root, settings.one_image_per_patient)
        except _Unusable as unusable:
            problems.append(RowProblem(line, *unusable.parts))
            continue
        repeat = repeats.problem(row.path, line=line, file=row.file, patient_id=row.patient_id)
        if repeat is not None:
            problems.append(repeat)
        if repeat is None or not repeat.left_out:
            rows.append(row)
    if settings.strict:
        refuse(problems, settings.manifest.name)
    return ManifestReading(tuple(rows), tuple(problems))


def write_manifest(path: Path, rows: Iterable[Mapping[str, str | int | None]]) -> None:
    """Write a manifest with all known columns, row by row, in constant memory.

    The file takes its name when it is complete; until then an earlier one stays.

    Args:
        path: The CSV file to write.
        rows: Values by known column; a column that is missing or None becomes an empty cell.

    Raises:
        ManifestError: If a row has a column that is not known.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, KNOWN_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            unknown = sorted(set(row) - set(KNOWN_COLUMNS))
            if unknown:
                raise ManifestError(
                    f"a row to write has the column {unknown[0]!r}",
                    expected=f"some of {', '.join(KNOWN_COLUMNS)}",
                    remedy="Remove the column",
                )
            writer.writerow({name: row.get(name) for name in KNOWN_COLUMNS})


class _Unusable(Exception):
    """A reason to leave out the row being read."""

    def __init__(self, column: str, found: str, expected: str, remedy: str) -> None:
        super().__init__(found)
        self.parts = (column, found, expected, remedy)


def _lines(settings: ManifestSettings) -> tuple[Header, list[bytes]]:
    """Read the header, and give the lines after it as they are."""
    manifest = settings.manifest
    try:
        content = manifest.read_bytes()
    except OSError as error:
        raise ManifestError(
            f"the manifest {manifest} cannot be read: {error.strerror}",
            expected="a CSV file with a row for each image",
            remedy="Correct `manifest` in the site's configuration",
        ) from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ManifestError(
            f"{manifest.name} is UTF-16 text",
            expected="UTF-8 text",
            remedy="Save it again as `CSV UTF-8`",
        )
    first, *lines = re.split(rb"\r\n|\r|\n", content.removeprefix(codecs.BOM_UTF8))
    text = first.decode("utf-8", "backslashreplace")
    header = read_header(text, manifest, settings.columns, settings.ignored_columns)
    if "patient_id" not in header.columns and not settings.one_image_per_patient:
        raise ManifestError(
            f"{manifest.name} has no column `patient_id`",
            expected="a patient id in every row: the guarantee is given per patient",
            remedy="Add the column or map it under `columns`; only if no patient has two "
            "images, state `one_image_per_patient: true`",
        )
    return header, lines


def _cells(line: bytes, header: Header) -> list[str]:
    """Part one line into its cells."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Unusable(
            "file",
            f"the byte 0x{line[error.start]:02x}, which is not UTF-8",
            "UTF-8 text",
            "Save the manifest again as `CSV UTF-8`",
        ) from error
    try:
        # Strict: a quote that is never closed is an error, and not a cell of all that follows.
        (cells,) = csv.reader([text], delimiter=header.delimiter, strict=True) if text else ([],)
    except csv.Error as error:
        raise _Unusable(
            "file",
            f"a line that is not CSV: {error}",
            "cells with quotes in pairs, and one line for each row",
            "Remove the quote that is too much, or the line breaks in the cell",
        ) from error
    return [cell.strip() for cell in cells]


def _image_row(
    line: int, found: list[str], header: Header, root: Path, one_image_per_patient: bool
) -> ImageRow:
    if len(found) != header.width:
        raise _Unusable(
            "file",
            f"{len(found)} cells",
            "as many cells as the header has columns",
            "Quote cells that hold a separator, and give empty cells their separators",
        )
    cells = {name: found[place] for name, place in header.columns.items()}
    file = cells["file"]
    path = _path_within(root, file)
    # One file is one patient however it is spelt.
    own_id = path.relative_to(root).as_posix() if one_image_per_patient else ""
    patient_id = cells.get("patient_id", "") or own_id
    if not patient_id:
        raise _Unusable(
            "patient_id",
            "an empty cell",
            "a patient id: the guarantee is given per patient",
            "Fill in the id; only if no patient has two images, state "
            "`one_image_per_patient: true`",
        )
    return ImageRow(
        line=line,
        file=file,
        path=path,
        patient_id=patient_id,
        eye=_word(cells, "eye", EYES),
        dr_grade=_number(cells, "dr_grade", 4, "the ICDR grade of diabetic retinopathy"),
        dme_risk=_number(cells, "dme_risk", 2, "the risk of macular oedema"),
        diagnosis=_word(cells, "diagnosis", DIAGNOSES),
        sex=_word(cells, "sex", SEXES),
        age=_number(cells, "age", MAX_AGE_YEARS, "years"),
    )


def _path_within(root: Path, file: str) -> Path:
    if not file:
        raise _Unusable("file", "an empty cell", "the image's file", "Name the file")
    if "\0" in file:
        raise _Unusable("file", "a zero byte", "a file name", "Remove the byte")
    path = Path(os.path.realpath(root / file))
    if not path.is_relative_to(root):
        raise _Unusable(
            "file",
            f"{file!r}, which leads out of the image folder",
            "a file inside the folder, links followed",
            "Move the image into the folder or correct the name",
        )
    if path.is_file():
        return path
    separators = "\\" in file
    raise _Unusable(
        "file",
        f"{file!r}, which is {'not a regular file' if path.exists() else 'not there'}",
        "an image file",
        "Write `/` between folders" if separators else "Correct the name or add the image",
    )


def _number(cells: Mapping[str, str], column: str, highest: int, meaning: str) -> int | None:
    text = cells.get(column, "")
    try:
        return whole_number(text, highest, meaning)
    except CellError as error:
        raise _Unusable(column, f"{text!r}", error.expected, error.remedy) from error


def _word(cells: Mapping[str, str], column: str, choices: tuple[str, ...]) -> str:
    text = cells.get(column, "")
    try:
        return one_of(text, choices)
    except CellError as error:
        raise _Unusable(column, f"{text!r}", error.expected, error.remedy) from error
