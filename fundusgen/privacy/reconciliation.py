"""A ledger held against the receipts that were made under it.

A receipt outlives a ledger: servers keep it, and it states everything that was counted when it
was made. So it shows what a ledger has forgotten since, whether entries were taken out of it or
an older copy was put back and gone on with. The audit tells of it, the repair counts it again.

A ledger that was put back and gone on with has two ends: what it holds now, and what was made
after the copy that was put back. Receipts of the second are a *branch*: a run of receipts, each
made after the one before, that the ledger does not know.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fundusgen.privacy.events import Event, beyond, merged
from fundusgen.privacy.ledger_rows import LedgerRow
from fundusgen.privacy.ledger_salvage import Salvage
from fundusgen.privacy.receipts import Receipt, covers

# What a repair writes where an event is known from its receipt alone, instead of the digest of
# what was asked; and the stage of an event of which nothing is known but what it costs.
RECOVERED, COUNTED = "known from receipt", "repair"


def of_repair(row: LedgerRow) -> bool:
    """Whether a repair wrote a row from something else than the old ledger's entries."""
    return row.stage == COUNTED or row.content_digest.startswith(RECOVERED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """Receipts that the ledger does not know, made one after the other.

    Attributes:
        receipts: In the order in which they were made.
        untold: What the last of them counts, besides their events and what the ledger held when
            it parted from them: other receipts, which are not here.
    """

    receipts: tuple[Receipt, ...]
    untold: tuple[Event, ...]

    @property
    def forgotten(self) -> tuple[Event, ...]:
        """Everything that the ledger does not hold of them."""
        return merged([*(receipt.event for receipt in self.receipts), *self.untold])


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """What receipts say of a ledger.

    Guarantee: the ledger's events together with `forgotten` hold at least everything that any of
    the receipts counted, and every receipt's own event once. Where receipts are missing in
    between, a branch is taken to have parted from the ledger at the last receipt of the same study
    before it that is given and that the ledger knows, or else at its beginning: that counts too
    much rather than too little. It rests on servers naming the last receipt of a study that they
    hold, and on the site refusing where it does not know it.
    Edge cases: without receipts nothing is forgotten, as far as one can tell.

    Attributes:
        known: Receipts with the ledger's row that names them, in order of their numbers; also
            those that answer the request of a row that is only reserved.
        taken_out: Receipts that lie between known ones: of this ledger, whose entries are gone.
        branches: The others.
        shortfall: What a known receipt counted and the ledger does not hold from that time,
            besides the events of `taken_out`.
    """

    known: tuple[tuple[Receipt, LedgerRow], ...]
    taken_out: tuple[Receipt, ...]
    branches: tuple[Branch, ...]
    shortfall: tuple[Event, ...]

    @property
    def unknown(self) -> tuple[Receipt, ...]:
        """All receipts that the ledger does not name."""
        branches = (receipt for branch in self.branches for receipt in branch.receipts)
        return (*self.taken_out, *branches)

    @property
    def forgotten(self) -> tuple[Event, ...]:
        """Everything that receipts count and the ledger does not."""
        events = [receipt.event for receipt in self.taken_out]
        events += [event for branch in self.branches for event in branch.forgotten]
        return merged([*events, *self.shortfall])


def reconcile(ledger: Salvage, receipts: Iterable[Receipt]) -> Reconciliation:
    """Hold a ledger against receipts of its site.

    Args:
        ledger: The ledger, whole or damaged.
        receipts: Of this site alone, in any order, with signatures that were checked; each once.
    """
    ordered = sorted(receipts, key=lambda receipt: (receipt.sequence, receipt.digest))
    rows = _rows_by_receipt(ledger, ordered)
    known = tuple((receipt, rows[receipt.digest]) for receipt in ordered if receipt.digest in rows)
    taken_out = _between([receipt for receipt, _ in known], ordered, set(rows))
    strangers = [
        receipt for receipt in ordered if receipt.digest not in rows and receipt not in taken_out
    ]
    return Reconciliation(
        known=known,
        taken_out=taken_out,
        branches=tuple(
            Branch(
                receipts=tuple(run),
                untold=beyond(
                    run[-1].spent,
                    [*_held_before(run[0], ledger, rows, known), *(each.event for each in run)],
                ),
            )
            for run in _runs(strangers, set(rows))
        ),
        shortfall=_dearest(
            beyond(
                receipt.spent,
                [
                    *events_then(ledger, row),
                    *(gone.event for gone in taken_out if gone.sequence < receipt.sequence),
                ],
            )
            for receipt, row in known
        ),
    )


def _rows_by_receipt(ledger: Salvage, receipts: Sequence[Receipt]) -> dict[str, LedgerRow]:
    rows = {row.receipt_digest: row for row in ledger.rows if row.receipt_digest}
    reserved = {row.request_id: row for row in ledger.rows if not row.answered}
    for receipt in receipts:
        row = reserved.get(receipt.request_id)
        if receipt.digest not in rows and row and receipt.event.costs_at_most(row.planned):
            # Released, but the ledger has lost the entries that said so.
            rows[receipt.digest] = reserved.pop(receipt.request_id)
    return rows


def _between(
    known: Sequence[Receipt], receipts: Sequence[Receipt], rows: set[str]
) -> tuple[Receipt, ...]:
    """Receipts without a row that one with a row names, or names through others, as earlier."""
    by_digest = {receipt.digest: receipt for receipt in receipts if receipt.digest not in rows}
    found: dict[str, Receipt] = {}
    for receipt in known:
        link = receipt.previous
        while link in by_digest and link not in found:
            found[link] = by_digest[link]
            link = by_digest[link].previous
    return tuple(sorted(found.values(), key=lambda receipt: receipt.sequence))


def events_then(ledger: Salvage, row: LedgerRow) -> tuple[Event, ...]:
    """Give what the ledger counts from the time of an answer.

    What a later repair has added belongs to that time as well: for an answer from before the
    last repair, everything that was counted by then.
    """
    return ledger.events_until(max(row.event_id, ledger.last_repair))


def _runs(strangers: Sequence[Receipt], known: set[str]) -> list[list[Receipt]]:
    """Part receipts into runs that can each be of one ledger."""
    runs: list[list[Receipt]] = []
    for receipt in strangers:
        fitting = [run for run in runs if _goes_on(run[-1], receipt)]
        if fitting and receipt.previous not in known:
            fitting[0].append(receipt)
        else:
            runs.append([receipt])
    return runs


def _goes_on(last: Receipt, receipt: Receipt) -> bool:
    """Whether a receipt is sure to come after another one on the same branch.

    A server names the last receipt that it holds, and a site that does not know it refuses: so
    receipts of one study follow each other on one branch. Between studies only a link shows it.
    """
    if receipt.sequence <= last.sequence:
        return False
    if receipt.sequence == last.sequence + 1:
        return receipt.previous == last.digest
    if receipt.study_hash != last.study_hash:
        return False
    return covers(receipt.spent, [*last.spent, receipt.event])


def _held_before(
    first: Receipt,
    ledger: Salvage,
    rows: dict[str, LedgerRow],
    known: Sequence[tuple[Receipt, LedgerRow]],
) -> tuple[Event, ...]:
    """What the ledger holds from before a branch parted from it; rather less than more."""
    if first.previous in rows:
        return ledger.events_until(rows[first.previous].event_id)
    # An earlier receipt of the same study is before the parting, as in `_goes_on`.
    earlier = [
        row
        for receipt, row in known
        if receipt.sequence < first.sequence and receipt.study_hash == first.study_hash
    ]
    return ledger.events_until(earlier[-1].event_id) if earlier else ()


def _dearest(histories: Iterable[tuple[Event, ...]]) -> tuple[Event, ...]:
    """The most steps of every mechanism that any of the histories has."""
    most: defaultdict[tuple[str, float, float], int] = defaultdict(int)
    for history in histories:
        for event in history:
            key = event.kind, event.noise_multiplier, event.sample_rate
            most[key] = max(most[key], event.steps)
    return merged(
        Event(kind, noise, rate, steps)  # type: ignore[arg-type]
        for (kind, noise, rate), steps in most.items()
    )
