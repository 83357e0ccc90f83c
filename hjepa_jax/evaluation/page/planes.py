"""Points and paths in a plane without ticks, such as maps of features, as inline SVG."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from hjepa_jax.evaluation.page.ink import paint
from hjepa_jax.evaluation.page.text import escape

# Side of a plane; coordinates are whole numbers, so that thousands of points stay small.
_SIDE, _MARGIN = 1000, 40


@dataclasses.dataclass(frozen=True)
class Cloud:
    """Points [M, 2] of one name; `style` selects the color, None = background."""

    name: str
    points: np.ndarray
    style: int | None


@dataclasses.dataclass(frozen=True)
class Path:
    """Positions [T, 2] in order of time, of which the one in the middle is now."""

    name: str
    positions: np.ndarray
    style: int


class _View:
    """Maps coordinates to the plane's, whose y axis points down."""

    def __init__(self, points: np.ndarray):
        finite = points[np.isfinite(points).all(axis=1)]
        if not len(finite):
            finite = np.zeros((1, 2))
        low, high = finite.min(axis=0), finite.max(axis=0)
        self._center, self._span = (low + high) / 2, np.where(high > low, high - low, 1.0)

    def __call__(self, points: np.ndarray) -> list[tuple[int, int]]:
        points = points[np.isfinite(points).all(axis=1)]
        inside = (points - self._center) / self._span * (_SIDE - 2 * _MARGIN)
        at = _SIDE / 2 + inside * (1, -1)
        return [(int(x), int(y)) for x, y in np.rint(at)]


def _cloud(cloud: Cloud, view: _View) -> str:
    # Lines of length 0 with round ends are dots, many of them in one path.
    dots = "".join(f"M{x} {y}h0" for x, y in view(cloud.points))
    kind = "others" if cloud.style is None else f"points {paint(cloud.style)}"
    return f'<path d="{dots}" class="{kind}"><title>{escape(cloud.name)}</title></path>'


def _line(points: Sequence[tuple[int, int]], dashes: str = "") -> str:
    return f'<path d="M{"L".join(f"{x} {y}" for x, y in points)}" class="line"{dashes}/>'


def _arrow(points: Sequence[tuple[int, int]]) -> str:
    """Returns a head in the direction of the last two points that differ."""
    x, y = points[-1]
    before = next((p for p in reversed(points) if p != (x, y)), None)
    if before is None:
        return ""
    angle = np.degrees(np.arctan2(y - before[1], x - before[0]))
    moved = f"translate({x} {y}) rotate({angle:.0f})"
    return f'<path d="M14 0L-18 13V-13Z" class="dot" transform="{moved}"/>'


def _path(path: Path, view: _View) -> str:
    at, now = view(path.positions), len(path.positions) // 2
    if len(at) < len(path.positions):
        return ""  # it has left every finite plane
    x, y = at[now]
    past = _line(at[: now + 1], ' stroke-dasharray="16 10"')
    return (
        f'<g class="{paint(path.style)}"><title>{escape(path.name)}</title>{past}{_line(at[now:])}'
        f'{_arrow(at[now:])}<circle cx="{x}" cy="{y}" r="16" class="now"/></g>'
    )


def plane(label: str, clouds: Sequence[Cloud], paths: Sequence[Path] = ()) -> str:
    """Returns clouds of points, and paths above them, as SVG.

    Args:
      label: what it shows, for screen readers.
      clouds: the points, those in the background first.
      paths: dashed until now, solid with an arrow afterward.
    """
    parts = [*(cloud.points for cloud in clouds), *(path.positions for path in paths)]
    view = _View(np.concatenate([np.zeros((0, 2)), *parts]))
    drawn = [_cloud(cloud, view) for cloud in clouds if len(cloud.points)]
    drawn += [_path(path, view) for path in paths]
    return (
        f'<svg class="plane" viewBox="0 0 {_SIDE} {_SIDE}" role="img" '
        f'aria-label="{escape(label)}">{"".join(drawn)}</svg>'
    )
