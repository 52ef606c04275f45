"""What a ledger holds, as values: chained entries, and the rows that they add up to.

The database is a list of `Entry`s that only grows. Each states everything that is known at that
moment and carries the digest of the one before it, so that an edited, deleted or exchanged entry
breaks the chain at its place. `fold` reads a chain and gives one `LedgerRow` a reservation, or
names the first entry that does not fit. Beside events the chain holds `Remark`s, which cost
nothing: who approved a study, the policy's text whenever it changed, refusals, replays, repairs.
No database here, no clock, no file.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, get_args

from fundusgen.errors import AccountingError, LedgerError
from fundusgen.privacy.events import Event

State = Literal["reserved", "committed", "released"]
NoiseKind = Literal["secure", "fast"]
RemarkKind = Literal["approved", "policy", "refused", "replayed", "repaired"]
UNIT = "patient"
# What to do about a ledger that is not as it was written.
REMEDY = (
    "Nothing is trained until a person decides: `fundusgen audit ledger` says what is wrong, and "
    "`fundusgen site ledger repair` makes it whole"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the chain; its fields are the columns of the table, in order.

    Args:
        sequence: 1, 2, 3, ...: the order of entries, whatever the clock says.
        state: What this entry records: a `State` of an event, or a `RemarkKind`.
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
        note: What a remark says, as canonical JSON; empty for events.
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
        receipt_digest: Of the signed receipt; empty while reserved or without receipts.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """What the ledger holds besides events; costs nothing.

    Args:
        sequence: Its place in the chain.
        kind: What it records.
        written_at: UTC, ISO 8601.
        study_id: The study that it is about, or empty.
        study_hash: Its hash, or empty.
        policy_hash: Of the policy of that time, or empty.
        note: What it says.
    """

    sequence: int
    kind: RemarkKind
    written_at: str
    study_id: str
    study_hash: str
    policy_hash: str
    note: Mapping[str, Any]


class LastReceipt(NamedTuple):
    """Number and digest of the last receipt; number 0 with the genesis digest before the first."""

    sequence: int
    digest: str


@dataclass(slots=True)
class Folded:
    """What a chain adds up to so far; the one place where entries become state.

    Guarantee: `add` takes the next entry only, or raises and leaves everything as it was; an
    entry about to be written is held against `change` first and taken when it is on the disk.
    Edge cases: an empty chain has no rows and ends with the genesis digest.

    Args:
        genesis: What the first entry is chained to.

    Attributes:
        rows: By event id, in the order of reserving.
        remarks: In order.
        receipt: The last receipt that was committed, or that a repair has found.
        digest: Of the last entry.
        sequence: Of the last entry; 0 before the first.
    """

    genesis: str
    rows: dict[int, LedgerRow] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)
    receipt: LastReceipt = field(default_factory=lambda: LastReceipt(0, ""))
    digest: str = ""
    sequence: int = 0
    _answers: set[tuple[str, int, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Begin at the genesis."""
        self.digest = self.genesis
        self.receipt = LastReceipt(0, self.genesis)

    def add(self, entry: Entry, previous: str, digest: str) -> None:
        """Take the next entry as it was found, with its links.

        Raises:
            LedgerError: It does not fit, by its number.
        """
        expected = self.sequence + 1
        if entry.sequence != expected:
            raise _broken(expected, f"is missing: entry {entry.sequence} follows")
        if previous != self.digest:
            raise _broken(expected, "is not chained to the entry before it")
        try:
            if entry.digest(previous) != digest:
                raise _broken(expected, "was changed after it was written: its digest is wrong")
            self.take(entry, self.change(entry), digest)
        except ValueError as error:
            raise _broken(expected, "was changed: it holds a number without end") from error
        except AccountingError as error:
            raise _broken(expected, f"states no mechanism: {error.found}") from error

    def change(self, entry: Entry) -> LedgerRow | Remark:
        """Give what the next entry would add or change, without taking it.

        Raises:
            LedgerError: It does not fit.
            AccountingError: Its columns are no event.
        """
        if entry.state in get_args(RemarkKind):
            return _remark(entry)
        row = step(self.rows.get(entry.event_id), entry)
        if entry.state == "committed" and round_of(row) in self._answers:
            raise _broken(entry.sequence, "is a second answer to a round")
        return row

    def take(self, entry: Entry, change: LedgerRow | Remark, digest: str) -> None:
        """Take an entry whose `change` was found good, and which is on the disk."""
        self.sequence, self.digest = entry.sequence, digest
        if isinstance(change, Remark):
            self.remarks.append(change)
            if change.kind == "repaired":
                self.receipt = _repaired_receipt(change)
            return
        self.rows[entry.event_id] = change
        if entry.state == "committed":
            self._answers.add(round_of(change))
            if change.receipt_digest:
                self.receipt = LastReceipt(self.receipt.sequence + 1, change.receipt_digest)


