"""Long work says how far it is: bars for a person, a line now and then for a log file."""

import io

from rich.console import Console

from fundusgen.cli.progress import progress


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def in_a_log(seconds_a_step: float, steps: int) -> list[str]:
    clock, file = Clock(), io.StringIO()
    with progress(Console(file=file, width=60), every_s=20, clock=clock) as show:
        for step in range(1, steps + 1):
            clock.now_s += seconds_a_step
            show("prior", step, steps, "distance 0.25" if step == 1 else "")
    return file.getvalue().splitlines()


def test_a_log_gets_a_line_each_time_that_the_seconds_have_passed() -> None:
    assert in_a_log(1, 50) == ["prior: 20 of 50, distance 0.25", "prior: 40 of 50, distance 0.25"]


def test_short_work_leaves_no_line_in_a_log() -> None:
    assert in_a_log(1, 19) == []


def test_the_line_of_a_second_kind_of_work_has_not_the_remark_of_the_first() -> None:
    clock, file = Clock(), io.StringIO()
    with progress(Console(file=file), every_s=1, clock=clock) as show:
        show("prior", 1, 9, "distance 0.25")
        clock.now_s = 5
        show("vote space", 1, 9, "")
    assert file.getvalue() == "vote space: 1 of 9\n"


def test_a_terminal_gets_a_bar_for_each_kind_of_work() -> None:
    file = io.StringIO()
    with progress(Console(file=file, force_terminal=True, width=100)) as show:
        show("drawing", 1, 2, "")
        show("training", 3, 4, "distance 0.25")
    assert "drawing" in file.getvalue()
    assert "3/4 distance 0.25" in file.getvalue().replace("\x1b[0m", "").replace("\x1b[32m", "")
