"""Show how far long work is: bars on a terminal, a line now and then in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

# Told what is being done, how much of it is done, how much there is, and the newest remark on it.
Show = Callable[[str, int, int, str], None]
_LINE_EVERY_S = 20.0


@contextmanager
def progress(
    console: Console, *, every_s: float = _LINE_EVERY_S, clock: Callable[[], float] = time.monotonic
) -> Iterator[Show]:
    """Show the progress of what runs inside.

    Args:
        console: Where to show it. Where it is no terminal, work that takes longer than `every_s`
            gets a line each time that has passed.
        every_s: Seconds between two lines in a log.
        clock: Tells seconds.

    Yields:
        What to call with the work's name, the parts done, all parts, and a remark or "". An empty
        remark leaves the last one standing.
    """
    if not console.is_terminal:
        yield _Lines(console, every_s, clock).show
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[remark]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int, remark: str = "") -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, remark="")
            bars.update(tasks[what], completed=done, total=total)
            if remark:
                bars.update(tasks[what], remark=remark)

        yield show


class _Lines:
    """Progress for a log file, in which a bar would be thousands of lines."""

    def __init__(self, console: Console, every_s: float, clock: Callable[[], float]) -> None:
        self.console, self.every_s, self.clock = console, every_s, clock
        self.shown_s = clock()
        self.remarks: dict[str, str] = {}

    def show(self, what: str, done: int, total: int, remark: str = "") -> None:
        self.remarks[what] = remark or self.remarks.get(what, "")
        now_s = self.clock()
        if now_s - self.shown_s < self.every_s:
            return
        self.shown_s = now_s
        said = f", {self.remarks[what]}" if self.remarks[what] else ""
        self.console.print(f"{what}: {done} of {total}{said}", soft_wrap=True)
