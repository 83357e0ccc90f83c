"""Charts: where points lie, which values hover shows, and what odd data do."""

from xml.etree import ElementTree

import numpy as np
import pytest

from hjepa_jax.evaluation.page import charts
from hjepa_jax.evaluation.page.text import number
from hjepa_jax.evaluation.report.plots import Axes, Series


def shapes(svg: str) -> tuple[ElementTree.Element, list[ElementTree.Element]]:
    root = ElementTree.fromstring(svg)
    return root, list(root.iter())


@pytest.mark.parametrize("log", [False, True])
def test_points_lie_where_the_axes_say(log) -> None:
    x, y = [1.0, 10.0, 100.0], [2.0, 0.02, 0.2]
    svg = charts.line_chart(
        [Series("a<b", x, y, 0, y, [2 * v for v in y])],
        Axes("x & y", log_x=log, log_y=log, x_ticks=x),
    )
    _, elements = shapes(svg)
    circles = [e for e in elements if e.tag == "circle"]
    assert len(circles) == 3
    assert circles[0].find("title").text == "a<b: 2 at 1"
    # Each point is above the x tick with its value.
    ticks = {e.text: float(e.get("x")) for e in elements if e.tag == "text" and e.get("x")}
    for circle, at in zip(circles, ("1", "10", "100"), strict=True):
        assert float(circle.get("cx")) == pytest.approx(ticks[at], abs=0.11)
    # Heights are linear in y (or its logarithm) and increase upward.
    heights = [float(circle.get("cy")) for circle in circles]
    values = np.log10(y) if log else np.array(y)
    expected = (values[1] - values[2]) / (values[1] - values[0])
    assert (heights[1] - heights[2]) / (heights[1] - heights[0]) == pytest.approx(
        expected, abs=2e-3
    )
    assert heights[0] < heights[2] < heights[1]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    ("x", "y"),
    [([3.0], [0.7]), ([1.0, 2.0], [5.0, 5.0]), ([1.0, 2.0, 3.0], [0.0, np.nan, 1e-7])],
)
def test_odd_data_stays_inside_the_frame(log, x, y) -> None:
    svg = charts.line_chart([Series("s", x, y, 12)], Axes("x", log_y=log))
    root, elements = shapes(svg)
    _, _, width, height = map(float, root.get("viewBox").split())
    drawn = [e for e in elements if e.tag == "circle"]
    assert drawn
    for circle in drawn:
        assert 0 < float(circle.get("cx")) < width
        assert 0 < float(circle.get("cy")) < height
    assert "nan" not in svg
    assert "i2" in svg
    assert ("stroke-dasharray" in svg) == ("<path" in svg)


def test_nothing_to_draw_is_an_empty_text() -> None:
    assert charts.line_chart([], Axes("x")) == ""
    assert charts.line_chart([Series("s", [1.0], [-1.0], 0)], Axes("x", log_y=True)) == ""
    assert charts.interval_chart([], "x") == ""


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-3, 12, [0, 5, 10]), (0.031, 0.049, None)],
)
def test_ticks_are_round_numbers_inside(low, high, expected) -> None:
    ticks = charts.nice_ticks(low, high)
    assert expected is None or ticks == pytest.approx(expected)
    assert 3 <= len(ticks) <= 8
    assert low - 1e-9 <= ticks[0] < ticks[-1] <= high + 1e-9
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])


def test_numbers_are_short() -> None:
    values = (0, 1200, 0.25, 1e-4, 1.2e-4, -0.5, 123456.0)
    expected = ["0", "1200", "0.25", "10⁻⁴", "1.2·10⁻⁴", "−0.5", "1.2·10⁵"]
    assert [number(value) for value in values] == expected


def test_hover_has_every_value_with_its_band() -> None:
    y, low, high = [0.5, np.nan, 0.75], [0.4, np.nan, np.nan], [0.6, np.nan, np.nan]
    series = [Series('"a"<b>', [1, 5, 20], y, 3, low, high), Series("none", [], [], 1)]
    root, elements = shapes(charts.line_chart(series, Axes("neighbors k", percent=True)))
    group, _ = [e for e in elements if e.tag == "g"]
    assert group.get("class") == "series i3"
    assert group.get("data-name") == '"a"<b>'
    found = {name: group.get(f"data-{name}") for name in ("x", "y", "low", "high")}
    assert found == {"x": "1 20", "y": "0.5 0.75", "low": "0.4 nan", "high": "0.6 nan"}
    assert (root.get("data-x"), root.get("data-percent")) == ("neighbors k", "")
    assert root.get("aria-label") == 'values over neighbors k. "a"<b>: 0.5 to 0.75'


def test_small_changes_have_different_ticks() -> None:
    assert charts.nice_ticks(-2.4e-13, 1e-13) == pytest.approx(
        [-2e-13, -1e-13, 0, 1e-13], abs=1e-16
    )


def test_intervals_cover_their_ends() -> None:
    rows = [charts.Interval("a & b", 2.0, (1.0, 4.0), 0), charts.Interval("x" * 90, -1.0, None, 1)]
    _, elements = shapes(charts.interval_chart(rows, "points"))
    (span,) = [e for e in elements if e.get("class") == "span"]
    first, second = [float(e.get("cx")) for e in elements if e.tag == "circle"]
    start, end = float(span.get("x1")), float(span.get("x2"))
    # Distances are as the values.
    assert (first - start) / (end - first) == pytest.approx(0.5, abs=0.01)
    assert (first - second) / (end - start) == pytest.approx(1.0, abs=0.01)
    titles = [e.text for e in elements if e.tag == "title"]
    assert titles == ["a & b: +2 [+1, +4]", f"{'x' * 90}: -1"]
