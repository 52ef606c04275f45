"""What the entries of a damaged ledger add up to, counted so that nothing is counted too low.

`ledger_rows.fold` stops at the first entry that does not fit. Here the rest is still taken: an
entry that contradicts others changes no row, but what it states is counted.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from fundusgen.errors import AccountingError, LedgerError
from fundusgen.privacy.events import Event
from fundusgen.privacy.ledger_rows import (
    Entry,
    Folded,
    LastReceipt,
    LedgerRow,
    Remark,
    RemarkKind,
    step,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refolded:
    """What entries add up to.

    Attributes:
        rows: One an event, in order of their numbers.
        remarks: In order.
        counted: By event number, what counts of it; several events where its entries state
            mechanisms of different kinds.
        receipt: The last receipt, as far as the entries tell.
        impossible: `(entry number, what is wrong)` of entries that are as they were written and
            still cannot follow what is before.
    """

    rows: tuple[LedgerRow, ...]
    remarks: tuple[Remark, ...]
    counted: dict[int, tuple[Event, ...]]
    receipt: LastReceipt
    impossible: tuple[tuple[int, str], ...]


def refold(entries: Sequence[tuple[Entry, bool]], genesis: str) -> Refolded:
    """Add up what can be read of a ledger.

    Guarantee: each event counts at least what any of its entries states, unless all of them are
    certain and fit: then it counts as in `fold`.
    Edge cases: an event whose reservation is lost gets a row from the first entry that is there.

    Args:
        entries: `(entry, certain)` in order. Not certain is what may have been changed.
        genesis: Digest of the ledger's identity, or anything where that is lost.
    """
    folded = Folded(genesis)
    stated: defaultdict[int, list[Event]] = defaultdict(list)
    doubtful: set[int] = set()
    impossible: list[tuple[int, str]] = []
    for entry, certain in entries:
        is_event = entry.state not in get_args(RemarkKind)
        if is_event:
            stated[entry.event_id] += _stated(entry)
        if not certain:
            doubtful.add(entry.event_id)
        try:
            folded.take(entry, folded.change(entry), "")
        except (LedgerError, AccountingError) as error:
            doubtful.add(entry.event_id)
            orphan = is_event and entry.event_id not in folded.rows
            adopted = _adopted(entry) if orphan else None
            if adopted is not None:
                folded.rows[entry.event_id] = adopted
            elif certain:
                impossible.append((entry.sequence, error.found))
    counted = {
        number: (folded.rows[number].event,)
        if number in folded.rows and number not in doubtful
        else tuple(_dearest(stated[number]))
        for number in sorted(stated)
    }
    return Refolded(
        rows=tuple(folded.rows[number] for number in sorted(folded.rows)),
        remarks=tuple(folded.remarks),
        counted=counted,
        receipt=folded.receipt,
        impossible=tuple(impossible),
    )


def _stated(entry: Entry) -> Iterator[Event]:
    try:
        yield entry.event
    except AccountingError:
        # No event at all, which is told as changed or impossible: there is nothing to count.
        return


def _adopted(entry: Entry) -> LedgerRow | None:
    """Make a row of an entry whose reservation is lost, as far along as the entry says."""
    reserved = replace(
        entry, state="reserved", sequence=entry.event_id, payload_digest="", receipt_digest=""
    )
    try:
        row = step(None, reserved)
        if entry.state in ("committed", "released"):
            row = step(row, replace(entry, state="committed"))
        return step(row, entry) if entry.state == "released" else row
    except (LedgerError, AccountingError):
        return None


def _dearest(events: Iterable[Event]) -> Iterator[Event]:
    """One event of each kind that costs at least what each of the events does."""
    of_kind: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        of_kind[event.kind].append(event)
    for alike in of_kind.values():
        yield Event(
            alike[0].kind,
            min(event.noise_multiplier for event in alike),
            max(event.sample_rate for event in alike),
            max(event.steps for event in alike),
        )
