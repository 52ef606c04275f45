"""The ledger's files: the database, the lock and the head.

    ledger.db        SQLite, write-ahead log, synchronous=FULL: a commit that returned is on disk
    ledger.db.lock   held exclusively by the one client that works with the site
    ledger.db.head   number and digest of the last entry, written after every commit

The chain inside the database shows what was changed or taken out before its end; the head shows
what was cut off at the end (a deleted last entry, a lost write-ahead log, an older copy put
back). Who can change the database, its head and the receipts that the server holds can still lie.
"""

import fcntl
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from fundusgen.errors import LedgerError
from fundusgen.privacy.ledger_rows import COLUMNS, REMEDY, Entry, canonical_json
from fundusgen.storage import write_atomically

SCHEMA_VERSION = 1
# "fuLG": tells a ledger from any other SQLite file.
APPLICATION_ID = 0x66754C47
_TYPES = {int: "INTEGER", float: "REAL", str: "TEXT"}
# Names and statements of everything in the database, as SQLite keeps them.
SCHEMA = {
    "identity": "CREATE TABLE identity (ledger_id TEXT NOT NULL, created_at TEXT NOT NULL) STRICT",
    "entries": "CREATE TABLE entries ("
    + ", ".join(
        f"{name} {_TYPES[Entry.__annotations__[name]]} "
        + ("PRIMARY KEY" if name == "sequence" else "NOT NULL")
        for name in COLUMNS
    )
    + ", previous TEXT NOT NULL, digest TEXT NOT NULL) STRICT",
    # Against mishaps at a sqlite3 prompt; against intent there is the chain.
    "entries_stay": "CREATE TRIGGER entries_stay BEFORE DELETE ON entries "
    "BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END",
    "entries_keep": "CREATE TRIGGER entries_keep BEFORE UPDATE ON entries "
    "BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END",
}


