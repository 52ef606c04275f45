"""How fast phantoms are drawn: from a seed to 8-bit pixels, on one core.

Run as `python -m simulations.benchmarks.phantom`. Time is the processor's, so that a busy machine
does not change the figures; drawing uses one thread.
"""

import time
from typing import Any

from fundusgen.phantom.lesions import PHANTOM_CONDITIONS
from fundusgen.phantom.population import collection_phantom
from fundusgen.phantom.render import render

MIN_SECONDS = 1.5


def run() -> list[dict[str, Any]]:
    """Measure phantoms.

    Returns:
        One dictionary a figure: `name`, `value`, `unit`, `target` (None without one) and `met`
        (None without a target).
    """
    return [
        _row("phantoms of all conditions at 64 px, one core", _rate(64), 50.0),
        _row("phantoms of all conditions at 128 px, one core", _rate(128)),
        _row("phantoms of all conditions at 256 px, one core", _rate(256)),
        _row("parameters of phantoms alone, one core", _rate(None)),
    ]


def _rate(size_px: int | None) -> float:
    """Images a second of processor time, parameters included."""
    for number in range(len(PHANTOM_CONDITIONS)):
        _draw(number, size_px)
    done, start = 0, time.process_time()
    while (spent := time.process_time() - start) < MIN_SECONDS:
        _draw(done, size_px)
        done += 1
    return done / spent


def _draw(number: int, size_px: int | None) -> None:
    phantom = collection_phantom(number, 1, PHANTOM_CONDITIONS)
    if size_px is not None:
        render(phantom, size_px)


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
