"""What a site is asked and what it answers, without a word about how it travels."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from fundusgen.federation.weights import Weights, digest
from fundusgen.privacy.policy import RefusalReason
from fundusgen.privacy.receipts import Receipt


@dataclass(frozen=True)
class Request:
    """What the server asks of a site in a round.

    Attributes:
        study: The study as canonical JSON, `Study.agreed_json`.
        study_hash: Its hash, which the site computes again.
        round_number: From 1.
        stage: The mechanism asked for.
        weights: All weights of the model.
        known_receipts: Digest of the last receipt that the server holds, by site. A site that
            was restored from an old backup learns from it what it has forgotten. No part of
            what is asked.
    """

    study: str
    study_hash: str
    round_number: int
    stage: str
    weights: Weights
    known_receipts: Mapping[str, str] = field(default_factory=dict)

    @property
    def content_digest(self) -> str:
        """SHA-256 of everything asked, in hex: equal exactly for equal questions."""
        content = [self.study_hash, self.round_number, self.stage, digest(self.weights)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def request_id(self) -> str:
        """Name of the request: a server that resumes asks under the same name again."""
        return self.content_digest[:32]


@dataclass(frozen=True)
class Answer:
    """A mechanism's output and its receipt."""

    weights: Weights
    receipt: Receipt


@dataclass(frozen=True)
class Refusal:
    """A site's no, in one word of the list."""

    reason: RefusalReason
