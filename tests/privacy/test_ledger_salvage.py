"""Whatever happened to a ledger, what can be read is read, and nothing is counted too low."""

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fundusgen.errors import LedgerError
from fundusgen.privacy import ledger_file
from fundusgen.privacy.events import Event, merged
from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.ledger_rows import COLUMNS
from fundusgen.privacy.ledger_salvage import Salvage, lost_ledger, salvage
from fundusgen.privacy.receipts import covers

PLAN = Event("subsampled_gaussian", 1.1, 0.05, 20)
DONE = Event("subsampled_gaussian", 1.1, 0.05, 12)
VOTES = Event("gaussian", 8.0, 1.0, 1)
REPLY, RECEIPT = "ab" * 32, "cd" * 32
ROUNDS = 4


def question(number: int, event: Event = PLAN) -> dict[str, object]:
    return {
        "study_id": "retina",
        "study_hash": "5" * 64,
        "round_number": number,
        "stage": "dpsgd",
        "request_id": f"{number:032x}",
        "content_digest": f"{number:064x}",
        "event": event,
        "delta": 1e-5,
    }


def write_ledger(path: Path) -> None:
    """Sixteen entries: a policy, four answered rounds, one given up, one reserved, a refusal."""
    with Ledger.open(path) as ledger:
        ledger.remark("policy", {"max_epsilon": 8.0})
        for number in range(1, ROUNDS + 1):
            event_id = ledger.reserve(**question(number, VOTES if number == 1 else PLAN))
            ledger.commit(event_id, VOTES if number == 1 else DONE, REPLY, receipt_digest=RECEIPT)
            ledger.release(event_id, REPLY)
        ledger.reserve(**question(ROUNDS + 1))
        ledger.reserve(**question(ROUNDS + 1))
        ledger.remark("refused", {"reason": "budget-exhausted"})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("whole") / "ledger.db"
    write_ledger(path)
    return path


@pytest.fixture
def ledger(whole: Path, tmp_path: Path) -> Path:
    return copied(whole, tmp_path)


def copied(whole: Path, folder: Path) -> Path:
    for path in whole.parent.iterdir():
        shutil.copy(path, folder / path.name)
    return folder / whole.name


