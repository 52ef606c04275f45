"""A receipt says what was released, and nobody but the site can have said it."""

import base64
import dataclasses
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from fundusgen.errors import ReceiptError, SiteError
from fundusgen.privacy.accounting import epsilon
from fundusgen.privacy.events import Event
from fundusgen.privacy.keys import (
    data_fingerprint,
    key_fingerprint,
    make_keys,
    public_key,
    public_text,
    signing_key,
)
from fundusgen.privacy.receipt_folder import keep_receipt, read_receipts
from fundusgen.privacy.receipts import (
    Receipt,
    covers,
    require_epsilon,
    require_follows,
    require_signed,
)

KEY = ec.generate_private_key(ec.SECP384R1())
EVENT = Event("subsampled_gaussian", 1.5, 0.1, 4)


def receipt(sequence=1, previous="0" * 64, **changes) -> Receipt:
    spent = (dataclasses.replace(EVENT, steps=4 * sequence),)
    values = {
        "site": "north",
        "study_id": "retina",
        "study_hash": "5" * 64,
        "round_number": sequence,
        "stage": "dpsgd",
        "request_id": "ab" * 16,
        "event": EVENT,
        "spent": spent,
        "epsilon_total": epsilon(spent, 1e-5),
        "delta": 1e-5,
        "declared_patients": 300,
        "noise": "secure",
        "payload_digest": "d" * 64,
        "policy_hash": "a" * 64,
        "code_hash": "c" * 64,
        "sequence": sequence,
        "previous": previous,
    }
    return Receipt(**{**values, **changes}).signed(KEY)


def test_a_receipt_survives_the_journey_and_keeps_its_signature() -> None:
    sent = receipt()
    arrived = Receipt.from_json(sent.to_json())
    assert arrived == sent
    require_signed(arrived, KEY.public_key())
    require_epsilon(arrived)


def test_the_same_statement_has_the_same_signature_so_that_it_carries_nothing_else() -> None:
    assert receipt().signature == receipt().signature
    assert receipt().signature != receipt(declared_patients=310).signature


@pytest.mark.parametrize(
    "changes",
    [
        {"site": "south"},
        {"round_number": 2},
        {"epsilon_total": 0.1},
        {"delta": 1e-4},
        {"event": dataclasses.replace(EVENT, noise_multiplier=9.0)},
        {"spent": ()},
        {"payload_digest": "e" * 64},
        {"sequence": 7},
        {"previous": "1" * 64},
        {"noise": "fast"},
        {"code_hash": "e" * 64},
        {"policy_hash": "e" * 64},
        {"declared_patients": 301},
    ],
)
def test_a_receipt_that_was_changed_on_the_way_is_not_signed(changes) -> None:
    changed = dataclasses.replace(receipt(), **changes)
    with pytest.raises(ReceiptError, match="not signed"):
        require_signed(changed, KEY.public_key())


@pytest.mark.parametrize("signature", ["", "%", "QUJD", base64.b64encode(b"x" * 104).decode()])
def test_a_signature_that_is_none_is_refused_in_a_sentence(signature) -> None:
    with pytest.raises(ReceiptError, match="not signed"):
        require_signed(dataclasses.replace(receipt(), signature=signature), KEY.public_key())


def test_another_sites_key_does_not_sign_for_this_one() -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(ReceiptError, match="not signed"):
        require_signed(receipt().signed(other), KEY.public_key())


@pytest.mark.parametrize("factor", [0.5, 0.999, 1.001, 2.0])
def test_an_epsilon_that_does_not_follow_from_the_events_is_found(factor) -> None:
    wrong = receipt(epsilon_total=receipt().epsilon_total * factor)
    with pytest.raises(ReceiptError, match="states epsilon"):
        require_epsilon(wrong)


def test_a_receipt_that_does_not_count_its_own_event_is_found() -> None:
    fewer = (dataclasses.replace(EVENT, steps=3),)
    with pytest.raises(ReceiptError, match="its own event"):
        require_epsilon(receipt(spent=fewer, epsilon_total=epsilon(fewer, 1e-5)))


def test_receipts_follow_each_other_and_may_leave_out_those_of_other_studies() -> None:
    first = receipt(1)
    second = receipt(2, first.digest)
    require_follows(second, first)
    require_follows(receipt(5, "9" * 64), second)


