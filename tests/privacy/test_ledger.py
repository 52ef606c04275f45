import dataclasses
import errno
import os
import shutil
import sqlite3
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fundusgen.errors import AccountingError, LedgerError
from fundusgen.privacy import ledger_file
from fundusgen.privacy.accounting import epsilon
from fundusgen.privacy.events import Event
from fundusgen.privacy.ledger import Ledger, RequestConflict
from fundusgen.privacy.ledger_rows import COLUMNS

PLAN = Event("subsampled_gaussian", 1.1, 0.05, 20)
VOTES = Event("gaussian", 8.0, 1.0, 1)
REPLY = "ab" * 32
WHOLE_NUMBERS = ("event_id", "round_number", "steps", "patients_declared")


def question(round_number=1, **changed):
    return {
        "study_id": "retina",
        "study_hash": "5" * 64,
        "round_number": round_number,
        "stage": "dpsgd",
        "request_id": f"{round_number:032x}",
        "content_digest": f"{round_number:064x}",
        "event": PLAN,
        "delta": 1e-5,
    } | changed


def answer(ledger, round_number=1, **changed):
    event_id = ledger.reserve(**question(round_number, **changed))
    ledger.commit(event_id, changed.get("event", PLAN), REPLY)
    ledger.release(event_id, REPLY)
    return event_id


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


@pytest.fixture(scope="module")
def whole_ledger(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "ledger.db"
    with Ledger.open(path) as ledger:
        for round_number in (1, 2, 3):
            answer(ledger, round_number)
    return path


@pytest.fixture
def used(path, whole_ledger):
    """A closed ledger of three answered rounds: nine entries."""
    for name in ("ledger.db", "ledger.db.head", "ledger.db.lock"):
        shutil.copy(whole_ledger.with_name(name), path.with_name(name))
    return path


def tamper(path, *statements):
    """Edit a ledger as somebody who knows of the triggers would."""
    connection = sqlite3.connect(path, isolation_level=None)
    triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
    triggers = triggers.fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement)
    for _, sql in triggers:
        connection.execute(sql)
    connection.close()


def opened_is_refused(path, match):
    with pytest.raises(LedgerError, match=match):
        Ledger.open(path, wait_s=0)


def test_a_new_ledger_has_spent_nothing(path):
    with Ledger.open(path) as ledger:
        assert ledger.rows() == ledger.events() == ()
        assert ledger.epsilon(1e-5) == 0.0
        assert ledger.find("ab" * 16) is None


def test_an_event_passes_through_its_states_and_keeps_all_that_was_said(path):
    said = question(
        data_fingerprint="f" * 64,
        policy_hash="c" * 64,
        code_hash="d" * 64,
        noise_kind="fast",
        patients_declared=250,
    )
    with Ledger.open(path) as ledger:
        event_id = ledger.reserve(**said)
        row = ledger.find(said["request_id"])
        assert (row.state, row.planned, row.done, row.event) == ("reserved", PLAN, None, PLAN)
        assert {name: getattr(row, name) for name in said if name != "event"} == {
            name: value for name, value in said.items() if name != "event"
        }
        done = dataclasses.replace(PLAN, steps=7)
        ledger.commit(event_id, done, REPLY, receipt_digest="e" * 64)
        row = ledger.find_round("5" * 64, 1, "dpsgd")
        assert (row.state, row.planned, row.event, row.payload_digest) == (
            "committed",
            PLAN,
            done,
            REPLY,
        )
        ledger.release(event_id, REPLY)
        row = ledger.rows()[0]
        assert (row.state, row.event, row.receipt_digest) == ("released", done, "e" * 64)
    with Ledger.open(path) as again:
        assert again.rows() == (row,)


