"""Reads a ledger that may be damaged, changed or cut, and says what is wrong with each entry.

`Ledger.read` stops at the first entry that does not fit. An audit and a repair go on:

    ledger_remains   what SQLite still gives
    ledger_mending   which entries are as they were written, and what was written of the others
    ledger_refold    what they add up to, counted so that nothing stated anywhere is left out
    ledger_flaws     what is wrong
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fundusgen.errors import LedgerError
from fundusgen.privacy.events import Event
from fundusgen.privacy.ledger_file import Head, read_head
from fundusgen.privacy.ledger_flaws import Flaw, find_flaws
from fundusgen.privacy.ledger_mending import SalvagedEntry, entry_of, mended
from fundusgen.privacy.ledger_refold import refold
from fundusgen.privacy.ledger_remains import Remains, read_remains
from fundusgen.privacy.ledger_rows import LastReceipt, LedgerRow, Remark, canonical_json

__all__ = ["Flaw", "Salvage", "SalvagedEntry", "lost_ledger", "salvage"]

_NO_RECEIPT = LastReceipt(0, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvage:
    """A ledger as far as it can be read.

    Guarantee: `events` holds at least every event that an entry which can be read states, each
    at its most expensive; for an intact ledger they are those of `Ledger.events`.
    Edge cases: what was taken out of the file, and of all copies of its entries, is not in it.

    Attributes:
        genesis: What the first entry is chained to; None if the identity is lost.
        created_at: When the ledger was made, as it says; empty if unknown.
        head: The note of the last entry beside the database; None if there is none to read.
        entries: All that SQLite gives, in order.
        flaws: Everything that is wrong: the file as a whole first, then in order of entries.
        rows: One an event, as far as known; also for an event whose reservation is lost.
        remarks: Those that can be read.
        counted: By event number, what counts of it.
        receipt: Number and digest of the last receipt, as far as the entries tell.
    """

    genesis: str | None = None
    created_at: str = ""
    head: Head | None = None
    entries: tuple[SalvagedEntry, ...] = ()
    flaws: tuple[Flaw, ...] = ()
    rows: tuple[LedgerRow, ...] = ()
    remarks: tuple[Remark, ...] = ()
    counted: Mapping[int, tuple[Event, ...]]
    receipt: LastReceipt = _NO_RECEIPT

    @property
    def last_digest(self) -> str:
        """Digest of the last entry as stored; of the identity for a ledger without entries."""
        return self.entries[-1].digest if self.entries else self.genesis or ""

    @property
    def last_number(self) -> int:
        """Number of the last entry; 0 for none."""
        return max((item.number for item in self.entries), default=0)

    @property
    def last_repair(self) -> int:
        """Number of the last entry that tells of a repair; 0 for none."""
        repairs = (remark.sequence for remark in self.remarks if remark.kind == "repaired")
        return max(repairs, default=0)

    @property
    def events(self) -> tuple[Event, ...]:
        """Everything that counts as spent."""
        return self.events_until(None)

    def events_until(self, event_id: int | None) -> tuple[Event, ...]:
        """Give what counted when an event was answered, itself included; None is the end.

        From reservation to commit a client has the ledger to itself, so these are the events
        that were reserved up to it.
        """
        return tuple(
            event
            for number, events in self.counted.items()
            if event_id is None or number <= event_id
            for event in events
        )


def salvage(path: Path) -> Salvage:
    """Read everything that can be read of a ledger, and find everything that is wrong with it.

    Guarantee: writes nothing beside `path`. No flaws are found if and only if `Ledger.open`
    would accept the ledger, but for a head that a copy may lack: that is the flaw `head-missing`.
    Edge cases: a copy without head or log is read. A ledger that a client holds is read as it is
    at that moment; the head of one that grows meanwhile may be behind, which is no flaw.

    Raises:
        LedgerError: There is no file, or it cannot be read.
    """
    head, head_damage = _head(path)
    remains = read_remains(path)
    genesis, created_at = _identity(remains)
    entries = mended([entry_of(row) for row in remains.rows], head)
    refolded = refold(
        [
            (found, item.original is not None)
            for item in entries
            if (found := item.original or item.entry)
        ],
        genesis or "",
    )
    return Salvage(
        genesis=genesis,
        created_at=created_at,
        head=head,
        entries=entries,
        flaws=find_flaws(remains, genesis, entries, refolded, head, head_damage),
        rows=refolded.rows,
        remarks=refolded.remarks,
        counted=refolded.counted,
        receipt=refolded.receipt,
    )


def lost_ledger(path: Path) -> Salvage:
    """Give what is known of a ledger that is not there: the note of its last entry, if that."""
    head, damage = _head(path)
    lost = Flaw(
        code="ledger-lost",
        entry=None,
        found=f"there is no {path.name}"
        + (f", of which entry {head.sequence} was noted as the last" if head else ""),
        expected="the ledger that was there",
        entries=head.sequence if head else 0,
    )
    return Salvage(head=head, flaws=(lost, damage) if damage else (lost,), counted={})


def _head(path: Path) -> tuple[Head | None, Flaw | None]:
    # Before the entries, which may grow meanwhile.
    try:
        return read_head(path), None
    except LedgerError as error:
        return None, Flaw(
            code="head-damaged", entry=None, found=error.found, expected=error.expected
        )


def _identity(remains: Remains) -> tuple[str | None, str]:
    if len(remains.identities) != 1 or not all(
        isinstance(value, str) for value in remains.identities[0]
    ):
        return None, ""
    ledger_id, created_at = remains.identities[0]
    text = canonical_json({"ledger_id": ledger_id, "created_at": created_at})
    return hashlib.sha256(text.encode()).hexdigest(), created_at
