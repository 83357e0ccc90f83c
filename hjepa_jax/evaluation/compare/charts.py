"""Line charts and interval plots as inline SVG, with text and shapes only."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Callable, Sequence

from hjepa_jax.evaluation.report.plots import PALETTE, Axes, Series
from hjepa_jax.storage.files import printable

# Where colors repeat, dashes distinguish lines.
COLORS = (*PALETTE, "#000000")
DASHES = ("", "7 3", "2 3", "9 3 2 3")
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 42
_MARKED_POINTS = 16
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def escape(value: object) -> str:
    """Returns a value as text, escaped for HTML."""
    return html.escape(printable(str(value)))


def color(style: int) -> str:
    """Returns the color of a style number; -1 is the gray of references."""
    return "#8a8a8a" if style < 0 else COLORS[style % len(COLORS)]


def dashes(style: int) -> str:
    """Returns the dash pattern of a style number; patterns differ where colors repeat."""
    return "2 3" if style < 0 else DASHES[style // len(COLORS) % len(DASHES)]


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers in [low, high]; only `low` unless low < high."""
    if not low < high:
        return [low]
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns powers of ten from low to high, or round numbers if there are fewer than two."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    powers = [10.0**i for i in range(first, last + 1)]
    stride = -(-len(powers) // 7) if powers else 1
    return powers[::stride] if len(powers) >= 2 else nice_ticks(low, high)


def number(value: float) -> str:
    """Returns a short decimal form: 1200 -> '1200', 0.00012 -> '1.2·10⁻⁴'."""
    if value <= 0:
        return f"−{number(-value)}" if value else "0"
    if not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        mantissa = mantissa.removesuffix(".0")
        power = f"10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
        return power if mantissa == "1" else f"{mantissa}·{power}"
    return f"{value:.4g}"


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


def _draw(
    series: Series,
    axes: Axes,
    to_x: Callable[[float], float],
    to_y: Callable[[float], float],
    opacity: float,
) -> str:
    indices, ink = _drawable(series, axes), color(series.style)
    parts = []
    if series.low is not None and series.high is not None and len(indices) > 1:
        floor = min(series.y[i] for i in indices) if axes.log_y else -math.inf
        upper = [(to_x(series.x[i]), to_y(series.high[i])) for i in indices]
        lower = [(to_x(series.x[i]), to_y(max(series.low[i], floor))) for i in reversed(indices)]
        outline = _path([*upper, *lower])
        parts.append(f'<path d="{outline}Z" fill="{ink}" fill-opacity="{opacity}"/>')
    points = [(to_x(series.x[i]), to_y(series.y[i])) for i in indices]
    dash = f' stroke-dasharray="{dashes(series.style)}"' if dashes(series.style) else ""
    if len(points) > 1:
        parts.append(
            f'<path d="{_path(points)}" fill="none" stroke="{ink}" stroke-width="2" '
            f'stroke-linejoin="round"{dash}/>'
        )
    if len(points) <= _MARKED_POINTS:
        for i, (x, y) in zip(indices, points, strict=True):
            shown = f"{100 * series.y[i]:.2f} %" if axes.percent else number(series.y[i])
            tooltip = escape(f"{series.name}: {shown} at {number(series.x[i])}")
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{ink}">'
                f"<title>{tooltip}</title></circle>"
            )
    return "".join(parts)


def _grid(
    axes: Axes,
    size: tuple[int, int],
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    to_x: Callable[[float], float],
    to_y: Callable[[float], float],
) -> str:
    width, height = size
    right, bottom = width - _RIGHT, height - _BOTTOM
    parts = []
    for tick in y_ticks:
        y = to_y(tick)
        shown = f"{100 * tick:.4g} %" if axes.percent else number(tick)
        parts.append(
            f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
            f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>'
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
        f'<text x="{(_LEFT + right) / 2}" y="{height - 6}" text-anchor="middle" '
        f'class="label">{escape(axes.x_label)}</text>'
    )
    if axes.y_label:
        parts.append(
            f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle" '
            f'class="label">{escape(axes.y_label)}</text>'
        )
    return "".join(parts)


