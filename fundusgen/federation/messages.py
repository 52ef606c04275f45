"""The only two messages of a study, and everything that may be in them.

    server to site:  arrays, config {study, study_hash, round, stage, request_id, receipts}
    site to server:  arrays, receipt {json}          when a mechanism answered
                     refusal {reason}                when the site said no, from a fixed list

A message with any other key is refused on both sides. What leaves a site is therefore a
mechanism's output, the ledger's statement about it, or one word of `RefusalReason`.
"""

import json
import re

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fundusgen.errors import FederationError, ReceiptError
from fundusgen.federation.exchange import Answer, Refusal, Request
from fundusgen.federation.weights import Weights
from fundusgen.privacy.ledger_rows import canonical_json
from fundusgen.privacy.policy import RefusalReason
from fundusgen.privacy.receipts import Receipt

ARRAYS, CONFIG, RECEIPT, REFUSAL = "arrays", "config", "receipt", "refusal"
CONFIG_KEYS = frozenset({"study", "study_hash", "round", "stage", "request_id", "receipts"})
# More sites than any study has; what a server made up should not take minutes to parse.
_MAX_RECEIPTS_CHARACTERS = 1 << 20


def request_to_record(request: Request) -> RecordDict:
    """Pack a request."""
    config = ConfigRecord(
        {
            "study": request.study,
            "study_hash": request.study_hash,
            "round": request.round_number,
            "stage": request.stage,
            "request_id": request.request_id,
            "receipts": canonical_json(dict(request.known_receipts)),
        }
    )
    return RecordDict({ARRAYS: pack_arrays(request.weights), CONFIG: config})


def request_from_record(record: RecordDict) -> Request:
    """Unpack a request at a site.

    Raises:
        FederationError: It is not what the contract says.
    """
    if set(record) != {ARRAYS, CONFIG}:
        raise FederationError(
            f"a request has the parts {sorted(record)}", expected="arrays, config"
        )
    config = record[CONFIG]
    if not isinstance(config, ConfigRecord) or set(config) != CONFIG_KEYS:
        raise FederationError(
            "a request's config has other keys", expected=str(sorted(CONFIG_KEYS))
        )
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
    request = Request(
        study,
        study_hash,
        round_number,
        stage,
        unpack_arrays(record[ARRAYS]),
        _known_receipts(config["receipts"]),
    )
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
    try:
        return Answer(unpack_arrays(record[ARRAYS]), Receipt.from_json(str(receipt["json"])))
    except ReceiptError as error:
        raise FederationError(error.found, expected=error.expected) from error


def pack_arrays(weights: Weights) -> ArrayRecord:
    """Pack arrays by name, in the order of their names.

    Where they come from has an order of its own: what was just trained that of the model, what
    the outbox kept that of a hash table, another in each process. An answer that is sent again
    must be the same bytes.
    """
    return ArrayRecord({name: Array(weights[name]) for name in sorted(weights)})


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
        # A header can promise more than there is memory for.
        except (TypeError, ValueError, OSError, EOFError, MemoryError) as error:
            raise FederationError(f"array '{name}' cannot be read") from error
        # An archive of arrays can be read too.
        if not isinstance(values, np.ndarray) or values.dtype != np.float32:
            found = getattr(values, "dtype", "no array")
            raise FederationError(f"array '{name}' is {found}", expected="float32")
        weights[name] = values
    return weights


def _known_receipts(text: object) -> dict[str, str]:
    try:
        if not isinstance(text, str) or len(text) > _MAX_RECEIPTS_CHARACTERS:
            raise ValueError
        known = json.loads(text)
        if not isinstance(known, dict) or not all(
            isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)
            for digest in known.values()
        ):
            raise ValueError
    except (ValueError, RecursionError) as error:
        raise FederationError(
            "a request's receipts cannot be read", expected="digests by the names of sites"
        ) from error
    return known
