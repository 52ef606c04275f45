"""The ledger: everything a site has spent, over rounds, restarts and studies.

It lies on the site's disk because nothing else lasts: messages, processes and Flower's state
come and go. A client opens it for the length of one answer and does, in this order:

    answer_for        Replay: send the outbox's bytes again. Refuse: send nothing. Train: go on.
    reserve           before the first step; from here on the plan is counted in full
    train
    outbox.put        the reply is on the disk
    commit            with what was done and the reply's digest; from here on that is counted
    release           the reply may go out

A crash leaves it in one of these states, and every one is safe: a reservation that was never
committed is counted in full and nothing of it was sent, so the round is trained again under a
new reservation; from the commit on, the round is answered from the outbox. Two answers to one
round never exist. A reply that is committed but lost from the outbox is not made again.

Entries are only ever appended: reservation, commit and release are each an entry of their own,
chained by SHA-256 (`ledger_rows`), in one SQLite file (`ledger_file`).
"""

import os
import secrets
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

from fundusgen.errors import LedgerError
from fundusgen.privacy import accounting, ledger_file
from fundusgen.privacy.events import Event
from fundusgen.privacy.ledger_answers import Refuse, Replay, RequestConflict, Train, answer_for
from fundusgen.privacy.ledger_rows import (
    UNIT,
    Entry,
    Folded,
    LastReceipt,
    LedgerRow,
    NoiseKind,
    Remark,
    RemarkKind,
    fold,
    remark_entry,
    round_of,
)
from fundusgen.privacy.outbox import check_digest, check_request_id

__all__ = [
    "Ledger",
    "LedgerRow",
    "Refuse",
    "Replay",
    "RequestConflict",
    "Train",
    "answer_for",
]

_MAX_TEXT = 256
_MAX_NOTE = 1 << 20