def test_epsilon_is_that_of_all_studies_since_the_beginning(path):
    with Ledger.open(path) as ledger:
        answer(ledger, 1)
    with Ledger.open(path) as ledger:
        answer(ledger, 1, study_hash="6" * 64, study_id="votes", request_id="ff" * 16, event=VOTES)
        ledger.reserve(**question(2))
    with Ledger.open(path) as ledger:
        assert ledger.events() == (PLAN, VOTES, PLAN)
        assert ledger.epsilon(1e-5) == epsilon([PLAN, PLAN, VOTES], 1e-5)


def test_a_reservation_counts_in_full_until_it_is_committed(path):
    with Ledger.open(path) as ledger:
        event_id = ledger.reserve(**question())
        assert ledger.events() == (PLAN,)
        ledger.commit(event_id, dataclasses.replace(PLAN, steps=0), REPLY)
        assert ledger.epsilon(1e-5) == 0.0


@pytest.mark.parametrize(
    "more",
    [
        dataclasses.replace(PLAN, steps=21),
        dataclasses.replace(PLAN, noise_multiplier=1.0),
        dataclasses.replace(PLAN, sample_rate=0.06),
        VOTES,
    ],
)
def test_more_than_was_reserved_is_never_committed(path, more):
    with Ledger.open(path) as ledger:
        event_id = ledger.reserve(**question())
        with pytest.raises(LedgerError, match="more than it reserved"):
            ledger.commit(event_id, more, REPLY)
        assert ledger.rows()[0].state == "reserved"


def test_states_only_go_forward(path):
    with Ledger.open(path) as ledger:
        event_id = ledger.reserve(**question())
        with pytest.raises(LedgerError, match="is reserved"):
            ledger.release(event_id, REPLY)
        ledger.commit(event_id, PLAN, REPLY)
        with pytest.raises(LedgerError, match="is committed"):
            ledger.commit(event_id, PLAN, REPLY)
        with pytest.raises(LedgerError, match="another reply"):
            ledger.release(event_id, "cd" * 32)
        ledger.release(event_id, REPLY)
        with pytest.raises(LedgerError, match="is released"):
            ledger.release(event_id, REPLY)
        with pytest.raises(LedgerError, match="not in the ledger"):
            ledger.commit(99, PLAN, REPLY)


def test_an_answered_round_is_never_reserved_again(path):
    with Ledger.open(path) as ledger:
        answer(ledger)
        with pytest.raises(RequestConflict, match="answered already"):
            ledger.reserve(**question())
        with pytest.raises(RequestConflict, match="answered already"):
            ledger.reserve(**question(request_id="ee" * 16))
        assert len(ledger.rows()) == 1


def test_a_round_with_another_content_is_refused_even_if_it_was_never_answered(path):
    with Ledger.open(path) as ledger:
        ledger.reserve(**question())
        with pytest.raises(RequestConflict, match="another content"):
            ledger.reserve(**question(content_digest="9" * 64, request_id="ee" * 16))
        with pytest.raises(RequestConflict, match="used before"):
            ledger.reserve(**question(2, request_id=question()["request_id"]))


def test_a_reservation_that_was_given_up_is_never_committed_later(path):
    with Ledger.open(path) as ledger:
        first = ledger.reserve(**question())
        second = ledger.reserve(**question())
        with pytest.raises(LedgerError, match="given up"):
            ledger.commit(first, PLAN, REPLY)
        ledger.commit(second, PLAN, REPLY)
        assert ledger.events() == (PLAN, PLAN)
        assert ledger.find(question()["request_id"]).event_id == second


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"request_id": "../../etc/x"}, "request id"),
        ({"request_id": ""}, "request id"),
        ({"content_digest": ""}, "content_digest"),
        ({"study_id": "a\nb"}, "study_id"),
        ({"study_id": "x" * 257}, "study_id"),
        ({"round_number": -1, "request_id": "ab" * 16}, "round"),
        ({"round_number": True}, "round"),
        ({"patients_declared": 1.5}, "patients_declared"),
        ({"delta": 0.0}, "delta"),
        ({"delta": float("nan")}, "delta"),
        ({"noise_kind": "none"}, "noise_kind"),
        ({"event": dataclasses.replace(PLAN, steps=0)}, "no steps"),
    ],
)
def test_a_malformed_reservation_is_refused_and_leaves_no_trace(path, changed, message):
    with Ledger.open(path) as ledger:
        with pytest.raises(LedgerError, match=message):
            ledger.reserve(**question(**changed))
        assert ledger.rows() == ()


