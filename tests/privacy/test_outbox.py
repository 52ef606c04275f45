import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundusgen import storage
from fundusgen.errors import LedgerError
from fundusgen.privacy.outbox import Outbox, check_request_id

REQUEST = "0123456789abcdef"


@pytest.fixture
def outbox(tmp_path):
    return Outbox(tmp_path / "outbox")


def test_a_reply_comes_back_byte_for_byte(outbox):
    for payload in (b"", b"\x00\xff" * 1000, os.urandom(5000)):
        digest = outbox.put(REQUEST, payload)
        assert digest == hashlib.sha256(payload).hexdigest()
        assert outbox.get(REQUEST, digest) == payload


def test_an_empty_outbox_has_no_reply(outbox):
    assert outbox.get(REQUEST, "0" * 64) is None
    digest = outbox.put(REQUEST, b"reply")
    assert outbox.get("fedcba9876543210", digest) is None
    assert outbox.get(REQUEST, "0" * 64) is None


def test_requests_are_named_whose_replies_are_kept_and_no_other_file(outbox):
    assert outbox.requests() == frozenset()
    outbox.put(REQUEST, b"first noise")
    outbox.put(REQUEST, b"second noise")
    outbox.put("fedcba9876543210", b"reply")
    (outbox.folder / "notes.txt").write_text("of the operator")
    (outbox.folder / f".{REQUEST}.{'0' * 64}.abc.tmp").write_bytes(b"part")
    assert outbox.requests() == {REQUEST, "fedcba9876543210"}


def test_the_reply_of_an_attempt_that_crashed_never_replaces_another(outbox):
    first, second = outbox.put(REQUEST, b"first noise"), outbox.put(REQUEST, b"second noise")
    assert outbox.get(REQUEST, first) == b"first noise"
    assert outbox.get(REQUEST, second) == b"second noise"


def test_the_same_reply_again_is_no_error(outbox):
    assert outbox.put(REQUEST, b"reply") == outbox.put(REQUEST, b"reply")
    assert len(list(outbox.folder.iterdir())) == 1


def test_a_damaged_reply_is_never_returned(outbox):
    digest = outbox.put(REQUEST, b"reply")
    (file,) = outbox.folder.iterdir()
    for damaged in (b"", b"repl", b"reply!", b"Reply"):
        file.write_bytes(damaged)
        with pytest.raises(LedgerError, match="damaged"):
            outbox.get(REQUEST, digest)
    outbox.put(REQUEST, b"reply")
    assert outbox.get(REQUEST, digest) == b"reply"


def test_replies_are_for_the_owner_only(outbox):
    outbox.put(REQUEST, b"reply")
    (file,) = outbox.folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert outbox.folder.stat().st_mode & 0o077 == 0


def test_a_link_is_not_followed(outbox, tmp_path):
    digest = outbox.put(REQUEST, b"reply")
    (file,) = outbox.folder.iterdir()
    secret = tmp_path / "secret"
    secret.write_bytes(b"reply")
    file.unlink()
    file.symlink_to(secret)
    with pytest.raises(LedgerError, match="cannot be read"):
        outbox.get(REQUEST, digest)


def test_a_failed_write_leaves_no_reply_and_says_so(outbox, monkeypatch):
    def broken(_descriptor):
        raise OSError(28, "No space left on device")

    outbox.put("ffffffffffffffff", b"earlier")
    monkeypatch.setattr(storage.os, "fsync", broken)
    with pytest.raises(LedgerError, match="No space left"):
        outbox.put(REQUEST, b"reply")
    monkeypatch.undo()
    assert outbox.get(REQUEST, hashlib.sha256(b"reply").hexdigest()) is None
    assert len(list(outbox.folder.iterdir())) == 1


def test_a_file_in_the_folders_place_is_named(tmp_path):
    (tmp_path / "outbox").write_text("")
    with pytest.raises(LedgerError, match="could not be kept"):
        Outbox(tmp_path / "outbox").put(REQUEST, b"reply")


@pytest.mark.parametrize(
    "request_id",
    ["", "..", "../../x", "a/b", "ABCDEF0123456789", "0123456", "0123456789abcdeg", "0" * 129,
     "01234567\n", "\u0660" * 16, None, 12345678],
)  # fmt: skip
def test_a_request_id_is_hexadecimal_or_refused(outbox, request_id):
    with pytest.raises(LedgerError, match="request id"):
        outbox.put(request_id, b"reply")
    with pytest.raises(LedgerError, match="request id"):
        outbox.get(request_id, "0" * 64)
    assert not outbox.folder.exists()


@given(st.text())
def test_no_text_that_passes_leaves_the_folder(text):
    try:
        check_request_id(text)
    except LedgerError:
        return
    assert set(text) <= set("0123456789abcdef")


@pytest.mark.parametrize("digest", ["", "0" * 63, "../" + "0" * 61, "G" * 64, None])
def test_a_malformed_digest_is_refused(outbox, digest):
    with pytest.raises(LedgerError, match="expected_digest"):
        outbox.get(REQUEST, digest)


def test_sweeping_keeps_committed_replies_and_foreign_files(outbox):
    assert outbox.sweep([]) == 0
    kept, orphan = outbox.put(REQUEST, b"committed"), outbox.put(REQUEST, b"crashed")
    (outbox.folder / f".{REQUEST}.{orphan}.abcdef.tmp").write_bytes(b"half a reply")
    (outbox.folder / "note.txt").write_text("of the operator")
    assert outbox.sweep({kept}) == 2
    assert outbox.get(REQUEST, kept) == b"committed"
    assert outbox.get(REQUEST, orphan) is None
    assert (outbox.folder / "note.txt").exists()