@contextmanager
def exclusive_lock(path: Path, wait_s: float) -> Iterator[None]:
    """Hold a lock file for the length of a block.

    Guarantee: no two processes, and no two blocks of one process, hold it at once. The kernel
    frees it when the process ends, however it ends.
    Edge cases: waits at most `wait_s`. The file stays. File systems without `flock` are refused.

    Raises:
        LedgerError: Another client holds it, or the folder cannot be written.
    """
    with _named(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise LedgerError(
                        f"another client works with this site ({path.name} is held)",
                        expected="one client a site at a time",
                        remedy=f"Wait until it ends, or stop it (waited {wait_s:g} s)",
                    ) from None
                time.sleep(0.02)
            except OSError as error:
                raise LedgerError(
                    f"{path} cannot be locked: {error.strerror or error}",
                    remedy="Keep the site folder on a local disk",
                ) from error
        yield
    finally:
        os.close(descriptor)


def connect(path: Path, *, read_only: bool, created_at: str, ledger_id: str) -> sqlite3.Connection:
    """Open the database, making it if there is none, and check that it is a whole ledger.

    Guarantee: the file is a ledger of this version, passes SQLite's integrity check, and every
    transaction that returns is on the disk.
    Edge cases: an absent or empty file is made into a ledger, unless `read_only`.

    Raises:
        LedgerError: It is another kind of file, damaged, of a newer version, or out of reach.
    """
    if read_only and not path.is_file():
        raise LedgerError(f"there is no ledger at {path}", expected="a ledger.db")
    with _named(path):
        if not read_only:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        mode = "ro" if read_only else "rw"
        if read_only and not path.with_name(f"{path.name}-wal").exists():
            # A ledger at rest: SQLite then needs no files of its own, in a folder it may not write.
            mode = "ro&immutable=1"
        uri = f"{path.absolute().as_uri()}?mode={mode}"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5.0)
    try:
        with _named(path):
            if not read_only:
                _require_wal(connection, path)
                if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    _create(connection, ledger_id, created_at)
            _check(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def genesis(connection: sqlite3.Connection) -> str:
    """Give what the first entry is chained to: the digest of the ledger's own identity.

    Guarantee: entries of one ledger do not fit into another: the identity is random.
    Edge cases: none.

    Raises:
        LedgerError: The ledger has no identity, or more than one.
    """
    with _named(Path("ledger.db")):
        identities = connection.execute("SELECT ledger_id, created_at FROM identity").fetchall()
    if len(identities) != 1:
        raise LedgerError(f"the ledger has {len(identities)} identities", expected="one")
    ledger_id, created_at = identities[0]
    text = canonical_json({"ledger_id": ledger_id, "created_at": created_at})
    return hashlib.sha256(text.encode()).hexdigest()


def read_entries(connection: sqlite3.Connection) -> list[tuple[Entry, str, str]]:
    """Read all entries with their links, in order of sequence.

    Guarantee: all of them, as stored; nothing is checked here.
    Edge cases: none.

    Raises:
        LedgerError: The database cannot be read.
    """
    with _named(Path("ledger.db")):
        found = connection.execute(
            f"SELECT {', '.join(COLUMNS)}, previous, digest FROM entries ORDER BY sequence"  # noqa: S608
        ).fetchall()
    return [
        (Entry(**dict(zip(COLUMNS, values[:-2], strict=True))), values[-2], values[-1])
        for values in found
    ]


def append(connection: sqlite3.Connection, entry: Entry, previous: str) -> str:
    """Write one entry after the last and give its digest.

    Guarantee: on return the entry is on the disk, and it follows the entry whose digest is
    `previous`; otherwise nothing was written.
    Edge cases: a database that another program has written to meanwhile raises.

    Raises:
        LedgerError: The disk is full or fails, the database is locked, or its end has moved.
    """
    digest = entry.digest(previous)
    values = (*(getattr(entry, name) for name in COLUMNS), previous, digest)
    with _named(Path("ledger.db")):
        connection.execute("BEGIN IMMEDIATE")
        try:
            last = connection.execute(
                "SELECT sequence, digest FROM entries ORDER BY sequence DESC LIMIT 1"
            ).fetchone()
            if last != ((entry.sequence - 1, previous) if entry.sequence > 1 else None):
                raise LedgerError(
                    "the ledger was written to by another program while it was open",
                    expected=f"entry {entry.sequence - 1} as the last",
                    remedy="Stop whatever writes to it, and open it again",
                )
            marks = ", ".join("?" * len(values))
            connection.execute(f"INSERT INTO entries VALUES ({marks})", values)  # noqa: S608
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    return digest


class Head(NamedTuple):
    """The last entry as noted outside the database; entry 0 is the genesis."""

    sequence: int
    digest: str


def head_file(path: Path) -> Path:
    """Give the head's path of a ledger's.

    Guarantee: in the same folder.
    Edge cases: none.
    """
    return path.with_name(f"{path.name}.head")


def read_head(path: Path) -> Head | None:
    """Read the head of the ledger at `path`; before its entries, which may grow meanwhile.

    Guarantee: as written by `write_head`, or an error.
    Edge cases: None where there is none.

    Raises:
        LedgerError: It cannot be read, or is no head.
    """
    try:
        with _named(path):
            text = head_file(path).read_bytes() if head_file(path).exists() else None
        if text is None:
            return None
        values = json.loads(text)
        head = Head(values["sequence"], values["digest"])
        if type(head.sequence) is not int or type(head.digest) is not str:
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise LedgerError(
            f"{head_file(path).name} is damaged",
            expected="the number and digest of the last entry",
            remedy=REMEDY,
        ) from error
    return head


def write_head(path: Path, head: Head) -> None:
    """Note the last entry of the ledger at `path`.

    Guarantee: on return the note is on the disk.
    Edge cases: written after the entry: a crash between leaves it one behind, which is allowed.

    Raises:
        LedgerError: The folder cannot be written.
    """
    with _named(head_file(path)):
        text = json.dumps({"sequence": head.sequence, "digest": head.digest})
        write_atomically(head_file(path), text, mode=0o600)


def require_not_lost(path: Path) -> None:
    """Refuse to begin a new ledger where there was one.

    Guarantee: passes only if the database is there, or its head is not.
    Edge cases: an empty file counts as none.

    Raises:
        LedgerError: The database is gone and its head is not.
    """
    with _named(path):
        lost = head_file(path).exists() and not (path.is_file() and path.stat().st_size)
    if lost:
        raise LedgerError(
            f"{path} is missing or empty, but {head_file(path).name} is there",
            expected="the ledger that belongs to it",
            remedy=f"Restore the ledger: without it, what was spent would be forgotten. {REMEDY}",
        )


def repair_file(path: Path) -> Path:
    """Give the path of the mark that a repair of the ledger at `path` is under way.

    Guarantee: in the same folder.
    Edge cases: none.
    """
    return path.with_name(f"{path.name}.repair")


def require_no_repair(path: Path) -> None:
    """Refuse a ledger whose files are being exchanged by a repair.

    Guarantee: passes only if no repair is under way, or was cut short.
    Edge cases: none.

    Raises:
        LedgerError: One is.
    """
    if repair_file(path).exists():
        raise LedgerError(
            f"a repair of {path} was cut short",
            expected="a ledger that is either the old one or the repaired one",
            remedy="Run `fundusgen site ledger repair` again: it goes on from the old one, which "
            "it has kept",
        )


def check_head(head: Head | None, chain: list[str], *, required: bool) -> None:
    """Hold the chain against the head.

    Guarantee: the chain contains the entry that the head names.
    Edge cases: the chain may be longer. No head is right for a ledger without entries, and for
    a copy that is only read (`required` False).

    Args:
        head: From `read_head`.
        chain: The genesis digest and the digests of entries 1, 2, ...
        required: Whether entries without a head are an error.

    Raises:
        LedgerError: Entries at the end are missing, or the head is.
    """
    entries = len(chain) - 1
    if head is None:
        if entries and required:
            raise LedgerError(
                f"the note of the last entry is missing beside a ledger of {entries} entries",
                expected="ledger.db.head, which tells the ledger from an old copy of it",
                remedy=REMEDY,
            )
        return
    if not 0 <= head.sequence <= entries or chain[head.sequence] != head.digest:
        raise LedgerError(
            f"the ledger ends at entry {entries} and lacks entry {head.sequence} as it was "
            "last noted",
            expected="every entry that was ever written",
            remedy="Entries were deleted, or an older ledger was put back: restore the latest. "
            f"{REMEDY}",
        )


def _create(connection: sqlite3.Connection, ledger_id: str, created_at: str) -> None:
    connection.execute("BEGIN EXCLUSIVE")
    for statement in SCHEMA.values():
        connection.execute(statement)
    connection.execute("INSERT INTO identity VALUES (?, ?)", (ledger_id, created_at))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _require_wal(connection: sqlite3.Connection, path: Path) -> None:
    if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise LedgerError(
            f"{path} cannot keep a write-ahead log", remedy="Keep the site folder on a local disk"
        )
    connection.execute("PRAGMA synchronous = FULL")


def _check(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise LedgerError(f"{path} is a database, but no ledger", expected="a ledger.db")
    if version > SCHEMA_VERSION:
        raise LedgerError(
            f"{path} was written by a newer fundusgen (ledger version {version})",
            expected=f"version {SCHEMA_VERSION} or older",
            remedy="Upgrade fundusgen at this site",
        )
    schema = dict(
        connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
        ).fetchall()
    )
    if schema != SCHEMA or version != SCHEMA_VERSION:
        odd = sorted(
            name for name in schema.keys() | SCHEMA.keys() if schema.get(name) != SCHEMA.get(name)
        )
        raise LedgerError(
            f"the tables of {path} were changed: {', '.join(odd) or f'version {version}'}",
            expected="the tables and triggers that fundusgen made",
            remedy=REMEDY,
        )
    (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise _damaged(path, verdict)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what SQLite and the system say into what a person can act on."""
    try:
        yield
    except FileNotFoundError:
        raise LedgerError(
            f"the folder {path.parent} does not exist",
            expected="the site's folder",
            remedy="Make it with: fundusgen site init",
        ) from None
    except OSError as error:
        raise LedgerError(
            f"{path} cannot be used: {error.strerror or error}",
            expected="a folder on a local disk that the client may write, with room",
            remedy="Repair the permissions or free space; nothing is trained meanwhile",
        ) from error
    except sqlite3.Error as error:
        raise _from_sqlite(path, error) from error
    except UnicodeDecodeError as error:
        raise _damaged(path, "it holds text that is none") from error


def _from_sqlite(path: Path, error: sqlite3.Error) -> LedgerError:
    code = getattr(error, "sqlite_errorname", "") or ""
    if code.startswith("SQLITE_FULL"):
        return LedgerError(
            f"the disk is full: {path.name} could not be written",
            remedy="Free space; nothing is trained meanwhile",
        )
    if code.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return _damaged(path, str(error))
    if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
        return LedgerError(
            f"{path} cannot be opened for writing: {error}",
            expected="a folder that the client may write",
            remedy="Repair the permissions; nothing is trained meanwhile",
        )
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return LedgerError(
            f"{path.name} is locked by another program",
            remedy="Close the program that has it open (a sqlite3 prompt, a backup)",
        )
    return LedgerError(
        f"{path.name} failed: {error}", remedy="Check the disk; nothing is trained meanwhile"
    )


def _damaged(path: Path, what: str) -> LedgerError:
    return LedgerError(
        f"{path} is damaged or no database: {' '.join(what.split())}",
        expected="a whole ledger",
        remedy=REMEDY,
    )
