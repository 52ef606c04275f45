"""How fast phantoms are drawn: from a seed to 8-bit pixels, on one core.

Run as `python -m simulations.benchmarks.phantom`. Time is the processor's, so that a busy machine
does not change the figures; drawing uses one thread.
"""

import time
from collections.abc import Callable
from typing import Any

from fundusgen.phantom.camera import CAMERA_STYLES
from fundusgen.phantom.lesions import PHANTOM_CONDITIONS
from fundusgen.phantom.population import collection_phantom
from fundusgen.phantom.render import render
from fundusgen.phantom.variation import Lineage, phantom_of

MIN_SECONDS = 1.5
# How far a variation goes; the further, the more vessel trees are drawn anew.
_STRENGTH = 0.2


def run() -> list[dict[str, Any]]:
    """Measure phantoms.

    Returns:
        One dictionary a figure: `name`, `value`, `unit`, `target` (None without one) and `met`
        (None without a target).
    """
    return [
        _row("phantoms of all conditions at 64 px, one core", _rate(_drawn(64)), 200.0),
        _row("phantoms of all conditions at 128 px, one core", _rate(_drawn(128)), 50.0),
        _row("phantoms of all conditions at 256 px, one core", _rate(_drawn(256))),
        _row("parameters of phantoms alone, one core", _rate(_drawn(None))),
        _row("first variations of phantoms at 64 px, one core", _rate(_varied(1)), 150.0),
        _row("fifth variations of phantoms at 64 px, one core", _rate(_varied(5))),
    ]


def _rate(draw: Callable[[int], None]) -> float:
    """Images a second of processor time, parameters included."""
    for number in range(len(PHANTOM_CONDITIONS)):
        draw(number)
    done, start = 0, time.process_time()
    while (spent := time.process_time() - start) < MIN_SECONDS:
        draw(done)
        done += 1
    return done / spent


def _drawn(size_px: int | None) -> Callable[[int], None]:
    def draw(number: int) -> None:
        phantom = collection_phantom(number, 1, PHANTOM_CONDITIONS)
        if size_px is not None:
            render(phantom, size_px)

    return draw


def _varied(generations: int) -> Callable[[int], None]:
    def draw(number: int) -> None:
        condition = PHANTOM_CONDITIONS[number % len(PHANTOM_CONDITIONS)]
        style = list(CAMERA_STYLES)[number % len(CAMERA_STYLES)]
        lineage = Lineage(1, number, condition, style, tuple(range(generations)))
        render(phantom_of(lineage, _STRENGTH), 64)

    return draw


def _row(name: str, value: float, target: float | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(value, 1),
        "unit": "images/s",
        "target": target,
        "met": None if target is None else value >= target,
    }


if __name__ == "__main__":
    for result in run():
        print(result)
