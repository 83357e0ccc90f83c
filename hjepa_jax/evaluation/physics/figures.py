"""Plots of `measure.compare_maps`, drawn with matplotlib's object API (no display needed)."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from PIL import Image

from hjepa_jax.evaluation.physics.animation import gif
from hjepa_jax.evaluation.physics.measure import Measurement, MeasurementSetup, summarize
from hjepa_jax.evaluation.physics.names import COMPARISON
from hjepa_jax.evaluation.report.figures import new_figure, save_each, tidy
from hjepa_jax.evaluation.report.plots import PALETTE
from hjepa_jax.evaluation.report.text import plot_texts
from hjepa_jax.storage.files import json_text, write_atomically

_log = logging.getLogger(__name__)
# Lines differ in style as well as in color.
_LINES = ("-", "--", "-.", ":", "-", "--")
_DPI = 140
# Smaller values are rounding errors: logarithmic axes end here.
_FLOOR = 1e-17
_SNAPSHOTS = 4
# Applications of the map that a frame of the GIF shows as the orbit.
_TRAIL = 25

Results = Mapping[str, Measurement]


def _style(index: int) -> dict[str, Any]:
    return {"color": PALETTE[index % 6], "linestyle": _LINES[index % 6]}


def _band(axes: Axes, x: np.ndarray, values: np.ndarray, index: int, label: str) -> None:
    """Median over the last axis as a line, 10 to 90 % as a band; non-finite values are dropped."""
    finite = np.isfinite(values).any(axis=-1)
    x, values = x[finite], values[finite]
    values = np.where(np.isfinite(values), np.maximum(np.abs(values), _FLOOR), np.nan)
    low, middle, high = np.nanquantile(values, (0.1, 0.5, 0.9), axis=-1)
    axes.plot(x, middle, label=label, linewidth=1.8, **_style(index))
    axes.fill_between(x, low, high, color=_style(index)["color"], alpha=0.18, linewidth=0)


def energy_picture(results: Results, setup: MeasurementSetup) -> Figure | None:
    """Energy error over time, and its maximum on a grid of initial conditions.

    None if no map has an energy.
    """
    known = {n: m for n, m in results.items() if m.energy is not None}
    if not known:
        return None
    figure = new_figure(4.2 + 3.1 * len(known), 3.9, _DPI)
    ratios = [1.35, *[1.0] * len(known)]
    panels = figure.subplots(1, 1 + len(known), width_ratios=ratios, squeeze=False)[0]
    for index, (name, m) in enumerate(known.items()):
        assert m.energy is not None
        drift = m.energy - m.energy[0]
        _band(panels[0], np.arange(1, len(drift)), drift[1:], index, name)
    panels[0].set(yscale="log", xlabel="applications of the map", ylabel="|H − H₀|")
    panels[0].set_title("Energy error (median, 10–90 %)")
    panels[0].legend(framealpha=0.85, edgecolor="none", fontsize=8.5)
    tidy(panels[0])
    grids = {
        n: np.maximum(m.grid_drift, _FLOOR) for n, m in known.items() if m.grid_drift is not None
    }
    finite = np.concatenate([g[np.isfinite(g)] for g in grids.values()])
    limits = np.quantile(finite, (0.02, 0.98)) if finite.size else (_FLOOR, 1.0)
    norm = LogNorm(float(limits[0]), float(max(limits[1], 1.01 * limits[0])))
    side = (-setup.extent, setup.extent)
    image = None
    for axes, (name, grid) in zip(panels[1:], grids.items()):
        image = axes.imshow(grid, origin="lower", extent=(*side, *side), norm=norm, cmap="cividis")
        axes.set(title=name, xlabel=f"start: q[{setup.plane}]")
    panels[1].set_ylabel(f"start: p[{setup.plane}]")
    assert image is not None
    bar = figure.colorbar(image, ax=list(panels[1:]), shrink=0.9, extend="both")
    bar.set_label("max |H − H₀| over the run")
    return figure


def reversal_picture(results: Results) -> Figure:
    """Error after running forward and back, over the number of applications."""
    figure = new_figure(5.4, 4.0, _DPI)
    axes = figure.subplots()
    for index, (name, m) in enumerate(results.items()):
        _band(axes, m.reversal_times, m.reversal_error, index, name)
    axes.set(xscale="log", yscale="log", xlabel="applications forward, then backward")
    axes.set(ylabel="|return − start| / (1 + |start|)", title="Time reversal (median, 10–90 %)")
    axes.legend(frameon=False)
    tidy(axes)
    return figure


def _view(results: Results) -> tuple[tuple[float, float], tuple[float, float]]:
    """Axis limits around the most compact map's blobs; others may leave the frame."""
    spans = []
    for m in results.values():
        points = m.blob[np.isfinite(m.blob).all(axis=(1, 2))].reshape(-1, 2).astype(np.float64)
        spans.append((points.min(axis=0), points.max(axis=0)))
    low, high = min(spans, key=lambda span: float(np.max(span[1] - span[0])))
    half = 1.3 * float(np.max(high - low)) / 2
    q, p = (low + high) / 2
    return (q - half, q + half), (p - half, p + half)