def test_entries_are_ordered_by_number_when_the_clock_goes_back(path):
    times = iter(datetime(2030, 1, 1, tzinfo=UTC) - timedelta(days=i) for i in range(20))
    with Ledger.open(path, clock=lambda: next(times)) as ledger:
        for round_number in (1, 2, 3):
            answer(ledger, round_number)
    with Ledger.open(path) as ledger:
        assert [row.round_number for row in ledger.rows()] == [1, 2, 3]
        assert ledger.rows()[0].reserved_at > ledger.rows()[2].reserved_at


def test_times_are_written_in_utc(path):
    with Ledger.open(path, clock=lambda: datetime.fromisoformat("2026-05-01T01:30+02:00")) as one:
        one.reserve(**question())
        assert one.rows()[0].reserved_at == "2026-04-30T23:30:00.000000+00:00"


def test_a_second_client_is_refused_while_the_first_works(path):
    with Ledger.open(path):
        opened_is_refused(path, "another client")
    with Ledger.open(path):
        pass


def test_a_closed_ledger_answers_nothing(path):
    ledger = Ledger.open(path)
    ledger.close()
    ledger.close()
    for use in (ledger.rows, ledger.verify, lambda: ledger.reserve(**question())):
        with pytest.raises(LedgerError, match="closed"):
            use()


def test_a_forked_process_cannot_use_the_ledger(path, monkeypatch):
    with Ledger.open(path) as ledger:
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with pytest.raises(LedgerError, match="another process"):
            ledger.reserve(**question())
        monkeypatch.undo()


def test_files_are_for_the_owner_only(used):
    for name in ("ledger.db", "ledger.db.head", "ledger.db.lock"):
        assert used.with_name(name).stat().st_mode & 0o077 == 0


def test_reading_writes_nothing_and_shows_a_held_ledger(used):
    with Ledger.open(used) as writer:
        answer(writer, 4)
        with Ledger.read(used) as reader:
            assert reader.rows() == writer.rows()
            with pytest.raises(LedgerError, match="opened to read"):
                reader.reserve(**question(5))


def test_a_copy_can_be_read_without_its_head_but_not_worked_with(used, tmp_path):
    copy = tmp_path / "copy" / "ledger.db"
    copy.parent.mkdir()
    shutil.copy(used, copy)
    with Ledger.read(copy) as reader:
        assert len(reader.rows()) == 3
    assert [file.name for file in copy.parent.iterdir()] == ["ledger.db"]
    opened_is_refused(copy, "note of the last entry is missing")


def test_a_prompt_cannot_edit_or_delete_entries_by_mishap(used):
    connection = sqlite3.connect(used)
    for statement in ("UPDATE entries SET steps = 1", "DELETE FROM entries"):
        with pytest.raises(sqlite3.IntegrityError, match="only grows"):
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize("column", [*COLUMNS[1:], "previous", "digest"])
def test_an_edited_entry_is_found_and_named(used, column):
    value = f"{column} + 0.5" if column in ("noise_multiplier", "sample_rate", "delta") else "'x'"
    value = f"{column} + 1" if column in WHOLE_NUMBERS else value
    tamper(used, f"UPDATE entries SET {column} = {value} WHERE sequence = 5")
    opened_is_refused(used, "ledger entry 5")
    with pytest.raises(LedgerError, match="ledger entry 5"):
        Ledger.read(used)