def edit(path: Path, *statements: str) -> None:
    """Edit a ledger as somebody who knows of the triggers would, and puts them back."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for trigger in ("entries_stay", "entries_keep"):
            connection.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            connection.execute(statement)
        for trigger in ("entries_stay", "entries_keep"):
            connection.execute(ledger_file.SCHEMA[trigger])


def codes(found: Salvage) -> list[tuple[str, int | None]]:
    return [(flaw.code, flaw.entry) for flaw in found.flaws]


def rewrite(path: Path, first: int, last: int, change: str) -> None:
    """Change an entry and make digests and links anew from it up to another one."""
    edit(path, f"UPDATE entries SET {change} WHERE sequence = {first}")
    with closing(sqlite3.connect(path)) as connection:
        entries = ledger_file.read_entries(connection)
    statements, link = [], entries[first - 1][1]
    for entry, _, _ in entries[first - 1 : last]:
        digest = entry.digest(link)
        statements.append(
            f"UPDATE entries SET previous = '{link}', digest = '{digest}' "
            f"WHERE sequence = {entry.sequence}"
        )
        link = digest
    edit(path, *statements)


def test_an_intact_ledger_has_no_flaw_and_adds_up_as_the_ledger_says(ledger: Path) -> None:
    found = salvage(ledger)
    assert found.flaws == ()
    with Ledger.read(ledger) as opened:
        assert found.rows == opened.rows()
        assert found.remarks == opened.remarks()
        assert found.events == opened.events()
        assert found.last_digest == opened.verify()
    assert all(item.intact and item.original == item.entry for item in found.entries)


def test_reading_writes_nothing_beside_the_ledger(ledger: Path) -> None:
    before = {path.name: path.read_bytes() for path in ledger.parent.iterdir()}
    salvage(ledger)
    assert {path.name: path.read_bytes() for path in ledger.parent.iterdir()} == before


def test_a_ledger_that_a_client_holds_is_read_with_its_log(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.open(path) as held:
        held.reserve(**question(1))
        assert path.with_name("ledger.db-wal").stat().st_size
        found = salvage(path)
        assert found.flaws == ()
        assert found.events == (PLAN,)


def test_a_copy_without_its_head_has_that_one_flaw(ledger: Path) -> None:
    ledger_file.head_file(ledger).unlink()
    assert codes(salvage(ledger)) == [("head-missing", None)]


def test_a_changed_value_is_named_with_what_its_digest_still_proves(ledger: Path) -> None:
    edit(ledger, "UPDATE entries SET noise_multiplier = 9.0 WHERE sequence = 6")
    found = salvage(ledger)
    (flaw,) = found.flaws
    assert (flaw.code, flaw.entry) == ("entry-changed", 6)
    assert "noise_multiplier 9.0" in flaw.found
    assert "noise_multiplier 1.1" in flaw.expected
    assert merged(found.events) == merged(salvage_of_whole_events())


def salvage_of_whole_events() -> list[Event]:
    return [VOTES, DONE, DONE, DONE, PLAN, PLAN]


def test_a_value_changed_in_all_entries_of_an_event_counts_at_the_dearest(ledger: Path) -> None:
    edit(ledger, "UPDATE entries SET noise_multiplier = 9.0, steps = 1 WHERE event_id = 5")
    found = salvage(ledger)
    assert {code for code, _ in codes(found)} == {"entry-changed"}
    assert [number for _, number in codes(found)] == [5, 6, 7]
    assert all(item.original is None for item in found.entries[4:7])


def test_an_entry_replaced_with_its_digest_is_known_by_the_next_one(ledger: Path) -> None:
    rewrite(ledger, 6, 6, "noise_multiplier = 9.0")
    found = salvage(ledger)
    assert codes(found) == [("entry-changed", 6)]
    assert "noise_multiplier 1.1" in found.flaws[0].expected


def test_a_chain_made_anew_to_its_end_is_known_by_the_head(ledger: Path) -> None:
    rewrite(ledger, 6, 16, "noise_multiplier = 9.0")
    assert ("head-differs", 16) in codes(salvage(ledger))


def test_an_overwritten_digest_is_told_from_a_changed_value(ledger: Path) -> None:
    edit(ledger, f"UPDATE entries SET digest = '{'0' * 64}' WHERE sequence = 6")
    (flaw,) = salvage(ledger).flaws
    assert (flaw.code, flaw.entry) == ("entry-changed", 6)
    assert "digest" in flaw.found


@pytest.mark.parametrize("number", [5, 6, 7])
def test_a_deleted_entry_is_missed_and_its_event_still_counts(ledger: Path, number: int) -> None:
    edit(ledger, f"DELETE FROM entries WHERE sequence = {number}")
    found = salvage(ledger)
    assert ("entries-missing", number) in codes(found)
    assert len(found.rows) == 6
    # Without the commit nobody knows that less was done than planned.
    assert covers(merged(found.events), salvage_of_whole_events())


def test_entries_deleted_at_the_end_are_known_by_the_head(ledger: Path) -> None:
    edit(ledger, "DELETE FROM entries WHERE sequence > 13")
    (flaw,) = salvage(ledger).flaws
    assert (flaw.code, flaw.entry, flaw.entries) == ("entries-lost", 14, 3)


def test_a_torn_page_leaves_what_lies_around_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.open(path) as opened:
        for number in range(1, 60):
            opened.reserve(**question(number))
    with path.open("r+b") as file:
        file.seek(8 * 4096)
        file.write(os.urandom(4096))
    found = salvage(path)
    assert "database-damaged" in {code for code, _ in codes(found)}
    assert 20 < len(found.entries) < 59
    assert len(found.events) == len(found.entries)


def test_a_file_that_is_no_database_has_flaws_and_no_entries(ledger: Path) -> None:
    ledger.write_bytes(os.urandom(9000))
    found = salvage(ledger)
    assert ("database-damaged", None) in codes(found)
    assert ("entries-lost", 1) in codes(found)
    assert found.entries == ()


def test_a_lost_ledger_is_known_by_its_head(ledger: Path) -> None:
    ledger.unlink()
    with pytest.raises(LedgerError, match="no ledger"):
        salvage(ledger)
    assert lost_ledger(ledger).flaws[0].entries == 16


def test_another_identity_is_a_broken_link(ledger: Path) -> None:
    edit(ledger, f"UPDATE identity SET ledger_id = '{'f' * 64}'")
    assert codes(salvage(ledger)) == [("link-broken", 1)]


def test_a_dropped_trigger_is_a_flaw(ledger: Path) -> None:
    with closing(sqlite3.connect(ledger)) as connection:
        connection.execute("DROP TRIGGER entries_stay")
    (flaw,) = salvage(ledger).flaws
    assert flaw.code == "tables-changed"
    assert "entries_stay" in flaw.found


STATEMENTS = st.one_of(
    st.builds(
        "UPDATE entries SET {0} = {1} WHERE sequence = {2}".format,
        st.sampled_from((*COLUMNS, "previous", "digest")),
        st.sampled_from(["1", "2", "7", "0.5", "1.1", "'x'", "'reserved'", "'committed'", "''"]),
        st.integers(1, 16),
    ),
    st.builds("DELETE FROM entries WHERE sequence = {0}".format, st.integers(1, 16)),
    st.builds("DELETE FROM entries WHERE sequence > {0}".format, st.integers(0, 16)),
    st.builds(
        "UPDATE entries SET sequence = -sequence WHERE sequence = {0}".format, st.integers(1, 16)
    ),
)


@settings(max_examples=150, deadline=None)
@given(statements=st.lists(STATEMENTS, min_size=1, max_size=3))
def test_there_are_flaws_exactly_where_the_ledger_does_not_open(
    whole: Path, statements: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = copied(whole, Path(folder))
        try:
            edit(path, *statements)
        except sqlite3.Error:
            # A value that the table does not take: nothing to find, but the triggers are gone.
            assert salvage(path).flaws
            return
        found = salvage(path)
        try:
            with Ledger.open(path) as opened:
                assert not found.flaws, found.flaws
                assert found.rows == opened.rows()
        except LedgerError:
            assert found.flaws
        # Whatever was deleted or changed in one place, what is said elsewhere counts.
        left = {item.entry.event_id for item in found.entries if item.entry is not None}
        assert {row.event_id for row in found.rows} <= left
