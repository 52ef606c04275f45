"""What the budget's own work costs a site and an officer, after a study of a thousand rounds.

A ledger of a thousand answered rounds with signed receipts, on this machine's disk: what one more
round adds, what opening it costs a client at every message, and how long an audit takes.
"""

import hashlib
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography.hazmat.primitives.asymmetric import ec

from fundusgen.errors import ReceiptError
from fundusgen.privacy.accounting import epsilon
from fundusgen.privacy.audit import Evidence, audit_ledger
from fundusgen.privacy.events import Event, merged
from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.ledger_salvage import salvage
from fundusgen.privacy.receipts import Receipt, require_epsilon, require_signed
from simulations.benchmarks.child import Row, row, rows_of_child

ROUNDS, DELTA, TURNS = 1_000, 1e-5, 20
ONE = Event("subsampled_gaussian", 4.0, 0.05, 4)


def run() -> list[Row]:
    """Measure in a fresh process, whose accountants have seen nothing yet."""
    return rows_of_child(__name__, "measure")


def measure() -> list[Row]:
    """Measure in this process."""
    first_s = _seconds(lambda: epsilon([ONE] * 10, DELTA))
    with TemporaryDirectory(dir=Path.cwd()) as folder:
        path, key = Path(folder) / "ledger.db", ec.generate_private_key(ec.SECP384R1())
        receipts: list[Receipt] = []
        began_s = time.perf_counter()
        with Ledger.open(path) as ledger:
            for number in range(1, ROUNDS + 1):
                receipts.append(_answer(ledger, number, key))
        cycle_ms = 1e3 * (time.perf_counter() - began_s) / ROUNDS
        with Ledger.open(path) as ledger:
            # One step more than was ever counted, or a cache would answer.
            rounds_s = _seconds(lambda: epsilon([*ledger.events(), replace(ONE, steps=1)], DELTA))
        opening_s = statistics.median(_seconds(lambda: _open(path)) for _ in range(TURNS))
        arrival_ms = 1e3 * _seconds(lambda: _arrive(receipts[-1], key.public_key()))
        evidence = Evidence(receipts=tuple(receipts), keys=(key.public_key(),))
        audit_s = _seconds(lambda: audit_ledger(salvage(path), evidence, site="north"))
    return [
        row("the first epsilon of a process", first_s, "s"),
        row(f"epsilon of {ROUNDS:,} rounds after it", rounds_s, "s", 2.0),
        row("reserve, sign, commit and release a round, epsilon aside", cycle_ms, "ms"),
        row(f"opening and verifying {3 * ROUNDS:,} entries", 1e3 * opening_s, "ms"),
        row("checking a receipt on arrival", arrival_ms, "ms"),
        row(f"audit of {ROUNDS:,} rounds with their receipts", audit_s, "s"),
    ]


def _answer(ledger: Ledger, number: int, key: ec.EllipticCurvePrivateKey) -> Receipt:
    """Answer a round without training; epsilon of the last one only is computed."""
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    event_id = ledger.reserve(
        study_id="study",
        study_hash="a" * 64,
        round_number=number,
        stage="dpsgd",
        request_id=digest[:32],
        content_digest=digest,
        event=ONE,
        delta=DELTA,
        policy_hash="b" * 64,
        code_hash="c" * 64,
        patients_declared=500,
    )
    last, spent = ledger.last_receipt, merged(ledger.events())
    receipt = Receipt(
        site="north",
        study_id="study",
        study_hash="a" * 64,
        round_number=number,
        stage="dpsgd",
        request_id=digest[:32],
        event=ONE,
        spent=spent,
        # Another number each time takes as long to check, and a right one would take as long here.
        epsilon_total=0.0,
        delta=DELTA,
        declared_patients=500,
        noise="secure",
        payload_digest=digest,
        policy_hash="b" * 64,
        code_hash="c" * 64,
        sequence=last.sequence + 1,
        previous=last.digest,
    ).signed(key)
    ledger.commit(event_id, ONE, digest, receipt_digest=receipt.digest)
    ledger.release(event_id, digest)
    return receipt


def _open(path: Path) -> None:
    with Ledger.open(path):
        pass


def _arrive(receipt: Receipt, key: ec.EllipticCurvePublicKey) -> None:
    require_signed(receipt, key)
    with suppress(ReceiptError):
        require_epsilon(receipt)


def _seconds(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s