def test_an_edit_while_the_ledger_is_open_is_found(used):
    with Ledger.open(used) as ledger:
        tamper(used, "UPDATE entries SET noise_multiplier = 9.0 WHERE sequence = 1")
        with pytest.raises(LedgerError, match="ledger entry 1 was changed"):
            ledger.verify()


def test_a_deleted_entry_is_found_and_named(used):
    tamper(used, "DELETE FROM entries WHERE sequence = 4")
    opened_is_refused(used, "ledger entry 4 is missing")


def test_deleted_last_entries_are_found_by_the_head(used):
    tamper(used, "DELETE FROM entries WHERE sequence > 6")
    opened_is_refused(used, "ends at entry 6 and lacks entry 9")
    tamper(used, "DELETE FROM entries")
    opened_is_refused(used, "ends at entry 0 and lacks entry 9")


def test_exchanged_entries_are_found(used):
    tamper(
        used,
        "UPDATE entries SET sequence = 100 WHERE sequence = 2",
        "UPDATE entries SET sequence = 2 WHERE sequence = 3",
        "UPDATE entries SET sequence = 3 WHERE sequence = 100",
    )
    opened_is_refused(used, "ledger entry 2")


def test_an_older_copy_put_back_is_found(used, tmp_path):
    backup = tmp_path / "backup.db"
    shutil.copy(used, backup)
    with Ledger.open(used) as ledger:
        answer(ledger, 4)
    shutil.copy(backup, used)
    opened_is_refused(used, "an older ledger was put back")


def test_another_ledger_put_in_its_place_is_found(used, tmp_path):
    other = tmp_path / "other" / "ledger.db"
    other.parent.mkdir()
    with Ledger.open(other) as ledger:
        for round_number in range(1, 6):
            answer(ledger, round_number)
    shutil.copy(other, used)
    opened_is_refused(used, "lacks entry 9 as it was")


def test_a_lost_ledger_is_not_replaced_by_a_new_one(used):
    used.unlink()
    opened_is_refused(used, "missing or empty")
    assert not used.exists()
    used.touch()
    opened_is_refused(used, "missing or empty")


def test_a_damaged_head_is_named(used):
    head = used.with_name("ledger.db.head")
    for text in (b"", b"{", b"[]", b'{"sequence": "9", "digest": ""}', b"\xff\xfe"):
        head.write_bytes(text)
        opened_is_refused(used, "head is damaged")


def test_a_head_one_behind_is_the_trace_of_a_crash_and_is_right(used):
    head = used.with_name("ledger.db.head")
    with Ledger.open(used) as ledger:
        before = head.read_bytes()
        ledger.reserve(**question(4))
    head.write_bytes(before)
    with Ledger.open(used) as ledger:
        assert len(ledger.rows()) == 4
    assert head.read_bytes() != before


def test_changed_tables_are_found(used):
    connection = sqlite3.connect(used)
    connection.execute("DROP TRIGGER entries_keep")
    connection.commit()
    connection.close()
    opened_is_refused(used, "entries_keep")


def test_other_files_are_no_ledgers(tmp_path):
    text = tmp_path / "text.db"
    text.write_text("epsilon is 0, promised. " * 100)
    opened_is_refused(text, "no database")
    foreign = tmp_path / "foreign.db"
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE photographs (id)")
    connection.commit()
    connection.close()
    opened_is_refused(foreign, "no ledger")
    folder = tmp_path / "folder.db"
    folder.mkdir()
    opened_is_refused(folder, "cannot be used")
    opened_is_refused(tmp_path / "nowhere" / "ledger.db", "does not exist")
    with pytest.raises(LedgerError, match="no ledger at"):
        Ledger.read(tmp_path / "none.db")


def test_a_ledger_of_a_newer_version_is_refused(used):
    connection = sqlite3.connect(used)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    opened_is_refused(used, "newer fundusgen")


