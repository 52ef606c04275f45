"""A client in a process of its own, which can be held at a point of its work, and killed there.

The processes are forked by a server that has imported torch once: a client starts within
milliseconds, and shares nothing with another but the site's folder.
"""

import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from unittest import mock

from asked_site import ask, asked_study, packed, receipt, request, word

from fundusgen.privacy import ledger, ledger_file
from fundusgen.privacy.dpsgd import PatientSGD
from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.outbox import Outbox
from fundusgen.site import SiteFolder
from fundusgen.training import answering

STUDY = asked_study()
LIMIT_S = 60
_CONTEXT = multiprocessing.get_context("forkserver")
# What torch imports when the first optimizer is made takes longer than a round.
_CONTEXT.set_forkserver_preload(["client.app", "torch._dynamo"])


class Point(NamedTuple):
    """Where a client can be held: before or after a call of a function, and which one."""

    owner: Any
    function: str
    when: str
    call: int = 1
    of: Callable[..., bool] = lambda *_: True


# In the order of a client's work. The head of the ledger is noted after each of its entries.
POINTS = {
    "patients read": Point(answering, "load_patients", "after"),
    "reserved, but not noted": Point(ledger_file, "write_head", "before", 1),
    "reserved": Point(Ledger, "reserve", "after"),
    "between two steps": Point(PatientSGD, "step", "after"),
    "trained": Point(answering, "train_round", "after"),
    "half kept": Point(Path, "replace", "before", of=lambda path, *_: path.parent.name == "outbox"),
    "kept": Point(Outbox, "put", "after"),
    "committed, but not noted": Point(ledger_file, "write_head", "before", 2),
    "committed": Point(Ledger, "commit", "after"),
    "released, but not noted": Point(ledger_file, "write_head", "before", 3),
    "released": Point(Ledger, "release", "after"),
}
SENT = "sent"


@dataclass(frozen=True)
class Orders:
    """What a client does: answer one round.

    Attributes:
        site: Its folder.
        round_number: The round that it is asked for.
        hold: The point where it waits to go on, or to be killed.
        clock_s: How many seconds its clock is ahead.
        wait_s: How long it waits for the ledger; as usual where None.
    """

    site: Path
    round_number: int = 2
    hold: str = ""
    clock_s: float = 0.0
    wait_s: float | None = None


class Reply(NamedTuple):
    """What a client has sent: all bytes, the word of a refusal, the receipt of an answer."""

    sent: bytes
    word: str
    receipt: str


@dataclass
class Client:
    """The process of a client, as its context; it is killed at the end, if it still lives.

    Attributes:
        orders: What it does.
        log: Takes what it prints.
        steps: Steps of training that it has taken, as far as it was listened to.
    """

    orders: Orders
    log: Path
    steps: int = 0
    _pipe: Connection = field(init=False)
    _process: Any = field(init=False)

    def __enter__(self) -> Self:
        """Start it; it begins when it is told to."""
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=work, args=(self.orders, self.log, theirs))
        self._process.start()
        theirs.close()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave no process behind."""
        self.kill()
        self._pipe.close()

    def go(self) -> Self:
        """Let it begin, or go on from where it is held."""
        self._pipe.send("go")
        return self

    def held(self) -> Self:
        """Wait until it is at the point where it is held."""
        assert self._next() == "here"
        return self

    def reply(self) -> Reply:
        """Wait for what it sends."""
        reply = self._next()
        assert isinstance(reply, Reply), reply
        return reply

    def kill(self) -> int:
        """End it as `kill -9` does; return its exit status."""
        self._process.kill()
        self._process.join()
        while self._pipe.poll():
            try:
                self.steps += self._pipe.recv() == "step"
            except EOFError:
                break
        return int(self._process.exitcode)

    def _next(self) -> object:
        """What it says next, steps aside; EOFError if it has ended."""
        while True:
            assert self._pipe.poll(LIMIT_S), f"nothing came from the client: {self.log.read_text()}"
            try:
                said: object = self._pipe.recv()
            except EOFError:
                raise AssertionError(f"the client has ended: {self.log.read_text()}") from None
            if said != "step":
                return said
            self.steps += 1


def work(orders: Orders, log: Path, pipe: Connection) -> None:
    """Be a client."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with ExitStack() as stack:
        _set_clock(stack, orders.clock_s)
        if orders.wait_s is not None:
            hurried = partial(Ledger.open, wait_s=orders.wait_s)
            stack.enter_context(mock.patch.object(Ledger, "open", hurried))
        told = Point(PatientSGD, "step", "after", call=0)
        stack.enter_context(_watched(told, lambda: pipe.send("step")))
        if orders.hold in POINTS:
            stack.enter_context(_watched(POINTS[orders.hold], lambda: _wait(pipe)))
        pipe.recv()
        content = ask(SiteFolder(orders.site), request(STUDY, orders.round_number)).content
        pipe.send(Reply(packed(content), word(content), receipt(content)))
        if orders.hold == SENT:
            _wait(pipe)


def _watched(point: Point, then: Callable[[], object]) -> Any:
    """Do something at one call of a function, or at each where the point's call is 0."""
    function, calls = getattr(point.owner, point.function), 0

    def watched(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        counts = point.of(*arguments)
        calls += counts
        now = counts and point.call in (0, calls)
        if now and point.when == "before":
            then()
        result = function(*arguments, **more)
        if now and point.when == "after":
            then()
        return result

    return mock.patch.object(point.owner, point.function, watched)


def _wait(pipe: Connection) -> None:
    pipe.send("here")
    pipe.recv()


def _set_clock(stack: ExitStack, ahead_s: float) -> None:
    real_s, real_ns = time.time, time.time_ns

    class Shifted:
        @staticmethod
        def now(zone: tzinfo) -> datetime:
            return datetime.now(zone) + timedelta(seconds=ahead_s)

    def shifted_s() -> float:
        return real_s() + ahead_s

    def shifted_ns() -> int:
        return real_ns() + int(ahead_s * 1e9)

    stack.enter_context(mock.patch.object(ledger, "datetime", Shifted))
    stack.enter_context(mock.patch.object(time, "time", shifted_s))
    stack.enter_context(mock.patch.object(time, "time_ns", shifted_ns))
