"""What SQLite still gives of a ledger's database, whatever happened to it.

`ledger_file` refuses a database that is not whole. Whoever audits or repairs one wants all that
can still be read, with what is wrong with it, and must change nothing: this module works on a
private copy of the database and its write-ahead log, and leaves the original's folder alone.
"""

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fundusgen.errors import LedgerError
from fundusgen.privacy.ledger_file import APPLICATION_ID, SCHEMA

_COPY_ATTEMPTS = 20
# Rows that are looked up one by one where SQLite cannot walk through them.
_MAX_LOOKUPS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """Everything that SQLite gives, as stored and unchecked.

    Attributes:
        identities: `(ledger_id, created_at)` of every line of that table; one in a whole ledger.
        rows: Every line of `entries`, by column, in order of `sequence`.
        damage: What SQLite says about pages and rows that it cannot read; empty if all can be.
        schema: Names of tables and triggers that are missing, changed or not ours.
        application_id: Tells a ledger from other SQLite files.
        version: Of the ledger's form.
    """

    identities: tuple[tuple[Any, ...], ...] = ()
    rows: tuple[dict[str, Any], ...] = ()
    damage: tuple[str, ...] = ()
    schema: tuple[str, ...] = ()
    application_id: int = APPLICATION_ID
    version: int = 0

    @property
    def is_ledger(self) -> bool:
        """Whether the file says of itself that it is a ledger."""
        return self.application_id == APPLICATION_ID


def read_remains(path: Path) -> Remains:
    """Read all that can be read of a ledger's database.

    Guarantee: nothing is written beside `path`, not even SQLite's own files. Rows are as stored;
    text that is no UTF-8 has its wrong bytes written out, so that no digest fits it.
    Edge cases: a copy without its write-ahead log, and one that a client works with, are read. Of
    a file that is no database at all nothing is read, and `damage` says so.

    Raises:
        LedgerError: There is no file, or it cannot be read.
    """
    with _private_copy(path) as copy:
        try:
            with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
                return _remains(connection)
        except sqlite3.Error as error:
            return Remains(damage=(f"it cannot be opened as a database ({error})",))


@contextmanager
def _private_copy(path: Path) -> Iterator[Path]:
    """Copy database and log as they were at one moment, for as long as the block lasts."""
    log = path.with_name(f"{path.name}-wal")
    with tempfile.TemporaryDirectory(prefix="fundusgen-ledger-") as folder:
        copy = Path(folder) / "ledger.db"
        try:
            if not path.is_file():
                raise LedgerError(f"there is no ledger at {path}", expected="a ledger.db")
            for attempt in range(_COPY_ATTEMPTS):
                before = _state(path), _state(log)
                shutil.copyfile(path, copy)
                copied_log = copy.with_name("ledger.db-wal")
                copied_log.unlink(missing_ok=True)
                if before[1] is not None:
                    shutil.copyfile(log, copied_log)
                if (_state(path), _state(log)) == before:
                    break
                time.sleep(0.05 * (attempt + 1))
        except OSError as error:
            raise LedgerError(
                f"{path} cannot be read: {error.strerror or error}",
                expected="a ledger.db, or a copy of one, that you may read",
            ) from error
        yield copy


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size


def _remains(connection: sqlite3.Connection) -> Remains:
    connection.text_factory = lambda data: data.decode("utf-8", "backslashreplace")
    schema = dict(
        connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
        ).fetchall()
    )
    damage: list[str] = []
    rows = tuple(_rows(connection, damage)) if "entries" in schema else ()
    identities: list[tuple[Any, ...]] = []
    if "identity" in schema:
        with _noting(damage):
            identities = connection.execute("SELECT ledger_id, created_at FROM identity").fetchall()
    with _noting(damage):
        verdicts = connection.execute("PRAGMA integrity_check(20)").fetchall()
        damage += [text for (text,) in verdicts if text != "ok"]
    return Remains(
        identities=tuple(identities),
        rows=rows,
        damage=tuple(dict.fromkeys(" ".join(text.split()) for text in damage)),
        schema=tuple(
            sorted(
                name
                for name in schema.keys() | SCHEMA.keys()
                if schema.get(name) != SCHEMA.get(name)
            )
        ),
        application_id=connection.execute("PRAGMA application_id").fetchone()[0],
        version=connection.execute("PRAGMA user_version").fetchone()[0],
    )


@contextmanager
def _noting(damage: list[str]) -> Iterator[None]:
    """Go on where SQLite cannot, with a note of it."""
    try:
        yield
    except sqlite3.Error as error:
        damage.append(str(error))


def _rows(connection: sqlite3.Connection, damage: list[str]) -> list[dict[str, Any]]:
    """Read entries from both ends, and one by one in between, around what is torn."""
    from_start = _walk(connection, "ASC", damage)
    if not damage:
        return from_start
    from_end = _walk(connection, "DESC", damage)[::-1]
    between: list[dict[str, Any]] = []
    first = from_start[-1].get("sequence") if from_start else 0
    last = from_end[0].get("sequence") if from_end else None
    if isinstance(first, int) and isinstance(last, int):
        for number in range(first + 1, min(last, first + _MAX_LOOKUPS)):
            with _noting([]):
                cursor = connection.execute("SELECT * FROM entries WHERE sequence = ?", (number,))
                between += _named(cursor, cursor.fetchall())
    found = {tuple(row.items()): row for row in (*from_start, *between, *from_end)}
    return list(found.values())


def _walk(
    connection: sqlite3.Connection, direction: str, damage: list[str]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with _noting(damage):
        # Without `sequence` (changed tables) the order of storing is the best there is.
        names = {row[1] for row in connection.execute("PRAGMA table_info(entries)")}
        key = "sequence" if "sequence" in names else "rowid"
        cursor = connection.execute(f"SELECT * FROM entries ORDER BY {key} {direction}")  # noqa: S608
        for values in cursor:
            rows += _named(cursor, [values])
    return rows


def _named(cursor: sqlite3.Cursor, rows: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, values, strict=True)) for values in rows]