@pytest.mark.parametrize(
    ("later", "said"),
    [
        (lambda first: receipt(1, "1" * 64), "came after receipt 2"),
        (lambda first: receipt(2, first.digest), "came after receipt 2"),
        (lambda first: receipt(3, "1" * 64), "does not name the receipt before"),
        (lambda first: receipt(5, "1" * 64, spent=(EVENT,)), "counts less than receipt 2"),
    ],
)
def test_a_ledger_that_forgot_something_is_found_by_its_receipts(later, said) -> None:
    first = receipt(1)
    with pytest.raises(ReceiptError, match=said):
        require_follows(later(first), receipt(2, first.digest))


def mutations():
    content = json.loads(receipt().to_json())
    values = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
        st.lists(st.integers(), max_size=2), st.just({}), st.just("x" * 300), st.just("1e-5"),
    )  # fmt: skip
    changed = st.tuples(st.sampled_from(sorted(content)), values).map(
        lambda change: {**content, change[0]: change[1]}
    )
    dropped = st.sampled_from(sorted(content)).map(
        lambda name: {key: value for key, value in content.items() if key != name}
    )
    return st.one_of(changed, dropped, st.just({**content, "more": 1}), st.just([content]))


@given(mutations())
@settings(max_examples=300, deadline=None)
def test_a_malformed_receipt_is_refused_or_says_exactly_what_it_says(content) -> None:
    text = json.dumps(content)
    try:
        read = Receipt.from_json(text)
    except ReceiptError:
        return
    assert json.loads(read.to_json()) == content


def test_a_text_without_end_is_not_parsed() -> None:
    with pytest.raises(ReceiptError, match="characters"):
        Receipt.from_json("[" * 10**6)


events = st.builds(
    Event,
    st.just("subsampled_gaussian"),
    st.sampled_from([0.8, 1.5]),
    st.sampled_from([0.1, 0.2]),
    st.integers(0, 20),
)


@given(st.lists(events, max_size=6), st.lists(events, max_size=6))
@settings(max_examples=200, deadline=None)
def test_a_history_covers_its_parts_and_nothing_that_was_not_counted(part, rest) -> None:
    assert covers((*part, *rest), part)
    more = [*part, *rest, Event("subsampled_gaussian", 0.8, 0.1, 1)]
    assert not covers((*part, *rest), more)


def test_kept_receipts_are_read_back_in_order_and_never_replaced(tmp_path) -> None:
    first = receipt(1)
    kept = [first, receipt(2, first.digest), receipt(10, "9" * 64)]
    for each in reversed(kept):
        keep_receipt(tmp_path, each)
    keep_receipt(tmp_path, first)
    assert read_receipts(tmp_path) == {"north": kept}
    with pytest.raises(ReceiptError, match="another receipt 1"):
        keep_receipt(tmp_path, receipt(1, declared_patients=310))
    assert read_receipts(tmp_path) == {"north": kept}


def test_a_damaged_receipt_is_named(tmp_path) -> None:
    keep_receipt(tmp_path, receipt())
    (tmp_path / "north" / "000001.json").write_text("{")
    with pytest.raises(ReceiptError, match=r"000001\.json"):
        read_receipts(tmp_path)


def test_keys_are_made_once_for_their_owner_only(tmp_path) -> None:
    make_keys(tmp_path / "keys")
    private = (tmp_path / "keys" / "node").read_bytes()
    make_keys(tmp_path / "keys")
    assert (tmp_path / "keys" / "node").read_bytes() == private
    assert (tmp_path / "keys" / "node").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys" / "fingerprint").stat().st_mode & 0o777 == 0o600
    key = signing_key(tmp_path / "keys")
    line = (tmp_path / "keys" / "node.pub").read_bytes()
    assert public_text(public_key(line, "node.pub")) == public_text(key.public_key())
    assert key_fingerprint(key.public_key()).startswith("SHA256:")


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN OPENSSH PRIVATE KEY-----\n"])
def test_a_key_that_cannot_be_used_is_named_and_not_shown(tmp_path, content) -> None:
    make_keys(tmp_path)
    (tmp_path / "node").write_bytes(content)
    with pytest.raises(SiteError, match="node cannot be used"):
        signing_key(tmp_path)
    with pytest.raises(SiteError, match="cannot be used"):
        public_key(content, "north.pub")


def test_a_fingerprint_tells_data_apart_and_sites_have_their_own(tmp_path) -> None:
    make_keys(tmp_path / "a")
    make_keys(tmp_path / "b")
    one, other = data_fingerprint(tmp_path / "a", "1"), data_fingerprint(tmp_path / "a", "2")
    assert one == data_fingerprint(tmp_path / "a", "1") != other
    assert data_fingerprint(tmp_path / "b", "1") != one
    (tmp_path / "a" / "fingerprint").write_bytes(b"short")
    with pytest.raises(SiteError, match="5 bytes"):
        data_fingerprint(tmp_path / "a", "1")
