"""The only two messages of a study, and everything that may be in them.

    server to site:  arrays, config {study, study_hash, round, stage, request_id}
    site to server:  arrays, receipt {json}          when a mechanism answered
                     refusal {reason}                when the site said no, from a fixed list

A message with any other key is refused on both sides. What leaves a site is therefore a
mechanism's output, the ledger's statement about it, or one word of `RefusalReason`.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fundusgen.errors import FederationError
from fundusgen.federation.weights import Weights, digest
from fundusgen.privacy.policy import RefusalReason

ARRAYS, CONFIG, RECEIPT, REFUSAL = "arrays", "config", "receipt", "refusal"
CONFIG_KEYS = frozenset({"study", "study_hash", "round", "stage", "request_id"})
STAGES = ("dpsgd",)


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


def request_to_record(request: Request) -> RecordDict:
    """Pack a request."""
    config = ConfigRecord(
        {
            "study": request.study,
            "study_hash": request.study_hash,
            "round": request.round_number,
            "stage": request.stage,
            "request_id": request.request_id,
        }
    )
    return RecordDict({ARRAYS: pack_arrays(request.weights), CONFIG: config})


def request_from_record(record: RecordDict) -> Request:
    """Unpack a request at a site.

    Raises:
        FederationError: It is not what the contract says.
    """
    if set(record) != {ARRAYS, CONFIG}:
        raise FederationError(f"a request has the parts {sorted(record)}", expected="arrays, config")
    config = record[CONFIG]
    if not isinstance(config, ConfigRecord) or set(config) != CONFIG_KEYS:
        raise FederationError("a request's config has other keys", expected=str(sorted(CONFIG_KEYS)))
    study, study_hash, stage = config["study"], config["study_hash"], config["stage"]
    round_number = config["round"]
    if (
        not isinstance(study, str)
        or not isinstance(study_hash, str)
        or not isinstance(stage, str)
        or type(round_number) is not int
        or round_number < 1
    ):
        raise FederationError("a request's config has values of the wrong type")
    request = Request(study, study_hash, round_number, stage, unpack_arrays(record[ARRAYS]))
    if config["request_id"] != request.request_id:
        raise FederationError("a request's id is not the digest of its content")
    return request


def reply_to_record(reply: Answer | Refusal) -> RecordDict:
    """Pack what leaves a site."""
    if isinstance(reply, Refusal):
        return RecordDict({REFUSAL: ConfigRecord({"reason": reply.reason.value})})
    receipt = ConfigRecord({"json": reply.receipt.to_json()})
    return RecordDict({ARRAYS: pack_arrays(reply.weights), RECEIPT: receipt})


def reply_from_record(record: RecordDict) -> Answer | Refusal:
    """Unpack a reply at the server.

    Raises:
        FederationError: It is not what the contract says.
    """
    if set(record) == {REFUSAL} and isinstance(refusal := record[REFUSAL], ConfigRecord):
        reasons = {reason.value: reason for reason in RefusalReason}
        word = refusal.get("reason")
        if set(refusal) != {"reason"} or not isinstance(word, str) or word not in reasons:
            raise FederationError("a refusal has a reason that is not on the list")
        return Refusal(reasons[word])
    if set(record) != {ARRAYS, RECEIPT}:
        raise FederationError(f"a reply has the parts {sorted(record)}", expected="arrays, receipt")
    receipt = record[RECEIPT]
    if not isinstance(receipt, ConfigRecord) or set(receipt) != {"json"}:
        raise FederationError("a receipt has other keys", expected="json")
    return Answer(unpack_arrays(record[ARRAYS]), Receipt.from_json(str(receipt["json"])))


def pack_arrays(weights: Weights) -> ArrayRecord:
    """Pack arrays by name."""
    return ArrayRecord({name: Array(array) for name, array in weights.items()})


def unpack_arrays(record: object) -> Weights:
    """Unpack arrays by name; never unpickles.

    Raises:
        FederationError: An array cannot be read, or is not float32.
    """
    if not isinstance(record, ArrayRecord):
        raise FederationError("arrays are missing")
    weights: Weights = {}
    for name, array in record.items():
        try:
            values = array.numpy()
        except (TypeError, ValueError, OSError, EOFError) as error:
            raise FederationError(f"array '{name}' cannot be read") from error
        if values.dtype != np.float32:
            raise FederationError(f"array '{name}' is {values.dtype}", expected="float32")
        weights[name] = values
    return weights