def line_chart(series: Sequence[Series], axes: Axes, *, width: int = 560, height: int = 330) -> str:
    """Returns a line chart as SVG; '' if no series has a point that can be drawn."""
    xs = [s.x[i] for s in series for i in _drawable(s, axes)]
    ys = [s.y[i] for s in series for i in _drawable(s, axes)]
    for one in series:
        for band in (one.low, one.high):
            if band is not None:
                ys += [band[i] for i in _drawable(one, axes) if band[i] > 0 or not axes.log_y]
    if not xs:
        return ""
    x_low, x_high = _limits(xs, axes.log_x, 0.03)
    y_low, y_high = _limits(ys, axes.log_y, 0.06)
    if axes.percent:
        y_low, y_high = max(y_low, 0.0), min(y_high, 1.0)
    to_x = _scale(x_low, x_high, _LEFT, width - _RIGHT, axes.log_x)
    to_y = _scale(y_low, y_high, height - _BOTTOM, _TOP, axes.log_y)
    x_ticks = axes.x_ticks
    if x_ticks is None:
        x_ticks = log_ticks(x_low, x_high) if axes.log_x else nice_ticks(x_low, x_high)
    y_ticks = log_ticks(y_low, y_high) if axes.log_y else nice_ticks(y_low, y_high)
    # Many overlapping bands would hide the lines.
    opacity = 0.16 if len(series) <= 4 else 0.07
    drawn = "".join(_draw(one, axes, to_x, to_y, opacity) for one in series)
    described = escape(f"{axes.y_label or 'values'} over {axes.x_label}")
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{described}">'
        f"{_grid(axes, (width, height), x_ticks, y_ticks, to_x, to_y)}{drawn}</svg>"
    )


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value with its interval (None = none); `style` selects the color."""

    name: str
    value: float
    interval: tuple[float, float] | None
    style: int


def interval_chart(rows: Sequence[Interval], label: str, width: int = 560) -> str:
    """Returns one horizontal interval per row and a line at zero, as SVG; '' without rows."""
    if not rows:
        return ""
    names = [r.name if len(r.name) <= 26 else f"{r.name[:25]}…" for r in rows]
    left, height = 24 + 7 * max(map(len, names)), 30 * len(rows) + _TOP + _BOTTOM
    ends = [0.0, *(r.value for r in rows), *(e for r in rows for e in r.interval or ())]
    low, high = _limits(ends, False, 0.08)
    to_x = _scale(low, high, left, width - _RIGHT, False)
    bottom = height - _BOTTOM
    parts = []
    for tick in nice_ticks(low, high):
        x, shown = to_x(tick), f"{tick:+.4g}".replace("-", "−") if tick else "0"
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}" class="grid"/>'
            f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{shown}</text>'
        )
    zero = to_x(0.0)
    parts.append(f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="{_TOP}" y2="{bottom}" class="axis"/>')
    for position, (name, row) in enumerate(zip(names, rows, strict=True)):
        y, ink = _TOP + 30 * position + 15, color(row.style)
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        tooltip = f"{row.name}: {row.value:+.3g}"
        if row.interval is not None:
            first, last = row.interval
            tooltip += f" [{first:+.3g}, {last:+.3g}]"
            parts.append(
                f'<line x1="{to_x(first):.1f}" x2="{to_x(last):.1f}" y1="{y}" y2="{y}" '
                f'stroke="{ink}" stroke-width="3" stroke-linecap="round"/>'
            )
        parts.append(
            f'<circle cx="{to_x(row.value):.1f}" cy="{y}" r="5.5" fill="{ink}" stroke="#fff" '
            f'stroke-width="1.5"><title>{escape(tooltip)}</title></circle>'
        )
    parts.append(
        f'<text x="{(left + width - _RIGHT) / 2}" y="{height - 6}" text-anchor="middle" '
        f'class="label">{escape(label)}</text>'
    )
    size = f'viewBox="0 0 {width} {height}"'
    return f'<svg {size} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
