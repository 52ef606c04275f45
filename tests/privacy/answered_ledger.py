"""A ledger whose rounds were answered with signed receipts, without any training."""

import hashlib
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from fundusgen.privacy import ledger_file
from fundusgen.privacy.accounting import epsilon
from fundusgen.privacy.events import Event, merged
from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.ledger_rows import COLUMNS, Entry
from fundusgen.privacy.policy import Policy
from fundusgen.privacy.receipts import Receipt
from fundusgen.privacy.remarks import note_policy

PLAN = Event("subsampled_gaussian", 1.1, 0.05, 20)
VOTES = Event("gaussian", 8.0, 1.0, 1)
DELTA = 1e-5
KEY = ec.derive_private_key(0x5EED, ec.SECP384R1())


def digest_of(*words: object) -> str:
    return hashlib.sha256(repr(words).encode()).hexdigest()


@dataclass
class AnsweredSite:
    """A site's ledger and every receipt that was ever made under it, on all of its branches."""

    path: Path
    receipts: list[Receipt] = field(default_factory=list)
    policy: Policy | None = None
    key: ec.EllipticCurvePrivateKey = KEY

    def answer(
        self, round_number: int, event: Event = PLAN, *, mark: str = "", **row: object
    ) -> Receipt:
        """Answer a round of the study `retina` as `training.answering` does."""
        with Ledger.open(self.path) as ledger:
            if self.policy is not None:
                note_policy(ledger, self.policy)
                row = {"policy_hash": self.policy.policy_hash, **row}
            event_id = reserve(ledger, round_number, event, mark=mark, **row)
            receipt = make_receipt(ledger, round_number, event, mark=mark, **row).signed(self.key)
            reply = digest_of("reply", round_number, mark)
            ledger.commit(event_id, event, reply, receipt_digest=receipt.digest)
            ledger.release(event_id, reply)
        self.receipts.append(receipt)
        return receipt

    def give_up(self, round_number: int) -> None:
        """Reserve a round and crash while training."""
        with Ledger.open(self.path) as ledger:
            row = {} if self.policy is None else {"policy_hash": self.policy.policy_hash}
            reserve(ledger, round_number, PLAN, **row)

    def released(self) -> list[Event]:
        """The truth: what has left the site, whatever the ledger says."""
        return [receipt.event for receipt in self.receipts]

    def copy_to(self, folder: Path) -> "AnsweredSite":
        """A copy of the ledger, as a backup makes it."""
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.path.parent.glob("ledger.db*"):
            shutil.copy(file, folder / file.name)
        return AnsweredSite(folder / self.path.name, list(self.receipts), self.policy)

    def restore(self, backup: "AnsweredSite") -> None:
        """Put a backup back, the note of the last entry with it."""
        for file in self.path.parent.glob("ledger.db*"):
            file.unlink()
        for file in backup.path.parent.glob("ledger.db*"):
            shutil.copy(file, self.path.parent / file.name)

    def forge(
        self, change: Callable[[Entry], Entry], without: Callable[[Entry], bool] = lambda _: False
    ) -> None:
        """Change or take out entries, and make every digest and the note of the last anew."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            link = ledger_file.genesis(connection)
            entries = [entry for entry, _, _ in ledger_file.read_entries(connection)]
        kept = [change(entry) for entry in entries if not without(entry)]
        numbers = {entry.sequence: place for place, entry in enumerate(kept, start=1)}
        rows = []
        for place, entry in enumerate(kept, start=1):
            event_id = numbers.get(entry.event_id, place)
            entry = replace(entry, sequence=place, event_id=event_id)
            values = [getattr(entry, name) for name in COLUMNS]
            rows.append([*values, link, link := entry.digest(link)])
        marks = ", ".join("?" * (len(COLUMNS) + 2))
        self.edit("DELETE FROM entries")
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.executemany(f"INSERT INTO entries VALUES ({marks})", rows)
        ledger_file.write_head(self.path, ledger_file.Head(len(rows), link))

    def outbox(self) -> dict[tuple[str, str], Receipt | None]:
        """The replies as an audit reads them: each with its receipt, by request and digest."""
        with Ledger.read(self.path) as ledger:
            payloads = {row.receipt_digest: row.payload_digest for row in ledger.rows()}
        return {
            (receipt.request_id, payloads[receipt.digest]): receipt
            for receipt in self.receipts
            if receipt.digest in payloads
        }

    def edit(self, *statements: str) -> None:
        """Edit as somebody who knows of the triggers would, and puts them back."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            for trigger in ("entries_stay", "entries_keep"):
                connection.execute(f"DROP TRIGGER {trigger}")
            try:
                for statement in statements:
                    connection.execute(statement)
            finally:
                for trigger in ("entries_stay", "entries_keep"):
                    connection.execute(ledger_file.SCHEMA[trigger])


def reserve(ledger: Ledger, round_number: int, event: Event, *, mark: str = "", **row: Any) -> int:
    usual: dict[str, Any] = {
        "study_id": "retina",
        "study_hash": digest_of("retina"),
        "delta": DELTA,
        "policy_hash": digest_of("policy"),
        "code_hash": digest_of("code"),
        "patients_declared": 300,
    }
    return ledger.reserve(
        round_number=round_number,
        stage="dpsgd",
        request_id=digest_of(round_number, mark)[:32],
        content_digest=digest_of(round_number, mark),
        event=event,
        **(usual | row),
    )


def make_receipt(
    ledger: Ledger, round_number: int, event: Event, *, mark: str = "", **row: Any
) -> Receipt:
    last, spent = ledger.last_receipt, merged(ledger.events())
    return Receipt(
        site="north",
        study_id=row.get("study_id", "retina"),
        study_hash=row.get("study_hash", digest_of("retina")),
        round_number=round_number,
        stage="dpsgd",
        request_id=digest_of(round_number, mark)[:32],
        event=event,
        spent=spent,
        epsilon_total=epsilon(spent, DELTA),
        delta=DELTA,
        declared_patients=row.get("patients_declared", 300),
        noise=row.get("noise_kind", "secure"),
        payload_digest=digest_of("arrays", round_number, mark),
        policy_hash=row.get("policy_hash", digest_of("policy")),
        code_hash=row.get("code_hash", digest_of("code")),
        sequence=last.sequence + 1,
        previous=last.digest,
    )