def blob_picture(results: Results, setup: MeasurementSetup) -> Figure:
    """A loop of initial conditions at a few times, with its area relative to the start."""
    first = next(iter(results.values()))
    times = np.unique(np.linspace(0, len(first.action) - 1, _SNAPSHOTS).round().astype(int))
    figure = new_figure(3.3 * len(results), 4.4, _DPI)
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    q_limits, p_limits = _view(results)
    shades = [0.35 + 0.65 * k / (len(times) - 1) for k in range(len(times))]
    for index, (axes, (name, m)) in enumerate(zip(panels, results.items())):
        color = PALETTE[index % 6]
        for time, shade in zip(times, shades):
            loop = m.blob[time]
            if not np.isfinite(loop).all():
                continue
            area = m.action[time] / m.action[0]
            label = f"{time}: {area:.4g}" if abs(area) < 1e4 else f"{time}: {area:.1e}"
            axes.fill(*loop.T, facecolor=color, alpha=0.25 * shade, edgecolor="none")
            axes.plot(*np.vstack([loop, loop[:1]]).T, color=color, alpha=shade, label=label)
        axes.set(title=name, xlim=q_limits, ylim=p_limits, aspect="equal")
        axes.set_xlabel(f"q[{setup.plane}]")
        axes.legend(
            frameon=False,
            fontsize=8,
            ncols=2,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.17),
            title="applications: area",
            title_fontsize=8,
        )
        tidy(axes)
    panels[0].set_ylabel(f"p[{setup.plane}]")
    figure.suptitle("A loop of initial conditions, and its area relative to the start")
    return figure


def structure_picture(results: Results) -> Figure:
    """Histograms of the symplectic defect and of the volume change of one application."""
    figure = new_figure(9.2, 3.8, _DPI)
    left, right = figure.subplots(1, 2)
    panels = (
        (left, "defect", "|JᵀΩJ − Ω| / |Ω| of one application", "Symplectic defect"),
        (right, "log_volume", "|log |det J|| of one application", "Volume change"),
    )
    for axes, field, label, title in panels:
        found = {n: np.abs(getattr(m, field)) for n, m in results.items()}
        found = {n: np.maximum(v[np.isfinite(v)], _FLOOR) for n, v in found.items()}
        every = np.concatenate(list(found.values()))
        low, high = np.log10(every.min()), np.log10(every.max())
        bins = np.logspace(low - 0.1, high + 0.1, 60)
        for index, (name, values) in enumerate(found.items()):
            style = _style(index)
            axes.hist(values, bins, color=style["color"], alpha=0.3)
            axes.hist(values, bins, histtype="step", label=name, linewidth=1.6, **style)
        if every.min() <= _FLOOR:
            label += f" (0 at {_FLOOR:.0e})"
        axes.set(xscale="log", xlabel=label, ylabel="states", title=title)
        tidy(axes)
    left.legend(frameon=False)
    return figure


def covariance_picture(results: Results) -> Figure:
    """Total variance and participation ratio of the ensemble, and the area of the loop."""
    figure = new_figure(11.0, 3.7, _DPI)
    panels = figure.subplots(1, 3)
    rows = (
        ("variance", "total variance / start", "Covariance: size", "log"),
        ("participation", "participation ratio / start", "Covariance: shape", "linear"),
        ("action", "|area| of the loop / start", "Phase-space area", "log"),
    )
    for axes, (field, label, title, scale) in zip(panels, rows):
        for index, (name, m) in enumerate(results.items()):
            series = np.abs(getattr(m, field) / getattr(m, field)[0])
            series = np.where(np.isfinite(series) & (series > 0), series, np.nan)
            axes.plot(series, label=name, linewidth=1.8, **_style(index))
        axes.set(xlabel="applications of the map", ylabel=label, title=title, yscale=scale)
        axes.axhline(1.0, color="0.6", linewidth=0.8, zorder=0)
        tidy(axes)
    panels[0].legend(frameon=False)
    return figure


