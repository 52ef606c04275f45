"""Makes a ledger whole again when a person has decided to: `fundusgen site ledger repair`.

The damaged ledger is kept as it is. Beside it a new one is written from everything that can be
read of the old one (`ledger_salvage`), and from the receipts that show what it has forgotten
(`reconciliation`); then the two are exchanged. The last entry of the new one says who repaired
it, why, what was wrong and what was added. A repair never counts less than before.

What nobody can tell any more is taken to be everything that the site's policy allowed, unless
the person states that nothing was sent in that time.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from scipy.optimize import brentq

from fundusgen.errors import LedgerError
from fundusgen.privacy.events import Event, merged
from fundusgen.privacy.gaussian_bounds import gaussian_epsilon
from fundusgen.privacy.ledger_file import repair_file
from fundusgen.privacy.ledger_flaws import Flaw
from fundusgen.privacy.ledger_salvage import Salvage, lost_ledger, salvage
from fundusgen.privacy.receipts import Receipt
from fundusgen.privacy.reconciliation import Reconciliation, reconcile

# What an event costs at least in entries: reserved, committed, released.
_ENTRIES_OF_A_RELEASE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairPlan:
    """What a repair would do, for a person to decide on.

    Attributes:
        path: The ledger.
        source: What is read of it: the ledger itself, or the copy that an earlier repair kept
            before it was cut short.
        ledger: Everything that can be read of it.
        receipts: What receipts say of it.
        unread_replies: Replies in the outbox, by request and digest, that the ledger does not
            know and that cannot be read either.
        untold: Why there may be releases that nothing tells of; empty where there is no reason.
        budget: The largest cap that may have held, as far as anything tells.
        assumed: What is counted for those.
        replies: Digest of a reply in the outbox, by that of the receipt in it.
        delta: Of the policy.
    """

    path: Path
    source: Path
    ledger: Salvage
    receipts: Reconciliation
    unread_replies: tuple[tuple[str, str], ...]
    untold: tuple[str, ...]
    budget: float
    assumed: tuple[Event, ...]
    replies: Mapping[str, str]
    delta: float

    @property
    def needed(self) -> bool:
        """Whether there is anything to repair."""
        return bool(
            self.ledger.flaws
            or self.receipts.forgotten
            or self.receipts.unknown
            or self.unread_replies
            or self.source != self.path
        )

    @property
    def events(self) -> tuple[Event, ...]:
        """Everything that the repaired ledger counts."""
        return merged([*self.ledger.events, *self.receipts.forgotten, *self.assumed])


def plan_repair(
    path: Path,
    receipts: Iterable[Receipt],
    replies: Mapping[tuple[str, str], Receipt | None],
    *,
    max_epsilon: float,
    delta: float,
    nothing_else_was_sent: bool = False,
) -> RepairPlan:
    """Find out what a repair of a ledger would do; changes nothing.

    Guarantee: `RepairPlan.events` holds at least what `Salvage` and `Reconciliation` count, and
    an event that costs the largest known cap where releases may have happened that nothing tells
    of.
    Edge cases: a ledger that is not there is repaired from receipts and replies alone.

    Args:
        path: `ledger.db` of the site; hold its lock.
        receipts: Of this site, as servers keep them; signatures checked.
        replies: What the outbox holds, by request and digest; signatures checked, None where a
            reply cannot be read. Those of requests that the ledger knows are left aside: their
            event is reserved, sent or not.
        max_epsilon: The policy's cap, or a larger one that held before.
        delta: At which it holds.
        nothing_else_was_sent: The person states that nothing was sent but what ledger, outbox
            and receipts tell of: that these are all receipts of all servers, say.

    Raises:
        LedgerError: The ledger cannot be read at all, or is of a newer version.
    """
    source = _source(path)
    found = salvage(source) if source.is_file() else lost_ledger(source)
    newer = [flaw for flaw in found.flaws if flaw.code == "newer-version"]
    if newer:
        raise LedgerError(
            f"{path} cannot be repaired: {newer[0].found}",
            expected=newer[0].expected,
            remedy="Upgrade fundusgen at this site",
        )
    requests = {row.request_id for row in found.rows}
    strange = {key: receipt for key, receipt in replies.items() if key[0] not in requests}
    given = {receipt.digest: receipt for receipt in receipts}
    given |= {receipt.digest: receipt for receipt in strange.values() if receipt is not None}
    reconciled = reconcile(found, given.values())
    unread = tuple(key for key, receipt in strange.items() if receipt is None)
    budget = max(max_epsilon, *_budgets_of_then(found, reconciled))
    untold = () if nothing_else_was_sent else tuple(_untold(found, reconciled, len(unread)))
    return RepairPlan(
        path=path,
        source=source,
        ledger=found,
        receipts=reconciled,
        unread_replies=unread,
        untold=untold,
        budget=budget,
        assumed=(whole_budget(budget, delta),) if untold else (),
        replies={
            receipt.digest: digest
            for (_, digest), receipt in replies.items()
            if receipt is not None
        },
        delta=delta,
    )


def whole_budget(max_epsilon: float, delta: float) -> Event:
    """Give one event that costs all that a policy allows.

    Guarantee: the epsilon of the event alone is at least `max_epsilon` at `delta`.
    Edge cases: above it by less than a part in a thousand.

    Args:
        max_epsilon: Finite, > 0.
        delta: In (0, 1).
    """
    low, high = 1e-6, 1.0
    while gaussian_epsilon(high, delta) < max_epsilon:
        high *= 2
    root = brentq(lambda mu: gaussian_epsilon(mu, delta) - max_epsilon, low, high, xtol=1e-9)
    while gaussian_epsilon(root, delta) < max_epsilon:
        root *= 1 + 1e-6
    # Fewer digits, on the side of more cost, for a number that people read.
    noise = math.floor(1e6 / root) / 1e6
    return Event("gaussian", max(noise, 1e-6), 1.0, 1)


def _budgets_of_then(ledger: Salvage, receipts: Reconciliation) -> Iterator[float]:
    """Caps that the ledger's policies had, and totals that receipts state: one may be larger."""
    yield 0.0
    for remark in ledger.remarks:
        cap = remark.note.get("max_epsilon") if remark.kind in ("policy", "approved") else None
        if isinstance(cap, int | float) and not isinstance(cap, bool) and 0 < cap < math.inf:
            yield float(cap)
    known = [receipt for receipt, _ in receipts.known]
    yield from (receipt.epsilon_total for receipt in (*known, *receipts.unknown))


