"""A map over processes that keeps the order, for drawing many phantoms."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeAlias

OrderedMap: TypeAlias = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@contextmanager
def ordered_map(workers: int) -> Iterator[OrderedMap]:
    """Give a `map` that runs in this process or in several others.

    Args:
        workers: Number of processes; with 1 nothing is started.

    Yields:
        A function like the built-in `map`. What is still waiting when the block is left through
        an exception is not started any more.
    """
    if workers == 1:
        yield map
        return
    # Spawned, not forked: a caller may hold threads of torch or of a server.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)
