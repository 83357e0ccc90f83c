"""Line charts and interval plots as inline SVG, with text and shapes only.

Libraries that draw in the browser (uPlot, Plotly) show nothing without scripts, and those that draw
before (matplotlib) have neither values on hover nor a dark theme; hence these few functions. The
page's script reads the values of a chart from the attributes of its series.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

from hjepa_jax.evaluation.page.ink import dash, paint
from hjepa_jax.evaluation.page.text import escape, number
from hjepa_jax.evaluation.report.plots import Axes, Series

# Small enough that text remains legible where a phone scales the chart down.
_WIDTH, _HEIGHT = 420, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 14, 12, 44
_MARKED_POINTS = 16
_MANY = 5
_NAME_LETTERS = 22


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers in [low, high]; only `low` unless low < high."""
    if not low < high:
        return [low]
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    # Rounded relative to the step, which may be far below 1.
    digits = max(0, 3 - math.floor(math.log10(step)))
    return [round(i * step, digits) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns powers of ten from low to high, or round numbers if there are fewer than two."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    powers = [10.0**i for i in range(first, last + 1)]
    stride = -(-len(powers) // 7) if powers else 1
    return powers[::stride] if len(powers) >= 2 else nice_ticks(low, high)


def _scale(
    low: float, high: float, start: float, stop: float, logarithmic: bool
) -> Callable[[float], float]:
    def transform(value: float) -> float:
        return math.log10(value) if logarithmic else value

    first, last = transform(low), transform(high)
    span = last - first or 1.0
    return lambda value: start + (transform(value) - first) / span * (stop - start)


def _limits(values: list[float], logarithmic: bool, margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if logarithmic:
        room = (high / low) ** margin if high > low else 2.0
        return low / room, high * room
    room = (high - low) * margin or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _drawable(series: Series, axes: Axes) -> list[int]:
    """Returns the indices of the points that can be drawn: finite, and positive on log axes."""
    return [
        i
        for i, (x, y) in enumerate(zip(series.x, series.y, strict=True))
        if math.isfinite(x)
        and math.isfinite(y)
        and (x > 0 or not axes.log_x)
        and (y > 0 or not axes.log_y)
    ]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _values(name: str, values: Iterable[float]) -> str:
    """Returns an attribute with numbers, for the page's script."""
    return f' data-{name}="{" ".join(f"{value:.5g}" for value in values)}"'


def _draw(
    series: Series, axes: Axes, to_x: Callable[[float], float], to_y: Callable[[float], float]
) -> str:
    indices = _drawable(series, axes)
    data = _values("x", (series.x[i] for i in indices))
    data += _values("y", (series.y[i] for i in indices))
    parts = [f"<title>{escape(series.name)}</title>"]
    if series.low is not None and series.high is not None:
        low, high = series.low, series.high
        data += _values("low", (low[i] for i in indices))
        data += _values("high", (high[i] for i in indices))
        inside = [i for i in indices if math.isfinite(low[i]) and math.isfinite(high[i])]
        floor = min((series.y[i] for i in indices), default=0.0) if axes.log_y else -math.inf
        upper = [(to_x(series.x[i]), to_y(high[i])) for i in inside]
        lower = [(to_x(series.x[i]), to_y(max(low[i], floor))) for i in reversed(inside)]
        if len(inside) > 1:
            parts.append(f'<path d="{_path([*upper, *lower])}Z" class="band"/>')
    points = [(to_x(series.x[i]), to_y(series.y[i])) for i in indices]
    if len(points) > 1:
        parts.append(f'<path d="{_path(points)}" class="line"{dash(series.style)}/>')
    if len(points) <= _MARKED_POINTS:
        for i, (x, y) in zip(indices, points, strict=True):
            shown = f"{100 * series.y[i]:.2f} %" if axes.percent else number(series.y[i])
            tooltip = escape(f"{series.name}: {shown} at {number(series.x[i])}")
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="dot">'
                f"<title>{tooltip}</title></circle>"
            )
    return (
        f'<g class="series {paint(series.style)}" data-name="{escape(series.name)}"{data}>'
        f"{''.join(parts)}</g>"
    )


def _grid(
    axes: Axes,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    to_x: Callable[[float], float],
    to_y: Callable[[float], float],
) -> str:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for tick in y_ticks:
        y = to_y(tick)
        shown = f"{100 * tick:.4g} %" if axes.percent else number(tick)
        parts.append(
            f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" class="rule"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>'
        )
    for tick in x_ticks:
        x = to_x(tick)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}" class="axis"/>'
            f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{number(tick)}</text>'
        )
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<line x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}" class="axis"/>'
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 8}" text-anchor="middle" '
        f'class="label">{escape(axes.x_label)}</text>'
    )
    if axes.y_label:
        parts.append(
            f'<text transform="translate(11 {middle}) rotate(-90)" text-anchor="middle" '
            f'class="label">{escape(axes.y_label)}</text>'
        )
    return "".join(parts)


