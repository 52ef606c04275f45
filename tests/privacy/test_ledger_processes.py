"""The ledger under real processes: killed, contending, many at once."""

import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from fundusgen.errors import LedgerError
from fundusgen.privacy.events import Event
from fundusgen.privacy.ledger import Ledger, Replay, Train, answer_for
from fundusgen.privacy.outbox import Outbox

PLAN = Event("subsampled_gaussian", 1.1, 0.05, 20)
DONE = Event("subsampled_gaussian", 1.1, 0.05, 12)
ASKED = {
    "study_hash": "5" * 64,
    "round_number": 1,
    "stage": "dpsgd",
    "request_id": "ab" * 16,
    "content_digest": "c" * 64,
}
PRELUDE = """
import sys, time
from fundusgen.privacy.events import Event
from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.outbox import Outbox
from pathlib import Path
PLAN = Event("subsampled_gaussian", 1.1, 0.05, 20)
DONE = Event("subsampled_gaussian", 1.1, 0.05, 12)
folder = Path(sys.argv[1])
def question(number, request_id):
    return dict(study_id="retina", study_hash="5" * 64, round_number=number, stage="dpsgd",
                request_id=request_id, content_digest="c" * 64, event=PLAN, delta=1e-5)
"""


@pytest.fixture
def folder():
    """A folder in memory where there is one: what survives a killed process needs no disk."""
    shared = Path("/dev/shm")  # noqa: S108
    folder = Path(tempfile.mkdtemp(dir=shared if shared.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


def started(code, folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(folder), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def killed_at(point, folder):
    """Run a client that stops at a point of its order of work, and kill it there."""
    client = started(
        """
        def here(point):
            if point == sys.argv[2]:
                print("here", flush=True)
                time.sleep(600)
        ledger = Ledger.open(folder / "ledger.db")
        event_id = ledger.reserve(**question(1, "ab" * 16))
        here("reserved")
        here("training")
        digest = Outbox(folder / "outbox").put("ab" * 16, b"noise of " + sys.argv[3].encode())
        here("kept")
        ledger.commit(event_id, DONE, digest)
        here("committed")
        ledger.release(event_id, digest)
        here("released")
        """,
        folder,
        point,
        point,
    )
    with client:
        assert client.stdout.readline() == "here\n"
        client.send_signal(signal.SIGKILL)
    assert client.returncode == -signal.SIGKILL


@pytest.mark.parametrize("point", ["reserved", "training", "kept"])
def test_a_client_killed_before_its_commit_is_counted_in_full_and_trains_again(folder, point):
    killed_at(point, folder)
    with Ledger.open(folder / "ledger.db", wait_s=0) as ledger:
        assert ledger.events() == (PLAN,)
        assert isinstance(answer_for(ledger, **ASKED), Train)
        event_id = ledger.reserve(**ASKED, study_id="retina", event=PLAN, delta=1e-5)
        digest = Outbox(folder / "outbox").put(ASKED["request_id"], b"noise of the second")
        ledger.commit(event_id, DONE, digest)
        assert ledger.events() == (PLAN, DONE)
        decision = answer_for(ledger, **ASKED)
        reply = Outbox(folder / "outbox").get(ASKED["request_id"], decision.row.payload_digest)
        assert reply == b"noise of the second"


@pytest.mark.parametrize("point", ["committed", "released"])
def test_a_client_killed_after_its_commit_answers_with_the_same_bytes(folder, point):
    killed_at(point, folder)
    with Ledger.open(folder / "ledger.db", wait_s=0) as ledger:
        assert ledger.events() == (DONE,)
        decision = answer_for(ledger, **ASKED)
        assert isinstance(decision, Replay)
        assert decision.row.state == point
        reply = Outbox(folder / "outbox").get(ASKED["request_id"], decision.row.payload_digest)
        assert reply == f"noise of {point}".encode()


def test_a_lost_write_ahead_log_is_found(folder):
    killed_at("released", folder)
    (folder / "ledger.db-wal").unlink()
    with pytest.raises(LedgerError, match=r"missing|lacks|no ledger|changed"):
        Ledger.open(folder / "ledger.db")


def test_a_second_client_waits_or_is_refused(folder):
    with Ledger.open(folder / "ledger.db") as ledger:
        event_id = ledger.reserve(**ASKED, study_id="retina", event=PLAN, delta=1e-5)
        refused = started(
            """
            from fundusgen.errors import LedgerError
            try:
                Ledger.open(folder / "ledger.db", wait_s=0.1)
            except LedgerError as error:
                print(error)
            """,
            folder,
        )
        assert "another client works with this site" in refused.communicate(timeout=60)[0]
        waiting = started(
            """
            print("ready", flush=True)
            with Ledger.open(folder / "ledger.db", wait_s=60) as ledger:
                print([row.state for row in ledger.rows()])
            """,
            folder,
        )
        assert waiting.stdout.readline() == "ready\n"
        ledger.commit(event_id, DONE, "d" * 64)
    assert waiting.communicate(timeout=60)[0] == "['committed']\n"


def test_a_thousand_cycles_of_three_clients_lose_nothing(folder):
    clients = [
        started(
            """
            client, cycles = int(sys.argv[2]), int(sys.argv[3])
            while cycles:
                with Ledger.open(folder / "ledger.db", wait_s=60) as ledger:
                    for _ in range(min(cycles, 25)):
                        number = 1000 * client + cycles
                        event_id = ledger.reserve(**question(number, f"{number:032x}"))
                        ledger.commit(event_id, DONE, f"{number:064x}")
                        cycles -= 1
            """,
            folder,
            str(client),
            str(cycles),
        )
        for client, cycles in ((1, 334), (2, 333), (3, 333))
    ]
    for client in clients:
        client.communicate(timeout=300)
        assert client.returncode == 0
    with Ledger.open(folder / "ledger.db") as ledger:
        rows = ledger.rows()
        assert len(rows) == 1000
        assert {row.round_number for row in rows} == {
            1000 * client + cycle
            for client, cycles in ((1, 334), (2, 333), (3, 333))
            for cycle in range(1, cycles + 1)
        }
        assert ledger.events() == (DONE,) * 1000
        assert ledger.verify() == ledger.verify()
