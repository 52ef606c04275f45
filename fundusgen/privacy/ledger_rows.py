"""What a ledger holds, as values: chained entries, and the rows that they add up to.

The database is a list of `Entry`s that only grows. Each states everything that is known at that
moment and carries the digest of the one before it, so that an edited, deleted or exchanged entry
breaks the chain at its place. `fold` reads a chain and gives one `LedgerRow` a reservation, or
names the first entry that does not fit. No database here, no clock, no file.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from fundusgen.errors import AccountingError, LedgerError
from fundusgen.privacy.events import Event

State = Literal["reserved", "committed", "released"]
NoiseKind = Literal["secure", "fast"]
UNIT = "patient"
_REMEDY = (
    "Train no further with this ledger: keep the file as it is for the audit, and compare it with "
    "a backup and with the receipts that the server holds"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the chain; its fields are the columns of the table, in order.

    Args:
        sequence: 1, 2, 3, ...: the order of entries, whatever the clock says.
        state: What this entry records.
        event_id: `sequence` of the reservation that it belongs to.
        written_at: UTC, ISO 8601; for people, orders nothing.
        study_id: Name of the study.
        study_hash: Hash of the study as agreed.
        round_number: Round of the study.
        stage: Stage of the study: `dpsgd`, `votes`, ...
        request_id: The server's request.
        content_digest: Digest of everything that was asked.
        mechanism: Kind of the event, planned (reserved) or done (committed, released).
        noise_multiplier: Of that event.
        sample_rate: Of that event.
        steps: Of that event.
        unit: Of privacy: `patient`.
        delta: The site's delta when it reserved.
        noise_kind: `secure`, or `fast` in simulations.
        patients_declared: As the site declares publicly; 0 where unknown.
        data_fingerprint: Keyed digest of the data, or empty.
        policy_hash: Of the policy that allowed it, or empty.
        code_hash: Of the code that ran, or empty.
        payload_digest: Of the reply; empty while reserved.
        receipt_digest: Of the signed receipt, or empty.
        note: For a person's words, or empty.
    """

    sequence: int
    state: str
    event_id: int
    written_at: str
    study_id: str
    study_hash: str
    round_number: int
    stage: str
    request_id: str
    content_digest: str
    mechanism: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    unit: str
    delta: float
    noise_kind: str
    patients_declared: int
    data_fingerprint: str
    policy_hash: str
    code_hash: str
    payload_digest: str = ""
    receipt_digest: str = ""
    note: str = ""

    def digest(self, previous: str) -> str:
        """Give the entry's link of the chain: SHA-256 over canonical JSON and the link before.

        Guarantee: any other value in any field, or another link before, gives another digest.
        Edge cases: floats are written with all their digits, so they survive the database.
        """
        values = {name: getattr(self, name) for name in COLUMNS} | {"previous": previous}
        return hashlib.sha256(canonical_json(values).encode()).hexdigest()

    @property
    def event(self) -> Event:
        """The mechanism that the entry states.

        Raises:
            AccountingError: The columns are no event.
        """
        return Event(
            self.mechanism,  # type: ignore[arg-type]
            self.noise_multiplier,
            self.sample_rate,
            self.steps,
        )


