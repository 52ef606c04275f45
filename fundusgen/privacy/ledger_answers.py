"""What a site does when it is asked: answer as before, train, or refuse.

One decision, without side effects, from the rows that a ledger holds. The ledger asks it again
inside `reserve`, so that a client that forgets to ask cannot spend twice.
"""

from dataclasses import dataclass
from typing import Protocol

from fundusgen.errors import LedgerError
from fundusgen.privacy.ledger_rows import LedgerRow


class RequestConflict(LedgerError):
    """A request that contradicts what the ledger holds about its round."""


@dataclass(frozen=True, slots=True)
class Replay:
    """Send the bytes that the outbox holds under `row.request_id` and `row.payload_digest`."""

    row: LedgerRow


@dataclass(frozen=True, slots=True)
class Train:
    """Reserve, train, and answer: nothing was answered before."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer nothing. The words are for the site's operator; they do not leave the site."""

    found: str
    expected: str
    remedy: str

    def as_error(self) -> RequestConflict:
        """Give the refusal as the error that `Ledger.reserve` raises.

        Guarantee: says no more than the refusal.
        Edge cases: none.
        """
        return RequestConflict(self.found, expected=self.expected, remedy=self.remedy)


class History(Protocol):
    """What the decision reads of a ledger."""

    def find(self, request_id: str) -> LedgerRow | None:
        """Give the row of a request: the answered one, or the latest."""

    def find_round(self, study_hash: str, round_number: int, stage: str) -> LedgerRow | None:
        """Give the row of a round: the answered one, or the latest."""


def answer_for(
    history: History,
    *,
    study_hash: str,
    round_number: int,
    stage: str,
    request_id: str,
    content_digest: str,
) -> Replay | Train | Refuse:
    """Decide what a site does about a request.

    Guarantee: a round that has an answer is never trained again, and never answered otherwise.
    Changes nothing; reads nothing about patients.
    Edge cases: a reservation that was never committed (a crash while training) stays counted,
    nothing of it was sent, and the same request is trained anew under a new reservation. The
    same content under another request id is the same question: it is replayed. Another content
    for a round that was once asked for is refused, answered or not. A request id that was used
    for another question is refused.

    Args:
        history: The ledger, or anything that finds rows as it does.
        study_hash: Hash of the study.
        round_number: Its round.
        stage: Its stage.
        request_id: The server's name for the request.
        content_digest: Digest of everything that is asked.
    """
    question = (study_hash, round_number, stage, content_digest)
    same_id = history.find(request_id)
    if same_id is not None and _question(same_id) != question:
        return Refuse(
            f"request {request_id} was used before, for round {same_id.round_number} of study "
            f"{same_id.study_id} with another content",
            expected="a request id of its own for every question",
            remedy="Tell the study lead: the server repeats request ids",
        )
    same_round = history.find_round(study_hash, round_number, stage)
    if same_round is None:
        return Train()
    if same_round.content_digest != content_digest:
        return Refuse(
            f"round {round_number} ({stage}) of study {same_round.study_id} was asked for before, "
            "with another content",
            expected="the same content, which is answered with the same bytes",
            remedy="Tell the study lead: the server must resume from the checkpoint it asked with",
        )
    return Replay(same_round) if same_round.answered else Train()


def _question(row: LedgerRow) -> tuple[str, int, str, str]:
    return row.study_hash, row.round_number, row.stage, row.content_digest