def _source(path: Path) -> Path:
    """Where the old ledger is: in its place, or where a repair that was cut short kept it."""
    marker = repair_file(path)
    if not marker.exists():
        return path
    kept = path.parent / marker.read_text(encoding="utf-8").strip() / path.name
    if not kept.parent.is_dir():
        raise LedgerError(
            f"{marker.name} names {kept.parent.name}, which is not there",
            expected="the folder in which the cut-short repair kept the old ledger",
            remedy="Put it back, or delete the mark if this ledger is the one to be repaired",
        )
    return kept


def _untold(ledger: Salvage, receipts: Reconciliation, unread: int) -> Iterator[str]:
    """Reasons to fear a release that neither ledger nor receipts tell of."""
    told = max((row.event_id for _, row in receipts.known), default=0)
    codes = {flaw.code for flaw in ledger.flaws}
    missing = sum(_missing_from(flaw, told) for flaw in ledger.flaws)
    explained = _entries_known_to_be_missing(ledger, receipts)
    if missing - explained >= _ENTRIES_OF_A_RELEASE:
        yield (
            f"{missing} entries are missing, and neither the others nor the receipts tell what "
            "all of them said"
        )
    # Which of the missing entries these receipts belong to, and whether theirs was the last branch,
    # nothing tells.
    if receipts.branches:
        yield (
            "the ledger has forgotten releases, and there may be later receipts than "
            f"number {max(branch.receipts[-1].sequence for branch in receipts.branches)}"
        )
    changed = [
        item.number
        for item in ledger.entries
        if item.entry is not None and item.original is None and item.number > told
    ]
    if changed:
        yield f"what entry {min(changed)} said before it was changed is not known"
    if codes & {"head-missing", "head-damaged", "head-differs"}:
        yield "the note of the last entry is missing or another, so entries may be missing unseen"
    if codes & {"ledger-lost", "not-a-ledger"}:
        yield "there is no ledger that tells what was sent"
    if "database-damaged" in codes and ledger.head is None:
        yield "the database is damaged, and nothing tells how many entries it had"
    if unread:
        yield f"{unread} replies in the outbox are unknown to the ledger and cannot be read"


def _missing_from(flaw: Flaw, first: int) -> int:
    """Count the entries that a flaw says are missing, from one number on."""
    if flaw.code not in ("entries-lost", "entries-missing", "entry-illegible"):
        return 0
    begins = flaw.entry or 0
    # One without a number of its own may have had any.
    return flaw.entries if begins < 1 else max(0, begins + flaw.entries - max(begins, first))


def _entries_known_to_be_missing(ledger: Salvage, receipts: Reconciliation) -> int:
    """Count the missing entries whose event is known from its others or from its receipt."""
    # As they were written, where that is known: one that says now that it belongs to another event
    # is there all the same, and the other event's is not.
    written = [
        (item.number, found)
        for item in ledger.entries
        if (found := item.original or item.entry) is not None
    ]
    present = Counter(entry.event_id for _, entry in written)
    # A reservation has the number of its event, whatever event it says now that it belongs to.
    present += Counter(
        number for number, entry in written if entry.event_id != number in ledger.counted
    )
    needed = {"reserved": 1, "committed": 2, "released": _ENTRIES_OF_A_RELEASE}
    told = {row.event_id: _ENTRIES_OF_A_RELEASE for _, row in receipts.known}
    return sum(
        max(0, told.get(row.event_id, needed[row.state]) - present[row.event_id])
        for row in ledger.rows
        if row.event_id >= max(told, default=0)
    )