def test_a_torn_or_cut_file_is_found(path):
    with Ledger.open(path) as ledger:
        for round_number in range(12):
            answer(ledger, round_number)
    whole = path.read_bytes()
    page = 4096
    for damaged in (
        whole[: len(whole) // 2],
        whole[:-page],
        whole[:-100],
        whole[:-page] + bytes(page),
        whole[: -page // 2] + bytes(page // 2),
        whole[:page],
        whole[:99],
    ):
        path.write_bytes(damaged)
        opened_is_refused(path, "damaged|changed|lacks|missing|identities|not chained")
    path.write_bytes(whole)
    with Ledger.open(path) as ledger:
        assert len(ledger.rows()) == 12


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(flips=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=3))
def test_flipped_bytes_are_found_or_change_nothing(whole_ledger, tmp_path, flips):
    whole = whole_ledger.read_bytes()
    with Ledger.read(whole_ledger) as ledger:
        rows = ledger.rows()
    damaged = bytearray(whole)
    for place, byte in flips:
        damaged[place % len(whole)] = byte
    path = tmp_path / "ledger.db"
    path.write_bytes(damaged)
    try:
        with Ledger.read(path) as ledger:
            assert ledger.rows() == rows
    except LedgerError:
        pass


def test_a_full_disk_is_named_and_nothing_is_counted_as_written(path):
    with Ledger.open(path) as ledger:
        (pages,) = ledger._connection.execute("PRAGMA page_count").fetchone()
        ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(LedgerError, match="disk is full"):
            fill(ledger)
        written = len(ledger.rows())
        ledger.verify()
    with Ledger.open(path) as ledger:
        assert len(ledger.rows()) == written


def fill(ledger):
    for round_number in range(100):
        ledger.reserve(**question(round_number))


def test_an_entry_whose_head_cannot_be_written_is_counted_but_not_usable(path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Ledger.open(path) as ledger:
        monkeypatch.setattr(ledger_file, "write_atomically", full)
        with pytest.raises(LedgerError, match="No space left"):
            ledger.reserve(**question())
        assert ledger.events() == (PLAN,)
        monkeypatch.undo()
    with Ledger.open(path) as ledger:
        assert ledger.events() == (PLAN,)


@pytest.fixture
def unprivileged_folder():
    """A folder that may be read but not written, and a process without root's rights."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_that_cannot_be_written_is_named_and_its_ledger_can_be_read(
    used, unprivileged_folder
):
    path = unprivileged_folder / "ledger.db"
    for name in ("ledger.db", "ledger.db.head"):
        shutil.copy(used.with_name(name), unprivileged_folder / name)
        (unprivileged_folder / name).chmod(0o444)
    unprivileged_folder.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        opened_is_refused(path, "cannot be used: Permission denied")
        with Ledger.read(path) as ledger:
            assert len(ledger.rows()) == 3
    finally:
        if is_root:
            os.seteuid(0)


def test_a_program_that_holds_the_database_is_named(used, monkeypatch):
    with Ledger.open(used) as ledger:
        ledger._connection.execute("PRAGMA busy_timeout = 10")
        other = sqlite3.connect(used, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="locked by another program"):
            ledger.reserve(**question(4))
        other.execute("ROLLBACK")
        other.close()
        ledger.reserve(**question(4))


def test_an_entry_of_another_program_stops_the_client(used):
    with Ledger.open(used) as ledger:
        other = sqlite3.connect(used)
        other.execute(
            f"INSERT INTO entries SELECT 10, {', '.join(COLUMNS[1:])}, previous, digest "
            "FROM entries WHERE sequence = 1"
        )
        other.commit()
        other.close()
        with pytest.raises(LedgerError, match="another program"):
            ledger.reserve(**question(4))
    opened_is_refused(used, "ledger entry 10")


def test_epsilon_at_a_senseless_delta_is_an_error(used):
    with Ledger.open(used) as ledger, pytest.raises(AccountingError, match="delta"):
        ledger.epsilon(0.0)
