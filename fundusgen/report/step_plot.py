"""A step plot as SVG: a total that grows event by event, below a cap that may change."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise

# Okabe and Ito 2008: told apart with any colour vision, and in order of contrast on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_WIDTH, _HEIGHT = 880, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 18, 44
_TICKS = 6


@dataclass(frozen=True, kw_only=True)
class Step:
    """One event.

    Attributes:
        value: The total after it.
        cap: The cap at that time; None where none is known.
        colour: Index into `COLOURS`.
        label: What is told of it where the pointer rests.
        tick: A short text for the axis, such as a date.
    """

    value: float
    cap: float | None
    colour: int
    label: str
    tick: str


def step_plot(steps: Sequence[Step], *, title: str, y_label: str) -> str:
    """Draw the plot; it scales to the width that it is given.

    Args:
        steps: At least one, in order.
        title: For those who cannot see it.
        y_label: Stands above the axis.
    """
    top = 1.08 * max(
        max(step.value for step in steps), max((step.cap or 0.0 for step in steps), default=0.0)
    )
    top = top or 1.0
    width = (_WIDTH - _LEFT - _RIGHT) / len(steps)

    def x(place: float) -> float:
        return _LEFT + place * width

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}" '
        'class="plot" xmlns="http://www.w3.org/2000/svg">'
    ]
    for value in _grid(top):
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
            'stroke="#e3e3e3"/>'
            f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    for place, step in enumerate(steps):
        before = steps[place - 1].value if place else 0.0
        colour = COLOURS[step.colour % len(COLOURS)]
        parts.append(
            f"<g><title>{escape(step.label)}</title>"
            f'<rect x="{x(place):.1f}" y="{y(step.value):.1f}" width="{width:.2f}" '
            f'height="{y(0) - y(step.value):.1f}" fill="{colour}" fill-opacity="0.18"/>'
            f'<path d="M{x(place):.1f} {y(before):.1f}V{y(step.value):.1f}H{x(place + 1):.1f}" '
            f'stroke="{colour}" stroke-width="2.5" fill="none"/></g>'
        )
    parts += _caps(steps, x, y)
    for place in _tick_places(steps):
        parts.append(
            f'<text x="{x(place + 0.5):.1f}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle">'
            f"{escape(steps[place].tick)}</text>"
        )
    parts.append(
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(0):.1f}" y2="{y(0):.1f}" '
        'stroke="#666"/>'
        f'<text x="{_LEFT}" y="{_TOP - 6}">{escape(y_label)}</text>'
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">events, in order</text>'
        "</svg>"
    )
    return "".join(parts)


def _caps(
    steps: Sequence[Step], x: Callable[[float], float], y: Callable[[float], float]
) -> list[str]:
    """Dashed lines at the caps, with the number where one begins."""
    drawn: list[str] = []
    place = 0
    runs: list[tuple[float | None, int, int]] = []
    for cap, run in groupby(steps, key=lambda step: step.cap):
        length = len(list(run))
        runs.append((cap, place, place + length))
        place += length
    for cap, start, end in runs:
        if cap is None:
            continue
        drawn.append(
            f'<line x1="{x(start):.1f}" x2="{x(end):.1f}" y1="{y(cap):.1f}" y2="{y(cap):.1f}" '
            'stroke="#B00020" stroke-width="1.5" stroke-dasharray="6 4"/>'
            f'<text x="{x(start) + 4:.1f}" y="{y(cap) - 5:.1f}" fill="#B00020">cap {cap:g}</text>'
        )
    for (before, _, end), (after, _, _) in pairwise(runs):
        if before is not None and after is not None:
            drawn.append(
                f'<line x1="{x(end):.1f}" x2="{x(end):.1f}" y1="{y(before):.1f}" '
                f'y2="{y(after):.1f}" stroke="#B00020" stroke-width="1.5" '
                'stroke-dasharray="6 4"/>'
            )
    return drawn


def _grid(top: float) -> list[float]:
    for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000):
        if top / step <= 7:
            return [step * number for number in range(int(top / step) + 1)]
    return [0.0, top]


def _tick_places(steps: Sequence[Step]) -> list[int]:
    """Places to label: evenly spread, and no label twice in a row."""
    stride = max(1, -(-len(steps) // _TICKS))
    places = [*range(0, len(steps), stride)]
    places += [len(steps) - 1] if places[-1] != len(steps) - 1 else []
    return [
        place
        for number, place in enumerate(places)
        if not number or steps[place].tick != steps[places[number - 1]].tick
    ]
