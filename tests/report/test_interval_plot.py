"""Plots of intervals: where things are drawn, and that nothing is cut off."""

import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundusgen.report.interval_plot import COLOURS, Dot, curve_plot, dot_plot

SVG = "{http://www.w3.org/2000/svg}"


def drawn(svg: str) -> ET.Element:
    return ET.fromstring(svg)  # noqa: S314 - what was just drawn here


def circles(picture: ET.Element) -> list[tuple[float, float, str]]:
    return [
        (float(c.attrib["cx"]), float(c.attrib["cy"]), c.attrib["fill"])
        for c in picture.iter(f"{SVG}circle")
    ]


def intervals(picture: ET.Element) -> list[tuple[float, float]]:
    """Ends of the lines of intervals: those that are drawn thick."""
    return [
        (float(line.attrib["x1"]), float(line.attrib["x2"]))
        for line in picture.iter(f"{SVG}line")
        if line.attrib.get("stroke-width") == "2.5"
    ]


def words(picture: ET.Element) -> list[str]:
    return [text.text or "" for text in picture.iter(f"{SVG}text")]


def test_every_value_is_a_row_in_the_colour_of_its_kind() -> None:
    dots = [Dot("one", 0.2, 0.1, 0.3), Dot("two", 0.8, 0.7, 0.9, "real")]
    picture = drawn(dot_plot(dots, "scores", "AUC"))
    (x_one, y_one, blue), (x_two, y_two, green) = circles(picture)
    assert (blue, green) == (COLOURS["generated"], COLOURS["real"])
    assert x_one < x_two
    assert y_one < y_two
    assert {"one", "two", "AUC"} <= set(words(picture))
    assert picture.attrib["aria-label"] == "scores"
    assert "two: 0.8 (0.7 to 0.9)" in [title.text for title in picture.iter(f"{SVG}title")]


_NUMBERS = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6)


@given(st.lists(st.tuples(_NUMBERS, _NUMBERS, _NUMBERS), min_size=1, max_size=6))
def test_dots_lie_within_their_intervals_and_these_within_the_picture(
    values: list[tuple[float, float, float]],
) -> None:
    dots = [Dot("", value, low, high) for low, value, high in map(sorted, values)]
    picture = drawn(dot_plot(dots, "t", "x"))
    width = float(picture.attrib["viewBox"].split()[2])
    for (x, _, _), (low, high) in zip(circles(picture), intervals(picture), strict=True):
        # Places are written to a tenth of a pixel.
        assert 0 < low <= x + 0.11
        assert x <= high + 0.11
        assert high < width


def test_a_mark_outside_of_all_intervals_is_drawn_too() -> None:
    picture = drawn(dot_plot([Dot("far", 0.9, 0.88, 0.92)], "t", "AUC", mark=0.5))
    (dashed,) = (line for line in picture.iter(f"{SVG}line") if "stroke-dasharray" in line.attrib)
    ((low, _),) = intervals(picture)
    assert 200 < float(dashed.attrib["x1"]) < low


def test_equal_values_without_an_interval_can_be_drawn() -> None:
    for value in (0.0, 0.5, -3.0):
        ((x, _, _),) = circles(drawn(dot_plot([Dot("", value, value, value)], "t", "x")))
        assert 230 < x < 730


def test_without_values_there_is_no_plot() -> None:
    assert dot_plot([], "t", "x", mark=0.5) == ""


def test_labels_are_text_and_not_markup() -> None:
    hostile = '</title><script>alert("x")</script>'
    point = (10.0, 0.5, 0.4, 0.6)
    plots = (
        dot_plot([Dot(hostile, 0.5, 0.4, 0.6)], hostile, hostile),
        curve_plot({hostile: [point]}, {hostile: "real"}, hostile, hostile, hostile),
    )
    for plot in plots:
        assert "<script" not in plot
        assert hostile in words(drawn(plot))


def test_a_doubling_is_the_same_step_everywhere() -> None:
    curve = [(x, 0.5, 0.4, 0.6) for x in (5.0, 10.0, 20.0, 40.0)]
    picture = drawn(curve_plot({"a": curve}, {"a": "real"}, "t", "%", "AUC"))
    places = [x for x, _, _ in circles(picture)]
    steps = [after - before for before, after in pairwise(places)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.2)
    assert steps[0] > 50
    assert {"5", "10", "20", "40"} <= set(words(picture))


def test_higher_values_are_drawn_higher_with_a_band_around_them() -> None:
    curves = {
        "low": [(10.0, 0.2, 0.1, 0.3), (20.0, 0.3, 0.2, 0.4)],
        "high": [(10.0, 0.8, 0.7, 0.9)],
    }
    picture = drawn(curve_plot(curves, {"low": "real", "high": "other"}, "t", "%", "AUC"))
    first, second, third = (y for _, y, _ in circles(picture))
    assert third < second < first
    bands = [
        [float(point.split(",")[1]) for point in polygon.attrib["points"].split()]
        for polygon in picture.iter(f"{SVG}polygon")
    ]
    assert [len(band) for band in bands] == [4, 2]
    assert min(bands[0]) < second
    assert max(bands[0]) > first
