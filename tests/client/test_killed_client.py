"""Clients as real processes: killed, at once, with a wrong clock, without room on a disk."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from asked_site import ask, asked_site, packed, request
from client_process import SENT, STUDY, Client, Orders, Reply

from fundusgen.federation.exchange import Refusal
from fundusgen.federation.messages import reply_to_record
from fundusgen.federation.payload import from_payload
from fundusgen.privacy.accounting import epsilon
from fundusgen.privacy.ledger import Ledger, LedgerRow
from fundusgen.privacy.outbox import Outbox
from fundusgen.privacy.policy import RefusalReason
from fundusgen.privacy.receipts import Receipt, require_epsilon, require_follows
from fundusgen.site import SiteFolder

DELTA = 1e-5
STEPS = STUDY.stages.dpsgd.steps_per_round
DAY_S = 24 * 3600.0
# All that a site says whose disk does not take what has to be written.
OUT_OF_ORDER = {"ledger-unusable", "site-misconfigured", "failed"}
PAGE_BYTES = 4096
Start = Callable[..., Client]


@pytest.fixture(scope="module")
def used_site(tmp_path_factory: pytest.TempPathFactory) -> SiteFolder:
    """A site that has answered round 1: its noise is found and its images are framed."""
    site = asked_site(tmp_path_factory.mktemp("used") / "site", 12, STUDY)
    assert set(ask(site, request(STUDY, 1)).content) == {"arrays", "receipt"}
    return site


@pytest.fixture
def site(used_site: SiteFolder, tmp_path: Path) -> SiteFolder:
    return copy_of(used_site, tmp_path / "site")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts clients, which are gone when the test ends."""
    clients: list[Client] = []

    def start(site: SiteFolder, **orders: object) -> Client:
        log = tmp_path / f"client-{len(clients)}.log"
        client = Client(Orders(site.path, **orders), log)  # type: ignore[arg-type]
        clients.append(client.__enter__())
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


def copy_of(site: SiteFolder, folder: Path) -> SiteFolder:
    return SiteFolder(shutil.copytree(site.path, folder, dirs_exist_ok=True))


def rows(site: SiteFolder) -> tuple[LedgerRow, ...]:
    """The ledger's events, after opening it as a client does, which verifies it."""
    with Ledger.open(site.ledger_file, wait_s=0) as ledger:
        return ledger.rows()


def states(site: SiteFolder) -> list[str]:
    """What became of the reservations after round 1's."""
    return [row.state for row in rows(site)[1:]]


def require_counted(site: SiteFolder, steps: int) -> None:
    """Hold what the ledger counts against the steps that were taken after round 1."""
    with Ledger.open(site.ledger_file, wait_s=0) as ledger:
        plan, counted = ledger.rows()[0].planned, ledger.epsilon(DELTA)
    taken = [plan, replace(plan, steps=steps)]
    assert epsilon(taken, DELTA) <= counted <= epsilon([*taken, plan], DELTA)


def stored(site: SiteFolder) -> bytes:
    """What goes out as the one answer to round 2, by the ledger and the outbox."""
    (row,) = [row for row in rows(site)[1:] if row.answered]
    payload = Outbox(site.outbox).get(row.request_id, row.payload_digest)
    assert payload is not None
    return packed(reply_to_record(from_payload(payload)))


@pytest.mark.parametrize(
    ("point", "state", "steps"),
    [
        ("reserved, but not noted", "reserved", 0),
        ("reserved", "reserved", 0),
        ("between two steps", "reserved", 1),
        ("trained", "reserved", STEPS),
        ("half kept", "reserved", STEPS),
        ("kept", "reserved", STEPS),
        ("committed, but not noted", "committed", STEPS),
        ("committed", "committed", STEPS),
        ("released, but not noted", "released", STEPS),
        ("released", "released", STEPS),
        (SENT, "released", STEPS),
    ],
)
def test_a_killed_client_is_counted_and_its_round_has_one_answer(
    site: SiteFolder, start: Start, point: str, state: str, steps: int
) -> None:
    killed = start(site, hold=point).go()
    before = killed.reply() if point == SENT else None
    assert killed.held().kill() == -signal.SIGKILL
    assert killed.steps == steps
    assert states(site) == [state]
    require_counted(site, steps)

    repeated, again = start(site).go(), start(site).go()
    first, second = repeated.reply(), again.reply()
    assert first.word == ""
    assert first == second
    assert first.sent == stored(site)
    assert before in (None, first)
    trained_anew = state == "reserved"
    assert repeated.steps + again.steps == (STEPS if trained_anew else 0)
    assert states(site) == ["reserved", "released"] if trained_anew else ["released"]
    require_counted(site, steps + repeated.steps + again.steps)