class Ledger:
    """One site's ledger, open and verified.

    Guarantee: `events` holds at least everything that the site has spent: an event is there, on
    the disk, before its first step, and is only ever replaced by what was done, if that is no
    more. One client holds the ledger at a time. Whatever cannot be verified raises.
    Edge cases: a closed ledger, or one carried into a forked process, raises.
    """

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        resources: ExitStack,
        *,
        read_only: bool,
        clock: Callable[[], datetime],
    ) -> None:
        """Use `Ledger.open` or `Ledger.read`."""
        self._path = path
        self._connection = connection
        self._resources = resources
        self._read_only = read_only
        self._clock = clock
        self._process = os.getpid()
        self._closed = False
        self._folded = Folded("")
        self._of_round: defaultdict[tuple[str, int, str], list[int]] = defaultdict(list)
        self._of_request: defaultdict[str, list[int]] = defaultdict(list)
        self._reservations: dict[int, Entry] = {}
        self._head: ledger_file.Head | None = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        wait_s: float = 10.0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> Self:
        """Open a site's ledger for work, making it if there is none; use it with `with`.

        Guarantee: no other client has it open until it is closed; the whole chain is verified.
        Edge cases: waits at most `wait_s` for another client to close it. A missing database
        beside the head of one that had entries is an error, not a new ledger.

        Args:
            path: `ledger.db` of the site's folder, which exists.
            wait_s: Seconds to wait for another client.
            clock: Gives the time that is written into entries; it orders nothing.

        Raises:
            LedgerError: It is held, damaged, changed, incomplete, of a newer version, or cannot
                be written.
        """
        return cls._opened(Path(path), wait_s=wait_s, clock=clock, read_only=False)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Open a ledger, or a copy of one, to look at; use it with `with`.

        Guarantee: nothing can be written through it; the whole chain is verified.
        Edge cases: shows a ledger that a client holds as it was on opening. A copy without its
        head is accepted: what may be cut off at its end is not seen.

        Raises:
            LedgerError: There is none, or it is damaged, changed or of a newer version.
        """
        return cls._opened(Path(path), wait_s=0.0, clock=lambda: datetime.now(UTC), read_only=True)

    @classmethod
    def _opened(
        cls, path: Path, *, wait_s: float, clock: Callable[[], datetime], read_only: bool
    ) -> Self:
        with ExitStack() as resources:
            if not read_only:
                lock = path.with_name(f"{path.name}.lock")
                resources.enter_context(ledger_file.exclusive_lock(lock, wait_s))
                ledger_file.require_no_repair(path)
                ledger_file.require_not_lost(path)
            connection = ledger_file.connect(
                path,
                read_only=read_only,
                created_at=_utc(clock),
                ledger_id=secrets.token_hex(32),
            )
            resources.callback(connection.close)
            ledger = cls(path, connection, resources, read_only=read_only, clock=clock)
            ledger.verify()
            ledger._resources = resources.pop_all()
        return ledger

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other clients in.

        Guarantee: what was written stays; the lock is free on return.
        Edge cases: closing twice is no error. In a forked process nothing is touched.
        """
        if not self._closed and self._process == os.getpid():
            self._resources.close()
        self._closed = True

    def reserve(
        self,
        *,
        study_id: str,
        study_hash: str,
        round_number: int,
        stage: str,
        request_id: str,
        content_digest: str,
        event: Event,
        delta: float,
        data_fingerprint: str = "",
        policy_hash: str = "",
        code_hash: str = "",
        noise_kind: NoiseKind = "secure",
        patients_declared: int = 0,
    ) -> int:
        """Count an event before its first step.

        Guarantee: on return the whole event is counted, on the disk, whatever happens next.
        Refuses, by `answer_for`, a round that was answered or asked for with another content.
        Edge cases: a further reservation for a round whose earlier one was never committed is
        counted besides it.

        Args:
            study_id: Name of the study.
            study_hash: Hash of the study.
            round_number: Its round, >= 0.
            stage: Its stage.
            request_id: 8 to 128 lower-case hexadecimal digits.
            content_digest: Digest of everything that is asked, not empty.
            event: What is planned, of at least one step.
            delta: The site's delta, in (0, 1).
            data_fingerprint: Keyed digest of the data, or empty.
            policy_hash: Of the policy that allows it, or empty.
            code_hash: Of the code that runs, or empty.
            noise_kind: Which generator makes the noise.
            patients_declared: As the site declares publicly.

        Returns:
            The event id, for `commit` and `release`.

        Raises:
            RequestConflict: The round was answered, or asked for with another content.
            LedgerError: An argument is malformed, or the entry could not be written: do not
                train.
        """
        self._require_writable()
        check_request_id(request_id)
        if event.steps < 1:
            raise LedgerError("a reservation of no steps was asked for", expected="1 step or more")
        if noise_kind not in get_args(NoiseKind):
            raise LedgerError(f"noise_kind is {noise_kind!r}", expected="secure or fast")
        if isinstance(delta, bool) or not isinstance(delta, float) or not 0.0 < delta < 1.0:
            raise LedgerError(f"delta is {delta!r}", expected="a number in (0, 1)")
        for name, number in (("round", round_number), ("patients_declared", patients_declared)):
            if type(number) is not int or not 0 <= number < 2**53:
                raise LedgerError(f"{name} is {number!r}", expected="a whole number >= 0")
        entry = Entry(
            sequence=self._last.sequence + 1,
            state="reserved",
            event_id=self._last.sequence + 1,
            written_at=_utc(self._clock),
            study_id=_text("study_id", study_id),
            study_hash=_text("study_hash", study_hash),
            round_number=round_number,
            stage=_text("stage", stage),
            request_id=request_id,
            content_digest=_text("content_digest", content_digest),
            mechanism=event.kind,
            noise_multiplier=event.noise_multiplier,
            sample_rate=event.sample_rate,
            steps=event.steps,
            unit=UNIT,
            delta=delta,
            noise_kind=noise_kind,
            patients_declared=patients_declared,
            data_fingerprint=_text("data_fingerprint", data_fingerprint, empty=True),
            policy_hash=_text("policy_hash", policy_hash, empty=True),
            code_hash=_text("code_hash", code_hash, empty=True),
        )
        decision = answer_for(
            self,
            study_hash=study_hash,
            round_number=round_number,
            stage=stage,
            request_id=request_id,
            content_digest=content_digest,
        )
        if isinstance(decision, Refuse):
            raise decision.as_error()
        if isinstance(decision, Replay):
            raise RequestConflict(
                f"round {round_number} ({stage}) of study {study_id} was answered already, "
                f"by event {decision.row.event_id}",
                remedy="Answer it from the outbox; it is not trained again",
            )
        self._append(entry)
        return entry.event_id

    def commit(
        self, event_id: int, done: Event, payload_digest: str, *, receipt_digest: str = ""
    ) -> None:
        """Record what was done, after its reply is in the outbox.

        Guarantee: on return `done` is counted instead of the plan, and the round has its one
        answer. `done` is no more than the plan in any parameter.
        Edge cases: only the latest reservation of a round can be committed, once; an abandoned
        one stays counted in full. `done` may have no steps.

        Args:
            event_id: From `reserve`.
            done: What took place.
            payload_digest: From `Outbox.put`.
            receipt_digest: Of the signed receipt in the reply, or empty.

        Raises:
            LedgerError: More was done than reserved (do not send anything), the event is not the
                open reservation of its round, or the entry could not be written.
        """
        row = self._row(event_id, "reserved", "commit")
        check_digest("payload_digest", payload_digest)
        if self._of_round[round_of(row)][-1] != event_id:
            raise LedgerError(
                f"event {event_id} was given up: its round was reserved again",
                expected="the latest reservation of the round",
                remedy="Send nothing of it; it stays counted in full",
            )
        if not done.costs_at_most(row.planned):
            raise LedgerError(
                f"event {event_id} did more than it reserved: {done}",
                expected=f"at most {row.planned}",
                remedy="Send nothing of it: this is a fault in the mechanism that ran",
            )
        receipt_digest = _text("receipt_digest", receipt_digest, empty=True)
        self._advance(row, "committed", done, payload_digest, receipt_digest)

    def release(self, event_id: int, payload_digest: str) -> None:
        """Record that the reply goes out; send it only after this returns.

        Guarantee: on return the release of exactly the committed reply is on the disk.
        Edge cases: a crash after it may lose the reply on the way: it is replayed, not released
        again.

        Args:
            event_id: From `reserve`.
            payload_digest: As committed.

        Raises:
            LedgerError: The event is not committed, the digest is another, or the entry could
                not be written.
        """
        row = self._row(event_id, "committed", "release")
        if payload_digest != row.payload_digest:
            raise LedgerError(
                f"event {event_id} was committed with another reply",
                expected=f"the digest {row.payload_digest}",
                remedy="Send nothing but the committed reply from the outbox",
            )
        self._advance(row, "released", row.event, payload_digest, row.receipt_digest)

    def remark(
        self,
        kind: RemarkKind,
        note: Mapping[str, Any],
        *,
        study_id: str = "",
        study_hash: str = "",
        policy_hash: str = "",
    ) -> None:
        """Record something that costs nothing: an approval, a policy, a refusal, a repair.

        Guarantee: on return it is on the disk, in the same chain as the events.
        Edge cases: none is ever taken back.

        Args:
            kind: What it is.
            note: What it says; plain JSON values.
            study_id: The study that it is about, or empty.
            study_hash: Its hash, or empty.
            policy_hash: Of the policy that holds, or empty.

        Raises:
            LedgerError: It is too long, or could not be written.
        """
        self._require_writable()
        if kind not in get_args(RemarkKind):
            raise LedgerError(
                f"a remark of kind {kind!r}", expected=", ".join(get_args(RemarkKind))
            )
        entry = remark_entry(
            sequence=self._last.sequence + 1,
            kind=kind,
            written_at=_utc(self._clock),
            study_id=_text("study_id", study_id, empty=True),
            study_hash=_text("study_hash", study_hash, empty=True),
            policy_hash=_text("policy_hash", policy_hash, empty=True),
            note=note,
        )
        if len(entry.note) > _MAX_NOTE:
            raise LedgerError(
                f"a remark of {len(entry.note)} characters", expected=f"at most {_MAX_NOTE}"
            )
        self._append(entry)

    def knows_receipt(self, digest: str) -> bool:
        """Say whether a receipt was made under this ledger.

        Guarantee: true only if a committed event, or a repair, names it.
        Edge cases: the empty text is no receipt.
        """
        self._require_open()
        named = {row.receipt_digest for row in self._folded.rows.values()}
        named |= {remark.note.get("receipt_digest", "") for remark in self._folded.remarks}
        return bool(digest) and digest in named

    def find(self, request_id: str) -> LedgerRow | None:
        """Give the row of a request: the answered one, or else the latest reservation.

        Guarantee: None only if no event was ever reserved for the request.
        Edge cases: an unknown or malformed id has no row.
        """
        self._require_open()
        return self._decisive(self._of_request.get(request_id, []))

    def find_round(self, study_hash: str, round_number: int, stage: str) -> LedgerRow | None:
        """Give the row of a round: the answered one, or else the latest reservation.

        Guarantee: None only if no event was ever reserved for the round.
        Edge cases: none.
        """
        self._require_open()
        return self._decisive(self._of_round.get((study_hash, round_number, stage), []))

    def rows(self) -> tuple[LedgerRow, ...]:
        """Give one row a reservation, in the order of reserving.

        Guarantee: all of them, as verified on opening and written since.
        Edge cases: empty for a new ledger.
        """
        self._require_open()
        return tuple(self._folded.rows.values())

    def remarks(self) -> tuple[Remark, ...]:
        """Give all remarks, in order.

        Guarantee: all of them, as verified on opening and written since.
        Edge cases: empty for a new ledger.
        """
        self._require_open()
        return tuple(self._folded.remarks)

    @property
    def last_receipt(self) -> LastReceipt:
        """Number and digest of the last receipt that was committed.

        Guarantee: the next receipt has the number after it, and names its digest.
        Edge cases: number 0 and the digest of the ledger's identity before the first.
        """
        self._require_open()
        return self._folded.receipt

    def events(self) -> tuple[Event, ...]:
        """Give everything that counts as spent.

        Guarantee: a committed event by what was done, any other reservation in full.
        Edge cases: events of no steps are included; they cost nothing.
        """
        return tuple(row.event for row in self.rows())

    def epsilon(self, delta: float) -> float:
        """Give the total epsilon of all events of all studies.

        Guarantee: an upper bound for one patient added or removed; see `accounting.epsilon`.
        Edge cases: 0.0 for a new ledger.

        Raises:
            AccountingError: delta is outside (0, 1).
        """
        return accounting.epsilon(self.events(), delta)

    def verify(self) -> str:
        """Check the whole chain against itself and against the head, and give its last digest.

        Guarantee: every entry is as it was written and none is missing; an entry that does not
        fit is named. What neither shows: database and head replaced together by an older pair,
        or by one forged as a whole; the receipts that the server holds show it.
        Edge cases: an entry that was written by another program since opening is an error.

        Raises:
            LedgerError: What does not fit, and what to do.
        """
        self._require_open()
        noted = ledger_file.read_head(self._path)
        genesis = ledger_file.genesis(self._connection)
        entries = ledger_file.read_entries(self._connection)
        folded = fold(entries, genesis)
        ledger_file.check_head(
            noted, [genesis, *(link for _, _, link in entries)], required=not self._read_only
        )
        head = ledger_file.Head(folded.sequence, folded.digest)
        if self._head not in (None, head) and not self._read_only:
            raise LedgerError(
                "the ledger was written to by another program while it was open",
                expected="entries of this client only",
                remedy="Stop whatever writes to it, and open it again",
            )
        if noted != head and not self._read_only:
            ledger_file.write_head(self._path, head)
        self._head, self._folded = head, folded
        self._reservations = {
            entry.event_id: entry for entry, _, _ in entries if entry.state == "reserved"
        }
        self._of_round.clear()
        self._of_request.clear()
        for row in folded.rows.values():
            self._index(row)
        return folded.digest

    def _advance(
        self, row: LedgerRow, state: str, done: Event, payload_digest: str, receipt_digest: str
    ) -> None:
        self._append(
            replace(
                self._reservations[row.event_id],
                sequence=self._last.sequence + 1,
                state=state,
                written_at=_utc(self._clock),
                mechanism=done.kind,
                noise_multiplier=done.noise_multiplier,
                sample_rate=done.sample_rate,
                steps=done.steps,
                payload_digest=payload_digest,
                receipt_digest=receipt_digest,
            )
        )

    @property
    def _last(self) -> ledger_file.Head:
        if self._head is None:
            raise LedgerError("the ledger is not verified", remedy="Use Ledger.open")
        return self._head

    def _append(self, entry: Entry) -> None:
        change = self._folded.change(entry)
        digest = ledger_file.append(self._connection, entry, self._last.digest)
        # The entry is on the disk and counts, even if the head cannot be written.
        self._head = ledger_file.Head(entry.sequence, digest)
        self._folded.take(entry, change, digest)
        if entry.state == "reserved":
            self._reservations[entry.event_id] = entry
            self._index(self._folded.rows[entry.event_id])
        ledger_file.write_head(self._path, self._head)

    def _index(self, row: LedgerRow) -> None:
        self._of_round[round_of(row)].append(row.event_id)
        self._of_request[row.request_id].append(row.event_id)

    def _decisive(self, event_ids: list[int]) -> LedgerRow | None:
        rows = [self._folded.rows[event_id] for event_id in event_ids]
        return next((row for row in rows if row.answered), rows[-1] if rows else None)

    def _row(self, event_id: int, state: str, verb: str) -> LedgerRow:
        self._require_writable()
        row = self._folded.rows.get(event_id)
        if row is None or row.state != state:
            raise LedgerError(
                f"event {event_id} is {row.state if row else 'not in the ledger'}",
                expected=f"a {state} event to {verb}",
            )
        return row

    def _require_open(self) -> None:
        if self._closed or self._process != os.getpid():
            raise LedgerError(
                "the ledger is closed, or was carried into another process",
                remedy="Open it in the process that uses it",
            )

    def _require_writable(self) -> None:
        self._require_open()
        if self._read_only:
            raise LedgerError("the ledger was opened to read", remedy="Use Ledger.open to write")


def _utc(clock: Callable[[], datetime]) -> str:
    return clock().astimezone(UTC).isoformat(timespec="microseconds")


def _text(name: str, text: str, *, empty: bool = False) -> str:
    if (
        not isinstance(text, str)
        or len(text) > _MAX_TEXT
        or not text.isprintable()
        or not (text or empty)
    ):
        raise LedgerError(
            f"{name} is {str(text)[:40]!r}",
            expected=f"{'' if empty else '1 to '}{_MAX_TEXT} printable characters at most",
        )
    return text