def _described(series: Sequence[Series], axes: Axes) -> str:
    """Returns a chart in words: the first and the last value of every series."""
    ends = []
    for one in series:
        found = _drawable(one, axes)
        if found:
            first, last = (number(one.y[i]) for i in (found[0], found[-1]))
            ends.append(f"{one.name}: {first} to {last}")
    what = axes.title or axes.y_label or "values"
    return escape(f"{what} over {axes.x_label}. {'; '.join(ends)}")


def line_chart(series: Sequence[Series], axes: Axes) -> str:
    """Returns a line chart as SVG; '' if no series has a point that can be drawn."""
    xs = [s.x[i] for s in series for i in _drawable(s, axes)]
    ys = [s.y[i] for s in series for i in _drawable(s, axes)]
    for one in series:
        for band in filter(None, (one.low, one.high)):
            inside = (band[i] for i in _drawable(one, axes))
            ys += [y for y in inside if math.isfinite(y) and (y > 0 or not axes.log_y)]
    if not xs:
        return ""
    x_low, x_high = _limits(xs, axes.log_x, 0.03)
    y_low, y_high = _limits(ys, axes.log_y, 0.06)
    if axes.percent:
        y_low, y_high = max(y_low, 0.0), min(y_high, 1.0)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    to_x = _scale(x_low, x_high, _LEFT, right, axes.log_x)
    to_y = _scale(y_low, y_high, bottom, _TOP, axes.log_y)
    x_ticks = axes.x_ticks
    if x_ticks is None:
        x_ticks = log_ticks(x_low, x_high) if axes.log_x else nice_ticks(x_low, x_high)
    y_ticks = log_ticks(y_low, y_high) if axes.log_y else nice_ticks(y_low, y_high)
    drawn = "".join(_draw(one, axes, to_x, to_y) for one in series)
    # Many overlapping bands would hide the lines.
    many = " many" if len(series) >= _MANY else ""
    percent = ' data-percent=""' if axes.percent else ""
    return (
        f'<svg class="chart{many}" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{_described(series, axes)}" data-x="{escape(axes.x_label)}"{percent} '
        f'data-frame="{_LEFT} {right} {_TOP} {bottom}">'
        f"{_grid(axes, x_ticks, y_ticks, to_x, to_y)}{drawn}</svg>"
    )


def figure(series: Sequence[Series], axes: Axes) -> str:
    """Returns a line chart below its title; '' if there is nothing to draw."""
    drawn = line_chart(series, axes)
    title = f"<figcaption>{escape(axes.title)}</figcaption>" if axes.title else ""
    return f"<figure>{title}{drawn}</figure>" if drawn else ""


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value with its interval (None = none); `style` selects the color."""

    name: str
    value: float
    interval: tuple[float, float] | None
    style: int


def interval_chart(rows: Sequence[Interval], label: str) -> str:
    """Returns one horizontal interval per row and a line at zero, as SVG; '' without rows."""
    if not rows:
        return ""
    long = _NAME_LETTERS
    names = [r.name if len(r.name) <= long else f"{r.name[: long - 1]}…" for r in rows]
    left, height = 20 + 7 * max(map(len, names)), 30 * len(rows) + _TOP + _BOTTOM
    ends = [0.0, *(r.value for r in rows), *(e for r in rows for e in r.interval or ())]
    low, high = _limits(ends, False, 0.08)
    to_x = _scale(low, high, left, _WIDTH - _RIGHT, False)
    bottom = height - _BOTTOM
    parts = []
    for tick in nice_ticks(low, high):
        x, shown = to_x(tick), f"{tick:+.4g}".replace("-", "−") if tick else "0"
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}" class="rule"/>'
            f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{shown}</text>'
        )
    zero = to_x(0.0)
    parts.append(f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="{_TOP}" y2="{bottom}" class="axis"/>')
    for position, (name, row) in enumerate(zip(names, rows, strict=True)):
        y = _TOP + 30 * position + 15
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        tooltip = f"{row.name}: {row.value:+.3g}"
        span = ""
        if row.interval is not None:
            first, last = row.interval
            tooltip += f" [{first:+.3g}, {last:+.3g}]"
            ends_at = f'x1="{to_x(first):.1f}" x2="{to_x(last):.1f}"'
            span = f'<line {ends_at} y1="{y}" y2="{y}" class="span"/>'
        parts.append(
            f'<g class="{paint(row.style)}">{span}<circle cx="{to_x(row.value):.1f}" cy="{y}" '
            f'r="5.5" class="mark"/><title>{escape(tooltip)}</title></g>'
        )
    parts.append(
        f'<text x="{(left + _WIDTH - _RIGHT) / 2}" y="{height - 8}" text-anchor="middle" '
        f'class="label">{escape(label)}</text>'
    )
    return (
        f'<svg class="intervals" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
