"""What a site is asked and what it answers, without a word about how it travels."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from fundusgen.errors import FederationError
from fundusgen.federation.weights import Weights, digest
from fundusgen.privacy.policy import RefusalReason


@dataclass(frozen=True)
class Request:
    """What the server asks of a site in a round.

    Attributes:
        study: The study as canonical JSON, `Study.agreed_json`.
        study_hash: Its hash, which the site computes again.
        round_number: From 1.
        stage: The mechanism asked for.
        weights: All weights of the model.
    """

    study: str
    study_hash: str
    round_number: int
    stage: str
    weights: Weights

    @property
    def content_digest(self) -> str:
        """SHA-256 of everything asked, in hex: equal exactly for equal requests."""
        content = [self.study_hash, self.round_number, self.stage, digest(self.weights)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def request_id(self) -> str:
        """Name of the request: a server that resumes asks under the same name again."""
        return self.content_digest[:32]


@dataclass(frozen=True)
class Receipt:
    """A site's statement of one release.

    Attributes:
        site: Name of the site.
        study_hash: The study.
        round_number: The round.
        request_id: The request that was answered.
        event: The mechanism's event as JSON content.
        epsilon_total: Over all events of all studies in the site's ledger.
        delta: At which `epsilon_total` holds.
        declared_patients: As the site declares publicly; its share of the average.
        noise: Kind of the noise generator.
        payload_digest: Digest of the arrays.
    """

    site: str
    study_hash: str
    round_number: int
    request_id: str
    event: dict[str, Any]
    epsilon_total: float
    delta: float
    declared_patients: int
    noise: str
    payload_digest: str

    def to_json(self) -> str:
        """Canonical JSON, the form that is kept and will be signed."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Receipt":
        """Read what `to_json` wrote.

        Raises:
            FederationError: The text is not a receipt.
        """
        try:
            content = json.loads(text)
            receipt = cls(**content)
            kinds = {name: type(value) for name, value in asdict(receipt).items()}
        except (ValueError, TypeError, RecursionError) as error:
            raise FederationError(f"a receipt cannot be read: {type(error).__name__}") from error
        expected = {"site": str, "study_hash": str, "round_number": int, "request_id": str,
                    "event": dict, "epsilon_total": float, "delta": float,
                    "declared_patients": int, "noise": str, "payload_digest": str}  # fmt: skip
        wrong = [name for name, kind in expected.items() if kinds[name] is not kind]
        if wrong:
            raise FederationError(f"a receipt has a wrong type at {', '.join(wrong)}")
        return receipt


@dataclass(frozen=True)
class Answer:
    """A mechanism's output and its receipt."""

    weights: Weights
    receipt: Receipt


@dataclass(frozen=True)
class Refusal:
    """A site's no, in one word of the list."""

    reason: RefusalReason
