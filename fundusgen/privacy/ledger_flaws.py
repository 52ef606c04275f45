"""Everything that can be wrong with a ledger, entry by entry; the last step of `ledger_salvage`."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from fundusgen.privacy.ledger_file import SCHEMA_VERSION, Head
from fundusgen.privacy.ledger_mending import SalvagedEntry
from fundusgen.privacy.ledger_refold import Refolded
from fundusgen.privacy.ledger_remains import Remains
from fundusgen.privacy.ledger_rows import COLUMNS, Entry

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


def find_flaws(
    remains: Remains,
    genesis: str | None,
    entries: Sequence[SalvagedEntry],
    refolded: Refolded,
    head: Head | None,
    head_damage: Flaw | None,
) -> tuple[Flaw, ...]:
    """Find everything that is wrong: the file as a whole first, then in order of entries.

    Guarantee: none are found only if `Ledger.open` would accept the ledger.
    Edge cases: a head that is missing beside entries is a flaw, since a copy may lack it.

    Args:
        remains: The database.
        genesis: Digest of its identity; None if that is lost.
        entries: Its entries, mended.
        refolded: What they add up to.
        head: The note of the last entry, or None.
        head_damage: What is wrong with that note, or None.
    """
    flaws = [
        *_file_flaws(remains, genesis),
        *([head_damage] if head_damage else []),
        *_chain_flaws(entries, genesis),
        *_state_flaws(refolded),
        *([] if head_damage else _head_against_chain(head, entries, genesis)),
    ]
    return tuple(sorted(flaws, key=lambda flaw: -1 if flaw.entry is None else flaw.entry))


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