def orbit_frames(
    results: Results, setup: MeasurementSetup, *, state: int = 0, frames: int = 60
) -> list[Image.Image]:
    """Frames of one state's orbit in the plane under every map, next to its energy over time."""
    names = list(results)
    steps = len(next(iter(results.values())).path)
    paths = {n: results[n].path[:, state] for n in names}
    energies = {n: m.energy[:, state] for n, m in results.items() if m.energy is not None}
    figure = new_figure(8.0, 3.8, dpi=80)
    left, right = figure.subplots(1, 2)
    half = 1.6 * max(float(np.abs(paths[names[0]]).max()), 1e-6)
    left.set(xlim=(-half, half), ylim=(-half, half), aspect="equal")
    left.set(xlabel=f"q[{setup.plane}]", ylabel=f"p[{setup.plane}]", title="Orbit")
    right.set(xlim=(0, steps - 1), xlabel="applications of the map", ylabel="energy H")
    right.set_title("Energy")
    if energies:
        start = next(iter(energies.values()))[0]
        right.set_ylim(start - 1.1 * abs(start) - 0.1, start + 1.6 * abs(start) + 0.1)
    for axes in (left, right):
        tidy(axes)
    trails = [
        left.plot([], [], linewidth=1.2, alpha=0.6, **_style(i))[0] for i in range(len(names))
    ]
    heads = [left.plot([], [], "o", color=PALETTE[i % 6], label=n)[0] for i, n in enumerate(names)]
    traces = [right.plot([], [], linewidth=1.8, **_style(i))[0] for i in range(len(names))]
    left.legend(frameon=False, fontsize=8, loc="upper right")
    images = []
    for time in np.unique(np.linspace(0, steps - 1, frames).round().astype(int)):
        for i, name in enumerate(names):
            trails[i].set_data(*paths[name][max(0, time - _TRAIL) : time + 1].T)
            heads[i].set_data(*paths[name][time : time + 1].T)
            if name in energies:
                traces[i].set_data(np.arange(time + 1), energies[name][: time + 1])
        canvas = figure.canvas
        assert isinstance(canvas, FigureCanvasAgg)
        canvas.draw()
        images.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    return images


def save_all(
    results: Results,
    setup: MeasurementSetup,
    folder: pathlib.Path,
    which: Collection[str] = COMPARISON,
) -> list[pathlib.Path]:
    """Writes `figures.json`, then pictures (PNG, one GIF) to `folder`; returns the paths.

    A picture that cannot be drawn is left out with a warning.

    Args:
      results: of `measure.compare_maps`.
      setup: theirs.
      folder: the destination.
      which: names among COMPARISON; energies need a map that has one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "figures.json", json_text(summarize(results)))
    results = dict(zip(plot_texts(results), results.values(), strict=True))
    drawn: dict[str, Callable[[], Any]] = {
        "energy.png": lambda: energy_picture(results, setup),
        "time_reversal.png": lambda: reversal_picture(results),
        "blob.png": lambda: blob_picture(results, setup),
        "structure.png": lambda: structure_picture(results),
        "covariance.png": lambda: covariance_picture(results),
        "orbit.gif": lambda: gif(orbit_frames(results, setup)),
    }
    if all(m.energy is None for m in results.values()):
        del drawn["energy.png"]
    chosen = {name: draw for name, draw in drawn.items() if name.partition(".")[0] in which}
    return [*save_pictures(folder, chosen), folder / "figures.json"]


def save_pictures(
    folder: pathlib.Path, drawn: Mapping[str, Callable[[], Any]]
) -> list[pathlib.Path]:
    """Draws pictures by file name, see `save_each`; warns of failures, returns what was drawn."""
    failed = save_each(folder, drawn, bbox_inches="tight")
    for name, reason in failed.items():
        _log.warning("%s could not be drawn (%s); the rest is written.", name, reason)
    return [folder / name for name in drawn if name not in failed]
