"""Plots of values with intervals, as SVG without script: rows of dots, and curves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log, log10

COLOURS = {"generated": "#0b6fa4", "phantoms": "#9a6a00", "real": "#0b6b3a", "other": "#7a4a8a"}
_WIDTH, _LEFT, _RIGHT, _ROW, _TOP, _BOTTOM = 860, 330, 30, 26, 14, 34
_CURVE_HEIGHT, _CURVE_LEFT, _LABEL = 300, 60, 15
_TICKS = 6
# An axis that ends at the outermost interval cuts its end off.
_MARGIN = 0.04


@dataclass(frozen=True)
class Dot:
    """A value with its interval.

    Attributes:
        label: Stands left of it.
        value: Where the dot is.
        low: Lower end of the interval.
        high: Upper end.
        kind: Key of `COLOURS`.
    """

    label: str
    value: float
    low: float
    high: float
    kind: str = "generated"


def dot_plot(dots: Sequence[Dot], title: str, x_label: str, *, mark: float | None = None) -> str:
    """Draw a row for each value.

    Args:
        dots: Where there is none, there is no plot.
        title: For those who cannot see it.
        x_label: Below the axis.
        mark: A value that means something of its own, such as 0.5 for guessing; a dashed line.
    """
    if not dots:
        return ""
    lows, highs = [dot.low for dot in dots], [dot.high for dot in dots]
    if mark is not None:
        lows, highs = [*lows, mark], [*highs, mark]
    x, ticks = _axis(min(lows), max(highs), _LEFT, _WIDTH - _RIGHT)
    height = _TOP + _ROW * len(dots) + _BOTTOM
    parts = [_open(height, title)]
    for tick in ticks:
        parts.append(
            f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP}" y2="{height - _BOTTOM}" '
            f'stroke="#e3e3e3"/><text x="{x(tick):.1f}" y="{height - _BOTTOM + 15}" '
            f'text-anchor="middle">{tick:g}</text>'
        )
    if mark is not None:
        parts.append(
            f'<line x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{_TOP}" y2="{height - _BOTTOM}" '
            'stroke="#a3122a" stroke-dasharray="5 4"/>'
        )
    for row, dot in enumerate(dots):
        y, colour = _TOP + _ROW * (row + 0.5), COLOURS[dot.kind]
        parts.append(
            f"<g><title>{escape(dot.label)}: {dot.value:.4g} ({dot.low:.4g} to {dot.high:.4g})"
            f'</title><text x="{_LEFT - 12}" y="{y + 4:.1f}" text-anchor="end">'
            f'{escape(dot.label)}</text><line x1="{x(dot.low):.1f}" x2="{x(dot.high):.1f}" '
            f'y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}" stroke-width="2.5"/>'
            f'<circle cx="{x(dot.value):.1f}" cy="{y:.1f}" r="5" fill="{colour}"/></g>'
        )
    parts.append(f'<text x="{_LEFT}" y="{height - 4}">{escape(x_label)}</text></svg>')
    return "".join(parts)


def curve_plot(
    curves: Mapping[str, Sequence[tuple[float, float, float, float]]],
    kinds: Mapping[str, str],
    title: str,
    x_label: str,
    y_label: str,
) -> str:
    """Draw curves with bands, on an axis on which a doubling is the same step everywhere.

    Args:
        curves: Points (x above 0, value, low, high) of each, x rising.
        kinds: Key of `COLOURS` for each.
        title: For those who cannot see it.
        x_label: Below the axis.
        y_label: Above the other.
    """
    points = [point for curve in curves.values() for point in curve]
    bottom, top = _CURVE_HEIGHT - 40, 26
    y, ticks = _axis(min(p[2] for p in points), max(p[3] for p in points), bottom, top)
    places = sorted({p[0] for p in points})
    first, last = log(places[0]), log(places[-1])
    room = _WIDTH - _CURVE_LEFT - 270

    def x(place: float) -> float:
        return _CURVE_LEFT + 20 + room * (log(place) - first) / ((last - first) or 1.0)

    parts = [_open(_CURVE_HEIGHT, title)]
    for tick in ticks:
        parts.append(
            f'<line x1="{_CURVE_LEFT}" x2="{_WIDTH - 240}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" '
            f'stroke="#e3e3e3"/><text x="{_CURVE_LEFT - 8}" y="{y(tick) + 4:.1f}" '
            f'text-anchor="end">{tick:g}</text>'
        )
    for place in places:
        parts.append(
            f'<text x="{x(place):.1f}" y="{bottom + 18}" text-anchor="middle">{place:g}</text>'
        )
    heights = _apart({name: y(curve[-1][1]) + 4 for name, curve in curves.items()})
    for name, curve in curves.items():
        colour = COLOURS[kinds[name]]
        there = " ".join(f"{x(p[0]):.1f},{y(p[3]):.1f}" for p in curve)
        back = " ".join(f"{x(p[0]):.1f},{y(p[2]):.1f}" for p in reversed(curve))
        line = " ".join(f"{x(p[0]):.1f},{y(p[1]):.1f}" for p in curve)
        parts.append(
            f'<polygon points="{there} {back}" fill="{colour}" fill-opacity="0.13"/>'
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
            + "".join(
                f'<circle cx="{x(p[0]):.1f}" cy="{y(p[1]):.1f}" r="4" fill="{colour}">'
                f"<title>{escape(name)}: {p[1]:.4g} ({p[2]:.4g} to {p[3]:.4g})</title></circle>"
                for p in curve
            )
            + f'<text x="{x(curve[-1][0]) + 10:.1f}" y="{heights[name]:.1f}" '
            f'fill="{colour}">{escape(name)}</text>'
        )
    parts.append(
        f'<text x="{_CURVE_LEFT}" y="14">{escape(y_label)}</text>'
        f'<text x="{_CURVE_LEFT + 20}" y="{_CURVE_HEIGHT - 4}">{escape(x_label)}</text></svg>'
    )
    return "".join(parts)


def _apart(heights: Mapping[str, float]) -> dict[str, float]:
    """Move labels down until none lies on another."""
    placed: dict[str, float] = {}
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        last = max(placed.values(), default=height - _LABEL)
        placed[name] = max(height, last + _LABEL)
    return placed


def _open(height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}" '
        'class="plot" xmlns="http://www.w3.org/2000/svg">'
    )


def _axis(
    low: float, high: float, start: float, end: float
) -> tuple[Callable[[float], float], list[float]]:
    """Where values lie between two places, and round values to write there."""
    spread = (high - low) or abs(high) or 1.0
    low, high = low - _MARGIN * spread, high + _MARGIN * spread

    def place(value: float) -> float:
        return start + (value - low) / (high - low) * (end - start)

    return place, _round_values(low, high)


def _round_values(low: float, high: float) -> list[float]:
    rough = (high - low) / _TICKS
    power = 10.0 ** floor(log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [round(n * step, 12) for n in range(ceil(low / step), floor(high / step) + 1)]