COLUMNS = tuple(field.name for field in fields(Entry))
# What later entries of a reservation repeat unchanged.
_REPEATED = (
    "study_id",
    "study_hash",
    "round_number",
    "stage",
    "request_id",
    "content_digest",
    "unit",
    "delta",
    "noise_kind",
    "patients_declared",
    "data_fingerprint",
    "policy_hash",
    "code_hash",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """One reservation and what became of it.

    Args:
        event_id: Its number in the ledger.
        state: `reserved`, `committed` or `released`.
        planned: The event that was reserved.
        done: The event that took place; None while it is not committed.
        study_id: Name of the study.
        study_hash: Hash of the study as agreed.
        round_number: Round of the study.
        stage: Stage of the study.
        request_id: The server's request.
        content_digest: Digest of everything that was asked.
        delta: The site's delta when it reserved.
        noise_kind: `secure` or `fast`.
        patients_declared: As the site declares publicly; 0 where unknown.
        data_fingerprint: Keyed digest of the data, or empty.
        policy_hash: Of the policy, or empty.
        code_hash: Of the code, or empty.
        payload_digest: Of the reply in the outbox; empty while reserved.
        receipt_digest: Of the signed receipt; empty before release or without receipts.
        reserved_at: UTC, ISO 8601.
        committed_at: The same, or empty.
        released_at: The same, or empty.
    """

    event_id: int
    state: State
    planned: Event
    done: Event | None
    study_id: str
    study_hash: str
    round_number: int
    stage: str
    request_id: str
    content_digest: str
    delta: float
    noise_kind: str
    patients_declared: int
    data_fingerprint: str
    policy_hash: str
    code_hash: str
    payload_digest: str
    receipt_digest: str
    reserved_at: str
    committed_at: str
    released_at: str

    @property
    def event(self) -> Event:
        """What counts: the event that was done, or the whole plan while nobody knows."""
        return self.planned if self.done is None else self.done

    @property
    def answered(self) -> bool:
        """Whether a reply to the request exists: committed or released."""
        return self.state != "reserved"


def fold(entries: Iterable[tuple[Entry, str, str]], genesis: str) -> tuple[list[LedgerRow], str]:
    """Check a whole chain and give its rows.

    Guarantee: every digest is right, no entry is missing before the last, and every entry is a
    step forward: reserved, then committed with no more than was planned, then released with the
    committed reply; one round has one answer. What is cut off at the end cannot be seen from
    the chain alone.
    Edge cases: an empty chain gives no rows and the genesis digest.

    Args:
        entries: `(entry, previous, digest)` in order of sequence.
        genesis: What the first entry is chained to.

    Returns:
        The rows by event id, and the digest of the last entry.

    Raises:
        LedgerError: The first entry that does not fit, by its number.
    """
    rows: dict[int, LedgerRow] = {}
    answers: set[tuple[str, int, str]] = set()
    head = genesis
    for expected, (entry, previous, digest) in enumerate(entries, start=1):
        if entry.sequence != expected:
            raise _broken(expected, f"is missing: entry {entry.sequence} follows")
        if previous != head:
            raise _broken(expected, "is not chained to the entry before it")
        try:
            if entry.digest(previous) != digest:
                raise _broken(expected, "was changed after it was written: its digest is wrong")
            row = step(rows.get(entry.event_id), entry)
        except ValueError as error:
            raise _broken(expected, "was changed: it holds a number without end") from error
        except AccountingError as error:
            raise _broken(expected, f"states no mechanism: {error.found}") from error
        if entry.state == "committed":
            if (answer := round_of(row)) in answers:
                raise _broken(expected, "is a second answer to a round")
            answers.add(answer)
        rows[entry.event_id] = row
        head = digest
    return list(rows.values()), head


def step(row: LedgerRow | None, entry: Entry) -> LedgerRow:
    """Apply one entry to the row it belongs to; the only way a row ever changes.

    Guarantee: the result is one step further than `row`, and repeats all that was agreed.
    Edge cases: `row` is None for a reservation, and only for one.

    Raises:
        LedgerError: The entry is not the next step.
        AccountingError: Its columns are no event.
    """
    if entry.state not in get_args(State) or entry.unit != UNIT:
        raise _broken(entry.sequence, f"has state {entry.state!r} and unit {entry.unit!r}")
    if entry.state == "reserved":
        if row is not None or entry.event_id != entry.sequence or entry.payload_digest:
            raise _broken(entry.sequence, "is a reservation that is not its own")
        return LedgerRow(
            event_id=entry.event_id,
            state="reserved",
            planned=entry.event,
            done=None,
            **{name: getattr(entry, name) for name in _REPEATED if name != "unit"},
            payload_digest="",
            receipt_digest="",
            reserved_at=entry.written_at,
            committed_at="",
            released_at="",
        )
    if row is None:
        raise _broken(entry.sequence, f"belongs to no reservation ({entry.event_id})")
    if any(getattr(entry, name) != getattr(row, name) for name in _REPEATED if name != "unit"):
        raise _broken(entry.sequence, f"contradicts its reservation {entry.event_id}")
    if entry.state == "committed":
        if row.state != "reserved" or not entry.event.costs_at_most(row.planned):
            raise _broken(entry.sequence, f"commits {row.state} event {row.event_id} wrongly")
        return replace(
            row,
            state="committed",
            done=entry.event,
            payload_digest=entry.payload_digest,
            committed_at=entry.written_at,
        )
    if (row.state, row.done, row.payload_digest) != (
        "committed",
        entry.event,
        entry.payload_digest,
    ):
        raise _broken(entry.sequence, f"releases {row.state} event {row.event_id} wrongly")
    return replace(
        row,
        state="released",
        receipt_digest=entry.receipt_digest,
        released_at=entry.written_at,
    )


def round_of(row: LedgerRow) -> tuple[str, int, str]:
    """Give what may be answered once only: study, round and stage.

    Guarantee: equal for two rows exactly if they answer the same round.
    Edge cases: none.
    """
    return row.study_hash, row.round_number, row.stage


def canonical_json(values: dict[str, object]) -> str:
    """Write values as the one JSON text that they have.

    Guarantee: equal values give equal text, on any machine: sorted keys, no spaces, ASCII.
    Edge cases: NaN and infinities raise ValueError.
    """
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _broken(sequence: int, what: str) -> LedgerError:
    return LedgerError(
        f"ledger entry {sequence} {what}",
        expected="an unbroken chain of entries, as they were written",
        remedy=_REMEDY,
    )
