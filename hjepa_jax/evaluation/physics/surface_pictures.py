"""An energy surface that turns while orbits run on it, and the same seen from above."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from hjepa_jax.evaluation.physics.surface import Surface
from hjepa_jax.evaluation.report.figures import new_figure
from hjepa_jax.evaluation.report.plots import PALETTE

_LEVELS = 14
_FIRST_VIEW, _LAST_VIEW = -70.0, -30.0


def _below(height: np.ndarray, ceiling: float) -> np.ndarray:
    """Returns heights [G, G] cut off at the ceiling; NaN where all neighbors are above it too."""
    above = np.pad(height > ceiling, 1, mode="edge")
    rows, columns = height.shape
    around = np.stack([above[i : i + rows, j : j + columns] for i in range(3) for j in range(3)])
    return np.where(around.all(axis=0), np.nan, np.minimum(height, ceiling))


class _Picture:
    """The drawn surface, whose orbits can be moved on."""

    def __init__(self, surface: Surface, dpi: int):
        self._surface = surface
        self.figure = new_figure(10.4, 4.7, dpi)
        grid = self.figure.add_gridspec(1, 2, width_ratios=(1.25, 1))
        self._space: Any = self.figure.add_subplot(grid[0], projection="3d", computed_zorder=False)
        self._above = self.figure.add_subplot(grid[1])
        self._x = (float(surface.x[0]), float(surface.x[-1]))
        self._y = (float(surface.y[0]), float(surface.y[-1]))
        self._z = (float(surface.height.min()), surface.ceiling)
        self._draw_surface()
        _draw_contours(self._above, surface)
        self._time = self._above.text(
            *(0.02, 0.98, ""), transform=self._above.transAxes, va="top", fontsize=9
        )
        self._lines, self._flat = [], []
        for number, name in enumerate(surface.orbits):
            style: dict[str, Any] = {"color": PALETTE[number % len(PALETTE)]}
            line = self._space.plot([], [], [], linewidth=1.6, zorder=5, **style)[0]
            head = self._space.plot([], [], [], "o", markersize=5, zorder=6, **style)[0]
            self._lines.append((line, head))
            flat = self._above.plot([], [], linewidth=1.6, label=name, **style)[0]
            dot = self._above.plot([], [], "o", markersize=5, **style)[0]
            self._flat.append((flat, dot))
            start = surface.orbits[name][0]
            self._above.plot(*start[:2], "o", mfc="white", mec=style["color"], markersize=5)
        self.figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=9)
        title = "\n".join(filter(None, [surface.title, surface.note]))
        self.figure.suptitle(title, fontsize=9 if surface.note else 11)

    def _draw_surface(self) -> None:
        surface, axes = self._surface, self._space
        x, y = np.meshgrid(surface.x, surface.y)
        axes.plot_surface(
            x,
            y,
            _below(surface.height, surface.ceiling),
            cmap="cividis",
            alpha=0.55,
            linewidth=0,
            zorder=1,
            rcount=len(surface.y),
            ccount=len(surface.x),
        )
        axes.set_box_aspect(None, zoom=1.08)
        axes.set(xlim=self._x, ylim=self._y, zlim=self._z)
        for set_label, label in zip(
            (axes.set_xlabel, axes.set_ylabel, axes.set_zlabel), surface.labels, strict=True
        ):
            set_label(label, fontsize=7)
        axes.tick_params(labelsize=7)

    def _seen(self, path: np.ndarray) -> np.ndarray:
        """Returns an orbit without what leaves the box."""
        low = (self._x[0], self._y[0], self._z[0] - 1e-9)
        high = (self._x[1], self._y[1], self._z[1] + 1e-9)
        with np.errstate(invalid="ignore"):
            inside = np.all((path >= low) & (path <= high), axis=1, keepdims=True)
        return np.where(inside, path, np.nan)

    def show(self, time: int, progress: float) -> None:
        """Draws the orbits up to a time; `progress`, from 0 to 1, turns the surface."""
        self._space.view_init(32, _FIRST_VIEW + progress * (_LAST_VIEW - _FIRST_VIEW))
        self._time.set_text(f"time {self._surface.times[time]:.1f}")
        for path, space, flat in zip(
            self._surface.orbits.values(), self._lines, self._flat, strict=True
        ):
            seen = self._seen(path[: time + 1])
            space[0].set_data_3d(*seen.T)
            space[1].set_data_3d(*seen[-1:].T)
            flat[0].set_data(*seen[:, :2].T)
            flat[1].set_data(*seen[-1:, :2].T)


def _draw_contours(axes: Axes, surface: Surface) -> None:
    shown = surface.height[surface.height <= surface.ceiling]
    levels = np.quantile(shown, np.linspace(0.0, 1.0, _LEVELS))
    drawn = axes.contourf(
        surface.x, surface.y, surface.height, np.unique(levels), cmap="cividis", alpha=0.55
    )
    axes.contour(drawn, colors="k", linewidths=0.3, alpha=0.5)
    axes.set_xlabel(surface.labels[0], fontsize=8)
    axes.set_ylabel(surface.labels[1], fontsize=8)
    axes.set_title(f"from above: color is {surface.labels[2]}; ○ start, ● now", fontsize=9)
    axes.tick_params(labelsize=7)
    axes.set_aspect("equal")


def surface_picture(surface: Surface) -> Figure:
    """The surface with whole orbits."""
    picture = _Picture(surface, 140)
    picture.show(len(surface.times) - 1, 0.5)
    return picture.figure


def surface_frames(surface: Surface, *, frames: int = 40, dpi: int = 75) -> list[Image.Image]:
    """Frames of the orbits, in which the surface turns to and fro once, so that they can repeat."""
    picture = _Picture(surface, dpi)
    canvas = picture.figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    images = []
    times = np.linspace(0, len(surface.times) - 1, frames).round().astype(int)
    for number, time in enumerate(times):
        picture.show(int(time), 0.5 * (1 - np.cos(2 * np.pi * number / frames)))
        canvas.draw()
        images.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    return images
