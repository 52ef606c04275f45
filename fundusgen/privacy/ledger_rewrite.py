"""Writes the repaired ledger, and exchanges the old one for it; the hand of `ledger_repair`."""

import os
import secrets
import shutil
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fundusgen.errors import AccountingError, LedgerError
from fundusgen.privacy.events import Event, beyond
from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.ledger_file import head_file, repair_file
from fundusgen.privacy.ledger_repair import RepairPlan
from fundusgen.privacy.ledger_rows import LedgerRow, Remark
from fundusgen.privacy.outbox import OUTBOX
from fundusgen.privacy.receipts import Receipt
from fundusgen.privacy.reconciliation import COUNTED, RECOVERED, of_repair
from fundusgen.storage import sync_folder, write_atomically

_MAX_NOTED = 50
# Stands for bytes that are not known, and that no outbox holds.
_NOWHERE = "0" * 64


def carry_out(plan: RepairPlan, *, by: str, reason: str, now: datetime | None = None) -> Path:
    """Exchange the ledger for a repaired one, and keep the old one.

    Guarantee: the new ledger counts at least `plan.events` and is whole; the old one lies as it
    was in the folder that is returned. Cut short at any point, the site has the old ledger, the
    new one, or none that opens before the repair was run again.
    Edge cases: rounds that the old ledger holds as answered stay answered. A round that is known
    from its receipt alone is never trained again, but cannot be answered again either.

    Args:
        plan: From `plan_repair`, under the same lock.
        by: The person who decided.
        reason: Why, in the person's words.
        now: The time that is written.

    Raises:
        LedgerError: The new ledger would count less than it must, or the disk fails; the old one
            is still in place.
    """
    now = now or datetime.now(UTC)
    folder = plan.path.parent
    work = folder / f".repair-{secrets.token_hex(6)}"
    try:
        work.mkdir(mode=0o700)
        kept = folder / f"ledger-before-repair-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        kept = plan.source.parent if plan.source.parent != folder else kept
        _write_ledger(work / plan.path.name, plan, kept.name, by=by, reason=reason, now=now)
        if not kept.exists():
            _keep(plan.path, kept, work / "kept")
        _exchange(plan.path, work / plan.path.name, kept)
        _set_aside(plan, kept)
    except OSError as error:
        raise LedgerError(
            f"the repair could not be written: {error.strerror or error}",
            expected="a site folder with room for another ledger",
            remedy="Make room, or correct the permissions, and run the repair again",
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return kept


def _write_ledger(
    path: Path, plan: RepairPlan, kept: str, *, by: str, reason: str, now: datetime
) -> None:
    """Write the repaired ledger, and make sure that it counts all it must."""
    clock = _Clock(now)
    with Ledger.open(path, clock=clock) as ledger:
        _rewrite(ledger, plan, clock)
        clock.now = now
        unknown = plan.receipts.unknown
        # Whatever finds no row of its own: forgotten without a receipt, assumed, unreadable.
        rows = [*ledger.events(), *(receipt.event for receipt in unknown)]
        for event in beyond(plan.events, rows):
            _count(ledger, event, plan.delta)
        for receipt in unknown:
            _recover(ledger, receipt, plan.replies.get(receipt.digest, _NOWHERE))
        ledger.remark("repaired", _note(ledger, plan, kept, by=by, reason=reason, now=now))
        lacking = beyond(plan.events, ledger.events())
    if lacking:
        raise LedgerError(
            f"the repaired ledger would not count {lacking}",
            expected="everything that the old ledger and the receipts count",
            remedy="Please report it: this is a fault in the repair, and nothing was changed",
        )


class _Clock:
    """Gives the time at which something was first written."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def set(self, written_at: str, otherwise: datetime) -> None:
        self.now = otherwise
        with suppress(ValueError, OverflowError):
            self.now = datetime.fromisoformat(written_at).astimezone(UTC)


def _rewrite(ledger: Ledger, plan: RepairPlan, clock: _Clock) -> None:
    """Write what the old ledger holds, as far as it makes rows."""
    old, now = plan.ledger, clock.now
    released = {row.event_id: receipt for receipt, row in plan.receipts.known if not row.answered}
    items: list[tuple[int, LedgerRow | Remark]] = [(row.event_id, row) for row in old.rows]
    items += [(remark.sequence, remark) for remark in old.remarks]
    for number, item in sorted(items, key=lambda pair: pair[0]):
        # What does not fit any more, such as a second answer to a round, is counted at the end.
        with suppress(LedgerError, AccountingError):
            if isinstance(item, Remark):
                clock.set(item.written_at, now)
                ledger.remark(
                    item.kind,
                    item.note,
                    study_id=item.study_id,
                    study_hash=item.study_hash,
                    policy_hash=item.policy_hash,
                )
                continue
            counted = old.counted.get(number, (item.event,))
            alike = [event for event in counted if event.kind == item.event.kind]
            row = item
            if (receipt := released.get(number)) is not None:
                row = replace(
                    item,
                    state="released",
                    payload_digest=plan.replies.get(receipt.digest, _NOWHERE),
                    receipt_digest=receipt.digest,
                )
            _rewrite_row(ledger, row, alike[0] if alike else item.event, clock, now)


def _rewrite_row(
    ledger: Ledger, row: LedgerRow, event: Event, clock: _Clock, now: datetime
) -> None:
    """Write one event with its states and times, counting `event`."""
    certain = event == row.event
    clock.set(row.reserved_at, now)
    event_id = ledger.reserve(
        study_id=row.study_id,
        study_hash=row.study_hash,
        round_number=row.round_number,
        stage=row.stage,
        request_id=row.request_id,
        content_digest=row.content_digest,
        event=row.planned if certain else event,
        delta=row.delta,
        data_fingerprint=row.data_fingerprint,
        policy_hash=row.policy_hash,
        code_hash=row.code_hash,
        noise_kind=row.noise_kind,  # type: ignore[arg-type]
        patients_declared=row.patients_declared,
    )
    if not row.answered:
        return
    clock.set(row.committed_at or row.reserved_at, now)
    ledger.commit(event_id, event, row.payload_digest, receipt_digest=row.receipt_digest)
    if row.state == "released":
        clock.set(row.released_at or row.committed_at, now)
        ledger.release(event_id, row.payload_digest)


def _recover(ledger: Ledger, receipt: Receipt, reply: str) -> None:
    """Write an event that is known from its receipt alone."""
    request_id = receipt.request_id
    if ledger.find(request_id) is not None:
        request_id = receipt.digest[:32]
    try:
        event_id = _reserve_recovered(ledger, receipt, receipt.stage, request_id)
    except LedgerError:
        # The ledger was put back and has answered the same round once more: another answer, which
        # counts by itself and gets a name of its own.
        stage = f"{receipt.stage} {receipt.digest[:8]}"
        event_id = _reserve_recovered(ledger, receipt, stage, request_id)
    ledger.commit(event_id, receipt.event, reply, receipt_digest=receipt.digest)
    ledger.release(event_id, reply)


def _reserve_recovered(ledger: Ledger, receipt: Receipt, stage: str, request_id: str) -> int:
    return ledger.reserve(
        study_id=receipt.study_id,
        study_hash=receipt.study_hash,
        round_number=receipt.round_number,
        stage=stage,
        request_id=request_id,
        # The receipt names the request, not all that was asked: no question equals it again.
        content_digest=f"{RECOVERED} {receipt.sequence}",
        event=receipt.event,
        delta=receipt.delta,
        policy_hash=receipt.policy_hash,
        code_hash=receipt.code_hash,
        noise_kind=receipt.noise,  # type: ignore[arg-type]
        patients_declared=receipt.declared_patients,
    )


def _count(ledger: Ledger, event: Event, delta: float) -> None:
    """Write an event of which nothing is known but what it costs."""
    # Rounds of a study that is none, numbered through all repairs.
    number = sum(row.stage == COUNTED for row in ledger.rows()) + 1
    ledger.reserve(
        study_id="unknown",
        study_hash=_NOWHERE,
        round_number=number,
        stage=COUNTED,
        request_id=f"{number:032x}",
        content_digest="counted by a repair",
        event=event,
        delta=delta,
    )


def _note(
    ledger: Ledger, plan: RepairPlan, kept: str, *, by: str, reason: str, now: datetime
) -> dict[str, Any]:
    old = plan.ledger
    last = max(
        (
            old.receipt,
            ledger.last_receipt,
            *((receipt.sequence, receipt.digest) for receipt, _ in plan.receipts.known),
            *((receipt.sequence, receipt.digest) for receipt in plan.receipts.unknown),
        ),
        key=lambda receipt: receipt[0],
    )
    return {
        "by": by,
        "at": now.isoformat(timespec="seconds"),
        "reason": reason,
        "found": [flaw.found for flaw in old.flaws[:_MAX_NOTED]],
        "untold": list(plan.untold),
        "assumed": [event.to_json() for event in plan.assumed],
        "forgotten": [event.to_json() for event in plan.receipts.forgotten],
        "recovered_receipts": [r.sequence for r in plan.receipts.unknown[:_MAX_NOTED]],
        # Those of earlier repairs with them: they have new numbers now.
        "events": [row.event_id for row in ledger.rows() if of_repair(row)],
        "old_genesis": old.genesis or "",
        "old_entries": old.last_number,
        "old_digest": old.last_digest,
        "kept_as": kept,
        # One number is left out, so that no server takes the next receipt for the one that
        # follows the last it holds, which may be another.
        "receipt_sequence": last[0] + 1,
        "receipt_digest": last[1] or _NOWHERE,
    }


def _keep(path: Path, kept: Path, work: Path) -> None:
    """Copy the old ledger's files, all or none."""
    work.mkdir(mode=0o700)
    for file in (path, path.with_name(f"{path.name}-wal"), head_file(path)):
        if file.exists():
            shutil.copy2(file, work / file.name)
            with (work / file.name).open("rb+") as copied:
                os.fsync(copied.fileno())
    sync_folder(work)
    work.rename(kept)
    sync_folder(kept.parent)


def _set_aside(plan: RepairPlan, kept: Path) -> None:
    """Put replies that nobody can read with the old ledger: they can answer nothing."""
    for request_id, digest in plan.unread_replies:
        reply = plan.path.parent / OUTBOX / f"{request_id}.{digest}"
        (kept / OUTBOX).mkdir(mode=0o700, exist_ok=True)
        if reply.exists():
            reply.rename(kept / OUTBOX / reply.name)


def _exchange(path: Path, new: Path, kept: Path) -> None:
    """Put the new ledger in the old one's place; the mark holds everybody off meanwhile."""
    write_atomically(repair_file(path), kept.name + "\n", mode=0o600)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    new.replace(path)
    head_file(new).replace(head_file(path))
    sync_folder(path.parent)
    repair_file(path).unlink()
    sync_folder(path.parent)
