"""Steps that take turns in one process, so that whatever else the machine does hits all alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Step = Callable[[], object]


def take_turns(steps: Mapping[str, Step], turns: int, rehearsals: int) -> dict[str, list[float]]:
    """Take every step in each turn.

    Args:
        steps: By name.
        turns: That are timed.
        rehearsals: Turns before those.

    Returns:
        For each name the seconds of each turn.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(-rehearsals, turns):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(above: Sequence[float], below: Sequence[float], digits: int = 2) -> float:
    """Median over turns of one step's seconds over another's, rounded to so many digits."""
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), digits)


def median_ms(seconds: Sequence[float]) -> float:
    """Median of seconds, in milliseconds."""
    return round(1e3 * statistics.median(seconds), 2)