def fold(entries: Iterable[tuple[Entry, str, str]], genesis: str) -> Folded:
    """Check a whole chain and give what it adds up to.

    Guarantee: every digest is right, no entry is missing before the last, and every entry is a
    step forward: reserved, then committed with no more than was planned, then released with the
    committed reply; one round has one answer. What is cut off at the end cannot be seen from
    the chain alone.
    Edge cases: an empty chain gives no rows and the genesis digest.

    Args:
        entries: `(entry, previous, digest)` in order of sequence.
        genesis: What the first entry is chained to.

    Raises:
        LedgerError: The first entry that does not fit, by its number.
    """
    folded = Folded(genesis)
    for entry, previous, digest in entries:
        folded.add(entry, previous, digest)
    return folded


def step(row: LedgerRow | None, entry: Entry) -> LedgerRow:
    """Apply one entry to the row it belongs to; the only way a row ever changes.

    Guarantee: the result is one step further than `row`, and repeats all that was agreed.
    Edge cases: `row` is None for a reservation, and only for one.

    Raises:
        LedgerError: The entry is not the next step.
        AccountingError: Its columns are no event.
    """
    if entry.state not in get_args(State) or entry.unit != UNIT or entry.note:
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
            receipt_digest=entry.receipt_digest,
            committed_at=entry.written_at,
        )
    if (row.state, row.done, row.payload_digest, row.receipt_digest) != (
        "committed",
        entry.event,
        entry.payload_digest,
        entry.receipt_digest,
    ):
        raise _broken(entry.sequence, f"releases {row.state} event {row.event_id} wrongly")
    return replace(row, state="released", released_at=entry.written_at)


def round_of(row: LedgerRow) -> tuple[str, int, str]:
    """Give what may be answered once only: study, round and stage.

    Guarantee: equal for two rows exactly if they answer the same round.
    Edge cases: none.
    """
    return row.study_hash, row.round_number, row.stage


def remark_entry(
    *,
    sequence: int,
    kind: RemarkKind,
    written_at: str,
    study_id: str,
    study_hash: str,
    policy_hash: str,
    note: Mapping[str, Any],
) -> Entry:
    """Write a remark as an entry of the chain.

    Guarantee: holds no event, so it costs nothing and hides nothing that does.
    Edge cases: none.
    """
    return Entry(
        sequence=sequence,
        state=kind,
        event_id=sequence,
        written_at=written_at,
        study_id=study_id,
        study_hash=study_hash,
        policy_hash=policy_hash,
        note=canonical_json(dict(note)),
        **_NO_EVENT,
    )


# The columns of an event in the entry of a remark.
_NO_EVENT: dict[str, Any] = {
    "round_number": 0,
    "stage": "",
    "request_id": "",
    "content_digest": "",
    "mechanism": "",
    "noise_multiplier": 0.0,
    "sample_rate": 0.0,
    "steps": 0,
    "unit": UNIT,
    "delta": 0.0,
    "noise_kind": "",
    "patients_declared": 0,
    "data_fingerprint": "",
    "code_hash": "",
    "payload_digest": "",
    "receipt_digest": "",
}


def _remark(entry: Entry) -> Remark:
    if entry.event_id != entry.sequence or any(
        getattr(entry, name) != value for name, value in _NO_EVENT.items()
    ):
        raise _broken(entry.sequence, f"is a remark ({entry.state}) that states an event")
    try:
        note = json.loads(entry.note)
    except (ValueError, RecursionError):
        note = None
    if not isinstance(note, dict):
        raise _broken(entry.sequence, f"is a remark ({entry.state}) that cannot be read")
    if entry.state == "repaired" and not (
        type(note.get("receipt_sequence")) is int and isinstance(note.get("receipt_digest"), str)
    ):
        raise _broken(entry.sequence, "is a repair that does not say which receipt was the last")
    return Remark(
        sequence=entry.sequence,
        kind=entry.state,  # type: ignore[arg-type]
        written_at=entry.written_at,
        study_id=entry.study_id,
        study_hash=entry.study_hash,
        policy_hash=entry.policy_hash,
        note=note,
    )


def _repaired_receipt(remark: Remark) -> LastReceipt:
    """Go on after the last receipt that a repair has found, which the chain may not hold."""
    return LastReceipt(remark.note["receipt_sequence"], remark.note["receipt_digest"])


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
        remedy=REMEDY,
    )
