"""The ledger and its decision against a model that a person can check by reading it."""

import dataclasses
import hashlib
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fundusgen.errors import LedgerError
from fundusgen.privacy.events import Event
from fundusgen.privacy.ledger import (
    Ledger,
    Refuse,
    Replay,
    RequestConflict,
    Train,
    answer_for,
)
from fundusgen.privacy.outbox import Outbox

PLAN = Event("subsampled_gaussian", 1.3, 0.1, 8)


@dataclasses.dataclass
class Attempt:
    """One reservation of the model."""

    asked: dict
    counted: Event = PLAN
    reply: bytes = b""
    released: bool = False


class Client(RuleBasedStateMachine):
    """A client that is asked, answers, and dies at any point between the lines."""

    def __init__(self):
        super().__init__()
        shared = Path("/dev/shm")  # noqa: S108
        self.folder = Path(tempfile.mkdtemp(dir=shared if shared.is_dir() else None))
        self.attempts: list[Attempt] = []
        self.open_id = 0
        self.made = 0
        self.start()

    def start(self):
        self.ledger = Ledger.open(self.folder / "ledger.db", wait_s=0)
        self.outbox = Outbox(self.folder / "outbox")
        self.open_id = 0

    def expected(self, asked):
        round_asked = (asked["study_hash"], asked["round_number"], asked["stage"])
        for attempt in self.attempts:
            same_round = round_asked == tuple(
                attempt.asked[name] for name in ("study_hash", "round_number", "stage")
            )
            same_content = attempt.asked["content_digest"] == asked["content_digest"]
            same_id = attempt.asked["request_id"] == asked["request_id"]
            if (same_round and not same_content) or (same_id and not same_round):
                return "refuse"
        for attempt in self.attempts:
            if attempt.reply and round_asked == tuple(
                attempt.asked[name] for name in ("study_hash", "round_number", "stage")
            ):
                return attempt.reply
        return "train"

    @rule(
        study=st.sampled_from("56"),
        round_number=st.integers(1, 3),
        content=st.sampled_from("000000001"),
        request=st.integers(0, 9),
        honest=st.sampled_from([True, True, True, False]),
    )
    def ask(self, study, round_number, content, request, honest):
        name = f"{study}{round_number}{content}" if honest else f"{request}"
        asked = {
            "study_hash": study * 64,
            "round_number": round_number,
            "stage": "dpsgd",
            "request_id": hashlib.sha256(name.encode()).hexdigest()[:32],
            "content_digest": content * 64,
        }
        self.put_question(asked)

    @precondition(lambda self: self.attempts)
    @rule(which=st.integers(0))
    def ask_again(self, which):
        self.put_question(self.attempts[-1 - which % len(self.attempts)].asked)

    def put_question(self, asked):
        expected = self.expected(asked)
        decision = answer_for(self.ledger, **asked)
        if expected == "refuse":
            assert isinstance(decision, Refuse)
        elif isinstance(expected, bytes):
            assert isinstance(decision, Replay)
            row = decision.row
            assert self.outbox.get(row.request_id, row.payload_digest) == expected
        else:
            assert isinstance(decision, Train)
            self.open_id = self.ledger.reserve(**asked, study_id="retina", event=PLAN, delta=1e-5)
            self.attempts.append(Attempt(asked))
            assert self.open_id == self.ledger.rows()[-1].event_id
            return
        with pytest.raises(RequestConflict):
            self.ledger.reserve(**asked, study_id="retina", event=PLAN, delta=1e-5)

    @precondition(lambda self: self.open_id and not self.attempts[-1].reply)
    @rule(steps=st.integers(0, 10), dies=st.booleans())
    def train(self, steps, dies):
        self.made += 1
        reply = f"noise {self.made}".encode()
        digest = self.outbox.put(self.attempts[-1].asked["request_id"], reply)
        if dies:
            self.crash()
            return
        done = dataclasses.replace(PLAN, steps=steps)
        if steps > PLAN.steps:
            with pytest.raises(LedgerError, match="more than it reserved"):
                self.ledger.commit(self.open_id, done, digest)
            return
        self.ledger.commit(self.open_id, done, digest)
        self.attempts[-1].counted, self.attempts[-1].reply = done, reply

    @precondition(
        lambda self: self.open_id and self.attempts[-1].reply and not self.attempts[-1].released
    )
    @rule()
    def release(self):
        digest = hashlib.sha256(self.attempts[-1].reply).hexdigest()
        self.ledger.release(self.open_id, digest)
        self.attempts[-1].released = True

    @rule()
    def crash(self):
        self.ledger.close()
        self.start()

    @rule()
    def sweep(self):
        self.outbox.sweep({row.payload_digest for row in self.ledger.rows() if row.answered})

    @invariant()
    def everything_is_counted(self):
        assert list(self.ledger.events()) == [attempt.counted for attempt in self.attempts]

    @invariant()
    def one_round_has_one_answer(self):
        answered = [
            (attempt.asked["study_hash"], attempt.asked["round_number"])
            for attempt in self.attempts
            if attempt.reply
        ]
        assert len(answered) == len(set(answered))

    @invariant()
    def states_are_those_of_the_model(self):
        states = [
            "released" if attempt.released else "committed" if attempt.reply else "reserved"
            for attempt in self.attempts
        ]
        assert [row.state for row in self.ledger.rows()] == states

    def teardown(self):
        self.ledger.verify()
        self.ledger.close()
        shutil.rmtree(self.folder)


TestClient = Client.TestCase
TestClient.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
