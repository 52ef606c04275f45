"""The part of an audit that holds the ledger against receipts and outbox."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

from cryptography.hazmat.primitives.asymmetric import ec

from fundusgen.errors import AccountingError, ReceiptError
from fundusgen.privacy.audit_findings import Finding, finding
from fundusgen.privacy.events import Event, beyond
from fundusgen.privacy.ledger_rows import LedgerRow
from fundusgen.privacy.ledger_salvage import Salvage
from fundusgen.privacy.receipt_folder import numbers_of
from fundusgen.privacy.receipts import (
    Receipt,
    require_epsilon,
    require_follows,
    require_signed,
)
from fundusgen.privacy.reconciliation import (
    Reconciliation,
    events_then,
    of_repair,
)


def sift_signed(
    receipts: Iterable[Receipt], keys: Sequence[ec.EllipticCurvePublicKey]
) -> tuple[list[Receipt], list[Receipt]]:
    """Part receipts into those that one of the keys has signed, and the others.

    Guarantee: a receipt of the first list was signed by the holder of a key.
    Edge cases: without keys none is signed.
    """
    signed: list[Receipt] = []
    others: list[Receipt] = []
    for receipt in receipts:
        (signed if any(_is_signed(receipt, key) for key in keys) else others).append(receipt)
    return signed, others


def _is_signed(receipt: Receipt, key: ec.EllipticCurvePublicKey) -> bool:
    try:
        require_signed(receipt, key)
    except ReceiptError:
        return False
    return True


def audit_receipts(
    ledger: Salvage,
    reconciled: Reconciliation,
    receipts: Sequence[Receipt],
    *,
    given: frozenset[str] | None,
    studies: frozenset[str],
    progress: Callable[[float], None],
) -> list[Finding]:
    """Hold signed receipts against their own numbers, each other and the ledger.

    Guarantee: nothing is found only if every receipt states the epsilon of its history, follows
    the one before, and agrees with the ledger's entry of it; and every released answer of the
    studies of these receipts has its receipt.
    Edge cases: an empty list finds what the studies lack.

    Args:
        ledger: The ledger.
        reconciled: The same receipts, reconciled with it.
        receipts: Of this site, signatures checked; those of its own outbox with them.
        given: Digests of those that servers keep; None where none were given.
        studies: Hashes of further studies whose receipts should be complete.
        progress: Told the share that is done.
    """
    found: list[Finding] = []
    ordered = sorted(receipts, key=lambda receipt: receipt.sequence)
    for place, receipt in enumerate(ordered):
        progress(place / len(ordered))
        found += _epsilon(receipt)
    settled = _settled(ledger, reconciled)
    for last, receipt in pairwise(ordered):
        if not {last.digest, receipt.digest} <= settled:
            found += _follows(last, receipt)
    for receipt, row in reconciled.known:
        found += _against_row(ledger, receipt, row)
    found += _not_in_ledger(reconciled)
    if given is None:
        return found
    covered = studies | {receipt.study_hash for receipt in receipts if receipt.digest in given}
    return found + _not_in_receipts(ledger, reconciled, given, covered)


def audit_outbox(
    ledger: Salvage, replies: Mapping[tuple[str, str], Receipt | None]
) -> list[Finding]:
    """Hold the ledger against the replies that the site keeps for being asked again.

    Guarantee: nothing is found only if the ledger knows every reply's request, and every answer
    that it holds can be given again.
    Edge cases: replies of attempts that were cut short before their commit are none of its
    business: their request is known.
    """
    requests = {row.request_id for row in ledger.rows}
    found = [
        finding(
            "reply-unknown",
            f"the outbox holds a reply to request {request_id}"
            + (f", which is receipt {receipt.sequence}" if receipt else "")
            + ", and the ledger knows no such request",
            "an entry for every reply",
            receipt=receipt.sequence if receipt else None,
        )
        for (request_id, _), receipt in sorted(replies.items(), key=lambda item: item[0])
        if request_id not in requests
    ]
    for row in ledger.rows:
        if not row.answered or of_repair(row):
            continue
        kept = replies.get((row.request_id, row.payload_digest))
        place = {"entry": row.event_id, "at": row.committed_at}
        answer = f"the answer to round {row.round_number} of study {row.study_id}"
        if kept is None:
            found.append(
                finding(
                    "reply-missing",
                    f"{answer} is not in the outbox, or is damaged there",
                    "the bytes that were released",
                    **place,  # type: ignore[arg-type]
                )
            )
        elif kept.digest != row.receipt_digest:
            found.append(
                finding(
                    "reply-contradicts",
                    f"{answer} carries receipt {kept.sequence}, which is not the one that event "
                    f"{row.event_id} names",
                    f"a receipt with the digest {row.receipt_digest[:16]}...",
                    **place,  # type: ignore[arg-type]
                )
            )
    return found


def _settled(ledger: Salvage, reconciled: Reconciliation) -> set[str]:
    """Receipts that the last repair has counted: that they did not follow each other is told."""
    last = ledger.last_repair
    return {receipt.digest for receipt, row in reconciled.known if row.event_id < last}


def _epsilon(receipt: Receipt) -> list[Finding]:
    try:
        require_epsilon(receipt)
    except (ReceiptError, AccountingError) as error:
        return [finding("epsilon-wrong", error.found, error.expected, receipt=receipt.sequence)]
    return []


def _follows(last: Receipt, receipt: Receipt) -> list[Finding]:
    if last.sequence == receipt.sequence:
        return [
            finding(
                "receipt-repeated",
                f"there are two different receipts {receipt.sequence}",
                "one receipt of a number",
                receipt=receipt.sequence,
            )
        ]
    try:
        require_follows(receipt, last)
    except ReceiptError as error:
        return [finding("receipts-break", error.found, error.expected, receipt=receipt.sequence)]
    return []


def _against_row(ledger: Salvage, receipt: Receipt, row: LedgerRow) -> list[Finding]:
    place = {"entry": row.event_id, "receipt": receipt.sequence, "at": row.reserved_at}
    found: list[Finding] = []
    if row.state != "released":
        found.append(
            finding(
                "release-not-in-ledger",
                f"receipt {receipt.sequence} shows that round {row.round_number} of study "
                f"{row.study_id} was sent; event {row.event_id} is only {row.state}",
                "a commit and a release",
                **place,  # type: ignore[arg-type]
            )
        )
    differing = _differing(receipt, row)
    if differing:
        found.append(
            finding(
                "receipt-contradicts",
                f"event {row.event_id} says "
                + ", ".join(f"{name} {ours}" for name, ours, _ in differing),
                ", ".join(f"{name} {theirs}" for name, _, theirs in differing)
                + f", as receipt {receipt.sequence} says",
                **place,  # type: ignore[arg-type]
            )
        )
    then = events_then(ledger, row)
    if more := beyond(receipt.spent, then):
        found.append(
            finding(
                "receipt-counts-more",
                f"receipt {receipt.sequence} counts {_said(more)} that the ledger does not hold "
                "from that time",
                "a ledger that only grows",
                **place,  # type: ignore[arg-type]
            )
        )
    if row.event_id > ledger.last_repair and (less := beyond(then, receipt.spent)):
        found.append(
            finding(
                "receipt-counts-less",
                f"receipt {receipt.sequence} does not count {_said(less)}",
                "everything that the ledger held then",
                **place,  # type: ignore[arg-type]
            )
        )
    return found


def _differing(receipt: Receipt, row: LedgerRow) -> list[tuple[str, object, object]]:
    """What a row and its receipt say differently: name, the ledger's value, the receipt's."""
    pairs: dict[str, tuple[object, object]] = {
        "study": (row.study_hash, receipt.study_hash),
        "round": (row.round_number, receipt.round_number),
        "event": (_said([row.event]), _said([receipt.event])),
        "delta": (row.delta, receipt.delta),
        "noise": (row.noise_kind, receipt.noise),
        "declared patients": (row.patients_declared, receipt.declared_patients),
        "policy": (row.policy_hash, receipt.policy_hash),
        "code": (row.code_hash, receipt.code_hash),
    }
    if not of_repair(row):
        pairs["stage"] = (row.stage, receipt.stage)
        pairs["request"] = (row.request_id, receipt.request_id)
    return [(name, ours, theirs) for name, (ours, theirs) in pairs.items() if ours != theirs]


def _not_in_ledger(reconciled: Reconciliation) -> list[Finding]:
    found = [
        finding(
            "release-deleted",
            f"receipt {receipt.sequence} (round {receipt.round_number} of study "
            f"{receipt.study_id}, {_said([receipt.event])}) has no entry in the ledger, which "
            "knows later receipts",
            "an entry for every receipt",
            receipt=receipt.sequence,
        )
        for receipt in reconciled.taken_out
    ]
    for branch in reconciled.branches:
        many = len(branch.receipts) > 1
        untold = f", and {_said(branch.untold)} before the last of them" if branch.untold else ""
        found.append(
            finding(
                "release-unknown",
                f"receipt{'s' if many else ''} {numbers_of(branch.receipts)} "
                f"({_said(receipt.event for receipt in branch.receipts)}{untold}) "
                f"{'have' if many else 'has'} no entry in the ledger",
                "an entry for every receipt",
                receipt=branch.receipts[0].sequence,
            )
        )
    return found


def _not_in_receipts(
    ledger: Salvage, reconciled: Reconciliation, given: frozenset[str], covered: frozenset[str]
) -> list[Finding]:
    told = {row.event_id for receipt, row in reconciled.known if receipt.digest in given}
    own = {row.event_id for receipt, row in reconciled.known if receipt.digest not in given}
    lacking = [
        row
        for row in ledger.rows
        if row.state == "released" and row.receipt_digest and row.event_id not in told
    ]
    found = [
        finding(
            "receipt-not-kept" if row.event_id in own else "receipt-missing",
            f"round {row.round_number} of study {row.study_id} was released (event "
            f"{row.event_id}), and its receipt is not among those given",
            f"a receipt with the digest {row.receipt_digest[:16]}...",
            entry=row.event_id,
            at=row.released_at,
        )
        for row in lacking
        if row.study_hash in covered
    ]
    elsewhere: defaultdict[str, list[LedgerRow]] = defaultdict(list)
    for row in lacking:
        if row.study_hash not in covered:
            elsewhere[row.study_hash].append(row)
    found += [
        finding(
            "receipts-not-given",
            f"no receipt of study {rows[-1].study_id} was given, which has {len(rows)} "
            f"released answers here",
            "the receipts of every study that this site took part in",
            entry=rows[0].event_id,
            at=rows[0].released_at,
        )
        for rows in elsewhere.values()
    ]
    return found


def _said(events: Iterable[Event]) -> str:
    """Say events shortly: `20 steps at rate 0.05 with noise 1.1`."""
    return " and ".join(
        f"{event.steps:,} step{'' if event.steps == 1 else 's'} "
        + ("" if event.sample_rate == 1 else f"at sample rate {event.sample_rate:g} ")
        + f"with noise {event.noise_multiplier:g}"
        for event in beyond(events, ())
    )