def test_a_reply_that_went_out_is_the_same_bytes_in_another_program(
    site: SiteFolder, start: Start
) -> None:
    """Not forked, and with hashes of its own: no order may come from a hash table."""
    first = start(site).go().reply()
    program = (
        "import sys; from pathlib import Path; from asked_site import *;"
        "content = ask(SiteFolder(Path(sys.argv[1])), request(asked_study(), 2)).content;"
        "sys.stdout.buffer.write(packed(content))"
    )
    again = subprocess.run(
        [sys.executable, "-c", program, str(site.path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTHONHASHSEED": "4711"},
        capture_output=True,
        timeout=60,
    )
    assert again.stdout == first.sent, again.stderr.decode()
    assert states(site) == ["released"]


def test_of_two_clients_asked_at_once_one_trains_and_both_say_the_same(
    site: SiteFolder, start: Start
) -> None:
    clients = [start(site, wait_s=60.0), start(site, wait_s=60.0)]
    for client in clients:
        client.go()
    replies = [client.reply() for client in clients]
    assert sorted(client.steps for client in clients) == [0, STEPS]
    assert replies[0] == replies[1]
    assert replies[0].sent == stored(site)
    assert states(site) == ["released"]


def test_a_client_that_waits_in_vain_for_another_says_one_word_and_trains_nothing(
    site: SiteFolder, start: Start
) -> None:
    first = start(site, hold="between two steps").go().held()
    second = start(site, wait_s=0.1).go()
    assert second.reply().word == "ledger-unusable"
    assert second.steps == 0
    assert first.go().reply() == start(site).go().reply()
    assert first.steps == STEPS
    assert states(site) == ["released"]


def test_a_clock_that_was_set_back_changes_nothing_but_the_times(
    site: SiteFolder, start: Start, tmp_path: Path
) -> None:
    other = copy_of(site, tmp_path / "other")
    receipts: dict[SiteFolder, list[Receipt]] = {site: [], other: []}
    for asked, ahead_s in ((site, -DAY_S), (other, 0.0)):
        for number, clock_s in ((2, ahead_s), (3, 0.0), (4, ahead_s), (2, -ahead_s)):
            reply = start(asked, round_number=number, clock_s=clock_s).go().reply()
            receipts[asked].append(Receipt.from_json(reply.receipt))
    with Ledger.open(site.ledger_file) as one, Ledger.open(other.ledger_file) as same:
        assert one.events() == same.events()
        assert one.epsilon(DELTA) == same.epsilon(DELTA)
        times = [row.reserved_at for row in one.rows()]
    assert times[1] < times[0] < times[2]
    assert times[3] < times[2]
    second, third, fourth, second_again = receipts[site]
    assert second_again == second
    for last, receipt in ((second, third), (third, fourth)):
        require_epsilon(receipt)
        require_follows(receipt, last)
        assert receipt.previous == last.digest
    assert [said(receipt) for receipt in receipts[site]] == [
        said(receipt) for receipt in receipts[other]
    ]


def said(receipt: Receipt) -> Receipt:
    """A receipt without what is computed from the noised output."""
    return replace(receipt, payload_digest="", previous="", signature="")


class Disk:
    """A small disk of its own, which can be filled and made read-only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fail(self, how: str) -> None:
        if how == "read-only":
            self._mount("remount,ro")
            return
        file = os.open(self.folder / "filler", os.O_WRONLY | os.O_CREAT)
        with contextlib.suppress(OSError):
            while True:
                os.write(file, bytes(PAGE_BYTES))
        os.close(file)
        assert shutil.disk_usage(self.folder).free == 0

    def recover(self) -> None:
        self._mount("remount,rw")
        (self.folder / "filler").unlink(missing_ok=True)

    def _mount(self, options: str) -> None:
        subprocess.run(["mount", "-o", options, str(self.folder)], check=True)


@pytest.fixture
def disk_at() -> Iterator[Callable[[Path], Disk]]:
    """Puts a disk in the place of a folder, with the files of that folder."""
    folders: list[Path] = []

    def disk_at(folder: Path) -> Disk:
        if os.geteuid() != 0:
            pytest.skip("a disk of its own can be mounted by root only")
        moved = folder.rename(folder.with_name("moved"))
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
        done = subprocess.run(mount, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"no disk can be mounted here: {done.stderr}")
        folders.append(folder)
        shutil.copytree(moved, folder, dirs_exist_ok=True)
        return Disk(folder)

    yield disk_at
    for folder in folders:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def require_refused(client: Client, reply: Reply) -> None:
    """Make sure that a client said one word, and said why to nobody but its operator."""
    assert reply.word in OUT_OF_ORDER
    assert reply.sent == packed(reply_to_record(Refusal(RefusalReason(reply.word))))
    assert client.log.read_text() == ""


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_site_on_a_disk_that_cannot_be_written_trains_nothing_until_it_can(
    site: SiteFolder, start: Start, disk_at: Callable[[Path], Disk], how: str
) -> None:
    disk = disk_at(site.path)
    disk.fail(how)
    for _ in range(2):
        client = start(site).go()
        require_refused(client, client.reply())
        assert client.steps == 0
    disk.recover()
    assert states(site) == []
    client = start(site).go()
    assert client.reply().sent == stored(site)
    require_counted(site, STEPS)


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_what_an_outbox_cannot_take_is_counted_and_does_not_leave(
    site: SiteFolder, start: Start, disk_at: Callable[[Path], Disk], how: str
) -> None:
    disk = disk_at(site.outbox)
    disk.fail(how)
    failing = start(site).go()
    require_refused(failing, failing.reply())
    require_counted(site, failing.steps)
    assert [path.name for path in site.outbox.glob("*.*")] == [
        f"{rows(site)[0].request_id}.{rows(site)[0].payload_digest}"
    ]
    disk.recover()
    client = start(site).go()
    assert client.reply().sent == stored(site)
    require_counted(site, failing.steps + client.steps)


@pytest.mark.parametrize(
    ("point", "state"),
    [
        ("reserved", "reserved"),
        ("trained", "reserved"),
        ("kept", "reserved"),
        ("committed", "committed"),
    ],
)
def test_a_disk_that_is_full_in_the_middle_of_an_answer_lets_nothing_out(
    site: SiteFolder,
    start: Start,
    disk_at: Callable[[Path], Disk],
    point: str,
    state: str,
) -> None:
    disk = disk_at(site.path)
    failing = start(site, hold=point).go().held()
    disk.fail("full")
    require_refused(failing, failing.go().reply())
    disk.recover()
    assert states(site) == [state]
    require_counted(site, failing.steps)
    client = start(site).go()
    assert client.reply().sent == stored(site)
    assert client.steps == (STEPS if state == "reserved" else 0)
    require_counted(site, failing.steps + client.steps)


def test_a_log_that_is_full_tells_nobody_how_many_patients_there_are(
    site: SiteFolder, start: Start, disk_at: Callable[[Path], Disk]
) -> None:
    """What cannot be logged must not be printed: simulations upload what clients print."""
    disk = disk_at(site.path)
    client = start(site, hold="patients read").go().held()
    with site.log_file.open("ab") as log:
        log.write(b"." * (-site.log_file.stat().st_size % PAGE_BYTES))
    disk.fail("full")
    reply = client.go().reply()
    disk.recover()
    assert states(site) == []
    require_refused(client, reply)
