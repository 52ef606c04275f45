"""Reads a ledger that may be damaged, changed or cut, and says what is wrong with each entry.

`Ledger.read` stops at the first entry that does not fit. An audit and a repair go on: `salvage`
holds every entry by itself against its digest, its neighbours and the events before it, and
gives what the ledger adds up to, counted so that nothing that is stated anywhere is left out.

Where a changed entry can be mended for certain, it is: its digest still fits what was written,
and what was written is often still stated by the other entries of its event.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from fundusgen.errors import LedgerError
from fundusgen.privacy.events import Event
from fundusgen.privacy.ledger_file import SCHEMA_VERSION, Head, read_head
from fundusgen.privacy.ledger_refold import Refolded, refold
from fundusgen.privacy.ledger_remains import Remains, read_remains
from fundusgen.privacy.ledger_rows import (
    COLUMNS,
    Entry,
    LastReceipt,
    LedgerRow,
    Remark,
    canonical_json,
)

FlawCode = Literal[
    "ledger-lost",
    "not-a-ledger",
    "newer-version",
    "tables-changed",
    "database-damaged",
    "no-identity",
    "head-missing",
    "head-damaged",
    "head-differs",
    "entries-lost",
    "entries-missing",
    "entry-repeated",
    "entry-illegible",
    "entry-changed",
    "link-broken",
    "state-impossible",
]
_NO_RECEIPT = LastReceipt(0, "")
# What the entries of one event need not have in common.
_OF_ONE_STATE = ("sequence", "state", "written_at", "payload_digest", "receipt_digest", "note")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """One thing that is wrong with a ledger.

    Attributes:
        code: What kind of thing.
        entry: Number of the entry, or of the first of several; None for the file as a whole.
        found: What was found, as a sentence without its full stop.
        expected: What an intact ledger has there.
        entries: How many entries it is about; 0 for the file as a whole.
    """

    code: FlawCode
    entry: int | None
    found: str
    expected: str
    entries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SalvagedEntry:
    """One entry as it was found.

    Attributes:
        number: Its `sequence`; 0 where even that cannot be read.
        entry: What it says; None if it cannot be read as an entry.
        previous: The link to the entry before, as stored.
        digest: Its digest, as stored.
        original: What was written, where that is certain: the entry itself if it is intact, or
            the values that its digest still fits; else None.
        intact: Whether it is, for certain, as it was written, with its links.
    """

    number: int
    entry: Entry | None
    previous: str
    digest: str
    original: Entry | None = None
    intact: bool = False


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
    head, head_flaws = _head(path)
    remains = read_remains(path)
    genesis, created_at = _identity(remains)
    entries = _mended([_entry(row) for row in remains.rows], head)
    refolded = refold(
        [(found, item.original is not None) for item in entries if (found := _best(item))],
        genesis or "",
    )
    flaws = [
        *_file_flaws(remains, genesis),
        *head_flaws,
        *_chain_flaws(entries, genesis),
        *_state_flaws(refolded),
        *(_head_against_chain(head, entries, genesis) if not head_flaws else ()),
    ]
    return Salvage(
        genesis=genesis,
        created_at=created_at,
        head=head,
        entries=entries,
        flaws=tuple(sorted(flaws, key=lambda flaw: -1 if flaw.entry is None else flaw.entry)),
        rows=refolded.rows,
        remarks=refolded.remarks,
        counted=refolded.counted,
        receipt=refolded.receipt,
    )


def lost_ledger(path: Path) -> Salvage:
    """Give what is known of a ledger that is not there: the note of its last entry, if that."""
    head, flaws = _head(path)
    lost = Flaw(
        code="ledger-lost",
        entry=None,
        found=f"there is no {path.name}"
        + (f", of which entry {head.sequence} was noted as the last" if head else ""),
        expected="the ledger that was there",
        entries=head.sequence if head else 0,
    )
    return Salvage(head=head, flaws=(lost, *flaws), counted={})


def _best(item: SalvagedEntry) -> Entry | None:
    return item.original or item.entry


def _head(path: Path) -> tuple[Head | None, list[Flaw]]:
    # Before the entries, which may grow meanwhile.
    try:
        return read_head(path), []
    except LedgerError as error:
        damaged = Flaw(code="head-damaged", entry=None, found=error.found, expected=error.expected)
        return None, [damaged]


def _identity(remains: Remains) -> tuple[str | None, str]:
    if len(remains.identities) != 1 or not all(
        isinstance(value, str) for value in remains.identities[0]
    ):
        return None, ""
    ledger_id, created_at = remains.identities[0]
    text = canonical_json({"ledger_id": ledger_id, "created_at": created_at})
    return hashlib.sha256(text.encode()).hexdigest(), created_at


def _entry(row: Mapping[str, Any]) -> SalvagedEntry:
    """Read one line of the table, holding it against nothing but the types of its columns."""
    number, previous, digest = (row.get(name) for name in ("sequence", "previous", "digest"))
    values: dict[str, Any] = {name: row.get(name) for name in COLUMNS}
    entry = None
    if all(type(values[name]) is Entry.__annotations__[name] for name in COLUMNS):
        entry = Entry(**values)
    return SalvagedEntry(
        number=number if type(number) is int else 0,
        entry=entry,
        previous=previous if isinstance(previous, str) else "",
        digest=digest if isinstance(digest, str) else "",
    )


def _mended(found: Sequence[SalvagedEntry], head: Head | None) -> tuple[SalvagedEntry, ...]:
    """Tell which entries are as they were written, and find what was written of the others."""
    siblings: defaultdict[int, list[Entry]] = defaultdict(list)
    for item in found:
        if item.entry is not None:
            siblings[item.entry.event_id].append(item.entry)
    noted = _noted_digests(found, head)
    mended: list[SalvagedEntry] = []
    for item, confirmed in zip(found, noted, strict=True):
        links = {item.previous, *(digest for digest in noted[len(mended) - 1 : len(mended)])}
        original = None
        if item.entry is not None:
            others = siblings[item.entry.event_id]
            original = _original(item.entry, others, links, confirmed)
        intact = item.digest == confirmed == _digest(item.entry, item.previous)
        mended.append(replace(item, original=original, intact=intact))
    return tuple(mended)


def _noted_digests(found: Sequence[SalvagedEntry], head: Head | None) -> list[str]:
    """The digest of each entry as somebody else has noted it: the next entry, or the head.

    An entry that was replaced together with its digest is known by that of the next one, as long
    as that one is whole.
    """
    digests = [item.digest for item in found]
    for place, (item, after) in enumerate(pairwise(found)):
        whole = _digest(after.entry, after.previous) == after.digest
        if whole and after.number == item.number + 1:
            digests[place] = after.previous
    if found and head is not None and head.sequence == found[-1].number:
        digests[-1] = head.digest
    return digests


def _original(
    entry: Entry, others: Iterable[Entry], links: Iterable[str], confirmed: str
) -> Entry | None:
    """Find the entry that a digest fits: itself, or with values that its siblings state."""
    if any(_digest(entry, link) == confirmed for link in links):
        return entry
    for other in others:
        changes = {
            name: getattr(other, name)
            for name in COLUMNS
            if name not in ("sequence", "state") and getattr(other, name) != getattr(entry, name)
        }
        together = {name: changes[name] for name in changes if name not in _OF_ONE_STATE}
        for values in ({name: value} for name, value in changes.items()):
            if any(_digest(replace(entry, **values), link) == confirmed for link in links):
                return replace(entry, **values)
        if any(_digest(replace(entry, **together), link) == confirmed for link in links):
            return replace(entry, **together)
    return None


def _digest(entry: Entry | None, link: str) -> str:
    try:
        return entry.digest(link) if entry is not None else "unreadable"
    except ValueError:
        # A number without end has no canonical JSON, so it was never written by the ledger.
        return "unreadable"


def _file_flaws(remains: Remains, genesis: str | None) -> Iterator[Flaw]:
    if remains.damage:
        said = "; ".join(remains.damage)
        yield Flaw(
            code="database-damaged",
            entry=None,
            found=f"the database is damaged: {said[:500]}",
            expected="a file that SQLite can read as a whole",
        )
        if not (remains.rows or remains.identities):
            return
    if not remains.is_ledger:
        yield Flaw(
            code="not-a-ledger",
            entry=None,
            found="the database does not say that it is a ledger",
            expected="the mark that fundusgen puts into its databases",
        )
    if remains.version != SCHEMA_VERSION:
        yield Flaw(
            code="newer-version" if remains.version > SCHEMA_VERSION else "tables-changed",
            entry=None,
            found=f"the ledger is of version {remains.version}",
            expected=f"version {SCHEMA_VERSION}, which this fundusgen reads",
        )
    if remains.schema:
        yield Flaw(
            code="tables-changed",
            entry=None,
            found=f"tables or triggers were changed: {', '.join(remains.schema)}",
            expected="the tables, and the triggers that keep entries from being changed by "
            "mishap, as fundusgen made them",
        )
    if genesis is None:
        yield Flaw(
            code="no-identity",
            entry=None,
            found=f"the ledger has {len(remains.identities)} identities",
            expected="one, to which the first entry is chained",
        )


def _chain_flaws(entries: Sequence[SalvagedEntry], genesis: str | None) -> Iterator[Flaw]:
    last, link = 0, genesis
    for item in entries:
        number = item.number
        if number == last and last:
            yield Flaw(
                code="entry-repeated",
                entry=number,
                found=f"there are two entries {number}",
                expected="one of each number",
                entries=1,
            )
        elif number > last + 1:
            link = None
            yield Flaw(
                code="entries-missing",
                entry=last + 1,
                found=_missing(last + 1, number - 1),
                expected="every number from 1 on, without a gap",
                entries=number - 1 - last,
            )
        if item.entry is None or number < 1:
            yield Flaw(
                code="entry-illegible",
                entry=number,
                found=f"entry {number} cannot be read as an entry",
                expected="a value of the right type in every column",
                entries=1,
            )
        elif not item.intact:
            yield _changed(item.entry, item.original)
        elif link is not None and item.previous != link:
            # Where it is not the first, the entry before it was changed, and is told by that.
            if number == 1:
                yield Flaw(
                    code="link-broken",
                    entry=number,
                    found="entry 1 is not chained to the ledger's identity",
                    expected=f"the link {link[:16]}..., which the identity gives",
                    entries=1,
                )
            elif last == number:
                yield Flaw(
                    code="link-broken",
                    entry=number,
                    found=f"entry {number} is not chained to the one before it",
                    expected=f"the link {link[:16]}...",
                    entries=1,
                )
        last, link = max(number, last), item.digest


def _missing(first: int, last: int) -> str:
    return (
        f"entry {first} is missing" if first == last else f"entries {first} to {last} are missing"
    )


def _changed(entry: Entry, original: Entry | None) -> Flaw:
    if original is None:
        found = "its content does not fit its digest, and what it said before is not known"
        expected = "content that fits the digest which was made when it was written"
    elif original == entry:
        found = "its digest, or its link to the entry before, was overwritten"
        expected = "the digest and the link that its neighbours confirm"
    else:
        changes = [name for name in COLUMNS if getattr(entry, name) != getattr(original, name)]
        found = "it now says " + _values(entry, changes)
        expected = f"{_values(original, changes)}, which its digest still proves"
    return Flaw(
        code="entry-changed",
        entry=entry.sequence,
        found=f"entry {entry.sequence} was changed after it was written: {found}",
        expected=expected,
        entries=1,
    )


def _values(entry: Entry, names: Iterable[str]) -> str:
    return ", ".join(f"{name} {getattr(entry, name)!r}" for name in names)


def _state_flaws(refolded: Refolded) -> Iterator[Flaw]:
    for number, found in refolded.impossible:
        yield Flaw(
            code="state-impossible",
            entry=number,
            found=found,
            expected="a reservation, then one commit of no more than was reserved, then one "
            "release of exactly that; one answer a round",
            entries=1,
        )


def _head_against_chain(
    head: Head | None, entries: Sequence[SalvagedEntry], genesis: str | None
) -> Iterator[Flaw]:
    last = max((item.number for item in entries), default=0)
    if head is None:
        if entries:
            yield Flaw(
                code="head-missing",
                entry=None,
                found="there is no ledger.db.head beside the ledger",
                expected="the note of the last entry, without which it is not seen if entries "
                "were cut off at the end",
            )
        return
    if head.sequence > last:
        yield Flaw(
            code="entries-lost",
            entry=last + 1,
            found=f"the ledger ends at entry {last}, but entry {head.sequence} was noted as "
            "written",
            expected=f"entries up to {head.sequence}",
            entries=head.sequence - last,
        )
        return
    digests = {item.number: item.digest for item in entries} | {0: genesis}
    if digests.get(head.sequence) != head.digest:
        yield Flaw(
            code="head-differs",
            entry=head.sequence,
            found=f"entry {head.sequence} is another one than was noted when it was written",
            expected=f"the digest {head.digest[:16]}..., as ledger.db.head has it",
            entries=1,
        )
