"""Which entries of a ledger are as they were written, and what was written of the others.

Every entry is held by itself against its digest and its neighbours. Where a changed entry can be
mended for certain, it is: its digest still fits what was written, and what was written is often
still stated by the other entries of its event. The second step of `ledger_salvage`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from fundusgen.privacy.ledger_file import Head
from fundusgen.privacy.ledger_rows import COLUMNS, Entry

# What the entries of one event need not have in common.
_OF_ONE_STATE = ("sequence", "state", "written_at", "payload_digest", "receipt_digest", "note")


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


def entry_of(row: Mapping[str, Any]) -> SalvagedEntry:
    """Read one line of the table, holding it against nothing but the types of its columns.

    Guarantee: `SalvagedEntry.entry` has the type of every column, or is None.
    Edge cases: `original` and `intact` are not known yet.
    """
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


def mended(found: Sequence[SalvagedEntry], head: Head | None) -> tuple[SalvagedEntry, ...]:
    """Tell which entries are as they were written, and find what was written of the others.

    Guarantee: `original` is given only where a digest that somebody else has noted fits it.
    Edge cases: the last entry is noted by the head, where there is one; else by itself alone.

    Args:
        found: From `entry_of`, in order.
        head: The note of the last entry, or None.
    """
    siblings: defaultdict[int, list[Entry]] = defaultdict(list)
    for item in found:
        if item.entry is not None:
            siblings[item.entry.event_id].append(item.entry)
    noted = _noted_digests(found, head)
    result: list[SalvagedEntry] = []
    for item, confirmed in zip(found, noted, strict=True):
        links = {item.previous, *(digest for digest in noted[len(result) - 1 : len(result)])}
        original = None
        if item.entry is not None:
            # Its neighbours too: an entry may have been made to say that it is of another event.
            place = len(result)
            beside = [near.entry for near in found[max(0, place - 1) : place + 2] if near.entry]
            others = [*siblings[item.entry.event_id], *beside]
            original = _original(item.entry, others, links, confirmed)
        intact = item.digest == confirmed == _digest(item.entry, item.previous)
        result.append(replace(item, original=original, intact=intact))
    return tuple(result)


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
