import json
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fundusgen.errors import FederationError
from fundusgen.federation.exchange import Answer, Refusal, Request
from fundusgen.federation.messages import (
    pack_arrays,
    reply_from_record,
    reply_to_record,
    request_from_record,
    request_to_record,
)
from fundusgen.federation.payload import from_payload, to_payload
from fundusgen.federation.weights import digest
from fundusgen.privacy.events import Event
from fundusgen.privacy.policy import RefusalReason
from fundusgen.privacy.receipts import Receipt

WEIGHTS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
REQUEST = Request("{}", "5" * 64, 2, "dpsgd", WEIGHTS, {"north": "7" * 64})
EVENT = Event("subsampled_gaussian", 1.5, 0.1, 4)
RECEIPT = Receipt(
    site="north",
    study_id="retina",
    study_hash="5" * 64,
    round_number=2,
    stage="dpsgd",
    request_id=REQUEST.request_id,
    event=EVENT,
    spent=(EVENT,),
    epsilon_total=1.5,
    delta=1e-5,
    declared_patients=100,
    noise="secure",
    payload_digest=digest(WEIGHTS),
    policy_hash="a" * 64,
    code_hash="c" * 64,
    sequence=1,
    previous="0" * 64,
    signature="QUJD",
)


def test_a_request_arrives_as_it_was_sent() -> None:
    arrived = request_from_record(request_to_record(REQUEST))
    assert arrived.request_id == REQUEST.request_id
    assert (arrived.study, arrived.round_number, arrived.stage) == ("{}", 2, "dpsgd")
    assert arrived.known_receipts == {"north": "7" * 64}
    np.testing.assert_array_equal(arrived.weights["a.weight"], WEIGHTS["a.weight"])


def test_the_bytes_of_a_message_do_not_depend_on_the_order_of_its_arrays() -> None:
    """The outbox gives arrays back in an order of its own, another one in each process."""
    weights = {name: np.full(2, number, np.float32) for number, name in enumerate("hgfedcba")}
    turned = dict(reversed(weights.items()))
    one, other = (pack_arrays(arrays).deflate() for arrays in (weights, turned))
    assert one == other


def test_the_request_id_changes_with_every_part_of_the_request() -> None:
    others = [
        replace(REQUEST, study_hash="i" * 64),
        replace(REQUEST, round_number=3),
        replace(REQUEST, stage="votes"),
        replace(REQUEST, weights={"a.weight": WEIGHTS["a.weight"] + 1}),
    ]
    assert len({request.request_id for request in [REQUEST, *others]}) == 5


def test_what_leaves_a_site_has_two_parts_and_no_more() -> None:
    record = reply_to_record(Answer(WEIGHTS, RECEIPT))
    assert set(record) == {"arrays", "receipt"}
    assert set(record["receipt"]) == {"json"}
    assert set(json.loads(record["receipt"]["json"])) == {
        "version", "site", "study_id", "study_hash", "round_number", "stage", "request_id", "event",
        "spent", "epsilon_total", "delta", "declared_patients", "noise", "payload_digest",
        "policy_hash", "code_hash", "sequence", "previous", "signature",
    }  # fmt: skip
    assert set(reply_to_record(Refusal(RefusalReason.NO_DATA))) == {"refusal"}


def test_an_answer_and_a_refusal_arrive_as_they_were_sent() -> None:
    answer = reply_from_record(reply_to_record(Answer(WEIGHTS, RECEIPT)))
    assert isinstance(answer, Answer)
    assert answer.receipt == RECEIPT
    assert digest(answer.weights) == digest(WEIGHTS)
    refusal = Refusal(RefusalReason.BUDGET_EXHAUSTED)
    assert reply_from_record(reply_to_record(refusal)) == refusal


def arrays(value: np.ndarray) -> ArrayRecord:
    return ArrayRecord({"a.weight": Array(value)})


def broken_array() -> ArrayRecord:
    return ArrayRecord({"a": Array("float32", (2,), "numpy.ndarray", b"not an array")})


def pickled_array() -> ArrayRecord:
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([{"evil": 1}], dtype=object), allow_pickle=True)
    return ArrayRecord({"a": Array("object", (1,), "numpy.ndarray", buffer.getvalue())})


def promising_array() -> ArrayRecord:
    """A header of more numbers than any memory holds, and none after it."""
    import io

    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**15,)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return ArrayRecord({"a": Array("float32", (1,), "numpy.ndarray", buffer.getvalue())})


def archive_of_arrays() -> ArrayRecord:
    """What `np.load` opens too, and what is no array."""
    import io

    buffer = io.BytesIO()
    np.savez(buffer, weight=WEIGHTS["a.weight"])
    return ArrayRecord({"a.weight": Array("float32", (1,), "numpy.ndarray", buffer.getvalue())})


GOOD = ConfigRecord({"json": RECEIPT.to_json()})


@pytest.mark.parametrize(
    "record",
    [
        RecordDict(),
        RecordDict({"arrays": arrays(WEIGHTS["a.weight"])}),
        RecordDict({"arrays": arrays(WEIGHTS["a.weight"]), "receipt": GOOD,
                    "metrics": MetricRecord({"loss": 1.0})}),
        RecordDict({"arrays": broken_array(), "receipt": GOOD}),
        RecordDict({"arrays": pickled_array(), "receipt": GOOD}),
        RecordDict({"arrays": promising_array(), "receipt": GOOD}),
        RecordDict({"arrays": archive_of_arrays(), "receipt": GOOD}),
        RecordDict({"arrays": arrays(np.ones(2)), "receipt": GOOD}),
        RecordDict({"arrays": arrays(WEIGHTS["a.weight"]), "receipt": ConfigRecord({"json": "{"})}),
        RecordDict({"arrays": arrays(WEIGHTS["a.weight"]),
                    "receipt": ConfigRecord({"json": RECEIPT.to_json().replace("1.5", '"1"')})}),
        RecordDict({"arrays": arrays(WEIGHTS["a.weight"]),
                    "receipt": ConfigRecord({"json": "[" * 5000})}),
        RecordDict({"refusal": ConfigRecord({"reason": "patient 12 has no image"})}),
        RecordDict({"refusal": ConfigRecord({"reason": "no-data", "more": "x"})}),
    ],
)  # fmt: skip
def test_a_reply_that_breaks_the_contract_is_refused(record: RecordDict) -> None:
    with pytest.raises(FederationError):
        reply_from_record(record)


@pytest.mark.parametrize(
    ("key", "value"),
    [("round", 0), ("round", 1.5), ("request_id", "0" * 32), ("stage", 1), ("extra", "x")],
)
def test_a_request_that_breaks_the_contract_is_refused(key: str, value: object) -> None:
    record = request_to_record(REQUEST)
    record["config"][key] = value
    with pytest.raises(FederationError):
        request_from_record(record)


def test_an_answer_comes_out_of_the_outbox_bit_for_bit() -> None:
    again = from_payload(to_payload(Answer(WEIGHTS, RECEIPT)))
    assert again.receipt == RECEIPT
    assert digest(again.weights) == digest(WEIGHTS)


@pytest.mark.parametrize("cut", [0, 4, 20, -3])
def test_a_payload_that_was_cut_is_refused(cut: int) -> None:
    with pytest.raises(FederationError):
        from_payload(to_payload(Answer(WEIGHTS, RECEIPT))[:cut])
