"""Pictures of an evaluation, drawn with matplotlib's object API (no global state, no display)."""

from __future__ import annotations

import contextlib
import io
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from hjepa_jax.data.sources.base import NO_LABEL, has_label
from hjepa_jax.errors import first_line
from hjepa_jax.evaluation.report import plots
from hjepa_jax.evaluation.report.gallery import PictureInputs
from hjepa_jax.evaluation.report.text import LEGEND_LETTERS, plot_text
from hjepa_jax.storage.files import write_atomically

BLUE, ORANGE, GREEN, PURPLE, SKY, BROWN = plots.PALETTE
_ENCODER_MARKERS = ("o", "s", "^", "D", "v", "P")
_LINE_STYLES = ("-", "--", "-.", ":", "-", "--")
# Classes differ by color and by marker, so the map can be read without colors too.
CLASS_COLORS = (
    BLUE,
    ORANGE,
    GREEN,
    PURPLE,
    SKY,
    "#E69F00",
    "#000000",
    BROWN,
    "#882255",
    "#7F7F7F",
)
_CLASS_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_MAX_MAP_CLASSES = 10
_DPI = 150


def save_figure(figure: Figure, path: pathlib.Path, **options: Any) -> None:
    """Writes a figure as a PNG atomically; an existing link is replaced."""
    content = io.BytesIO()
    figure.savefig(content, format="png", **options)
    write_atomically(path, content.getvalue())


def new_figure(width: float, height: float, dpi: int = _DPI) -> Figure:
    """Returns an empty figure of a size in inches."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_each(
    folder: pathlib.Path, drawn: Mapping[str, Callable[[], Figure | bytes]], **options: Any
) -> dict[str, str]:
    """Draws every picture into a folder; an error affects only its own picture.

    Args:
      folder: the destination.
      drawn: file name -> function that draws the picture, or returns the file's content.
      **options: passed to matplotlib's `savefig`.

    Returns:
      The error of each picture that could not be drawn, in one line, by file name.
    """
    failed: dict[str, str] = {}
    for name, draw in drawn.items():
        try:
            picture = draw()
            if isinstance(picture, bytes):
                write_atomically(folder / name, picture)
            else:
                save_figure(picture, folder / name, **options)
        except Exception as error:  # from matplotlib, fonts, data that is read again, ...
            failed[name] = f"{type(error).__name__}: {first_line(error)}"
            # An old picture would pass for a new one.
            with contextlib.suppress(OSError):
                (folder / name).unlink(missing_ok=True)
    return failed


def tidy(axes: Axes) -> None:
    """Leaves two spines and a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, which="major", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def _style(number: int) -> dict[str, Any]:
    index = number % len(plots.PALETTE)
    return {
        "color": plots.PALETTE[index],
        "marker": _ENCODER_MARKERS[index],
        "linestyle": _LINE_STYLES[index],
    }


def styles_of(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Color, marker and line style of each encoder, in order; repeated beyond six."""
    return {name: _style(number) for number, name in enumerate(names)}


def draw_series(
    axes: Axes,
    series: Sequence[plots.Series],
    described: plots.Axes,
    *,
    marked: bool | None = None,
) -> None:
    """Draws lines and their bands, with markers if `marked`; None = if the ticks are at points."""
    marked = described.x_ticks is not None if marked is None else marked
    for one in series:
        if not len(one.x):
            continue
        style = _style(one.style)
        if not marked:
            del style["marker"]
        axes.plot(one.x, one.y, linewidth=2, label=one.name, **style)
        if one.low is not None and one.high is not None:
            axes.fill_between(one.x, one.low, one.high, color=style["color"], alpha=0.12)
    if described.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if described.log_y:
        axes.set_yscale("log")
    if described.x_ticks is not None:
        axes.set_xticks(described.x_ticks, [f"{tick:g}" for tick in described.x_ticks])
        axes.minorticks_off()
    if described.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(described.x_label)
    axes.set_ylabel(described.y_label)
    axes.set_title(described.title)
    tidy(axes)


def spectra(metrics: plots.Metrics) -> Figure:
    """Covariance eigenvalues relative to the largest, by rank, on logarithmic axes."""
    figure = new_figure(6.4, 4.4)
    axes = figure.add_subplot()
    series = []
    for style, (name, one) in enumerate(metrics["encoders"].items()):
        covariance = one["diagnostics"]["covariance_spectrum_topq"]
        rank, rankme = plots.numbers([covariance["effective_rank"], covariance["rankme"]])
        label = f"{plot_text(name)} (effective rank {rank:.1f}, RankMe {rankme:.1f})"
        series.append(plots.Series(label, *plots.spectrum_line(one), style))
    draw_series(axes, series, plots.SPECTRUM_AXES)
    axes.legend(frameon=False, loc="lower left")
    return figure


def knn_accuracy(metrics: plots.Metrics) -> Figure:
    """Draws kNN top-1 accuracy over k with 95% intervals, and the chance level."""
    figure = new_figure(6.4, 4.4)
    axes = figure.add_subplot()
    series = []
    for style, (name, one) in enumerate(metrics["encoders"].items()):
        intervals = [bounds or (math.nan, math.nan) for bounds in one["knn"]["top1_interval"]]
        low, high = zip(*intervals, strict=True)
        series.append(plots.Series(plot_text(name), *plots.knn_line(one), style, low, high))
    if metrics["num_classes"]:
        axes.axhline(1.0 / metrics["num_classes"], color="0.45", linewidth=1, linestyle=":")
        axes.annotate(
            "chance",
            (1.0, 1.0 / metrics["num_classes"]),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
            color="0.35",
        )
    draw_series(axes, series, plots.knn_axes(series))
    axes.set_ylim(bottom=0.0, top=1.0)
    axes.legend(frameon=False, loc="best")
    return figure


def cosine_histogram(inputs: PictureInputs) -> Figure:
    """Distribution of cosine similarities of random pairs of test images."""
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot()
    styles = styles_of(list(inputs.encoders))
    edges = plots.cosine_edges(one.cosine for one in inputs.encoders.values()).tolist()
    for name, one in inputs.encoders.items():
        color = styles[name]["color"]
        # A value may exceed 1 by rounding and would fall out of the last bin.
        values = np.minimum(one.cosine, 1.0)
        label = f"{plot_text(name)} (mean {values.mean():.2f})"
        weights = np.full(len(values), 1.0 / len(values))
        axes.hist(values, edges, weights=weights, color=color, alpha=0.25)
        axes.hist(
            values,
            edges,
            weights=weights,
            color=color,
            histtype="step",
            linewidth=1.8,
            linestyle=styles[name]["linestyle"],
            label=label,
        )
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(plots.COSINE_AXES.x_label)
    axes.set_ylabel(plots.COSINE_AXES.y_label)
    axes.set_title(plots.COSINE_AXES.title)
    axes.legend(frameon=False, loc="best")
    tidy(axes)
    return figure


def _draw_map(
    axes: Axes,
    plane: np.ndarray,
    labels: np.ndarray,
    shown: Sequence[int],
    names: Mapping[int, str],
) -> None:
    """Draws points [M, 2], with a color and a marker for each class in `shown`."""
    others = ~np.isin(labels, shown)
    if others.any():
        axes.scatter(*plane[others].T, s=6, color="0.85", linewidths=0, label="other classes")
    for i, label in enumerate(shown):
        axes.scatter(
            *plane[labels == label].T,
            s=13,
            color=CLASS_COLORS[i],
            marker=_CLASS_MARKERS[i],
            linewidths=0,
            alpha=0.8,
            label=names[label],
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(False)


def feature_map(inputs: PictureInputs) -> Figure:
    """Test features on their first two principal axes, and by t-SNE below.

    At most ten classes are colored; unlabeled images are drawn as other classes.
    """
    count = len(inputs.encoders)
    labels = next(iter(inputs.encoders.values())).labels
    shown = np.unique(labels[has_label(labels)])[:_MAX_MAP_CLASSES].tolist()
    names = {label: plot_text(inputs.class_names[label], LEGEND_LETTERS) for label in shown}
    longest = max(map(len, names.values()), default=0)
    # The legend must not shrink the maps.
    figure = new_figure(3.4 * count + max(1.2, 0.6 + 0.1 * longest), 6.8)
    panels = figure.subplots(2, count, squeeze=False)
    for (above, below), (name, one) in zip(panels.T, inputs.encoders.items(), strict=True):
        found = one.principal
        _draw_map(above, found.project(one.features), one.labels, shown, names)
        above.set_title(f"{plot_text(name)}: principal axes")
        above.set_xlabel(f"first axis ({found.shares[0]:.0%} of variance)")
        above.set_ylabel(f"second axis ({found.shares[1]:.0%})")
        _draw_map(below, one.tsne, one.labels, shown, names)
        below.set_title(f"{plot_text(name)}: t-SNE")
        below.set_xlabel("only neighborhoods are meaningful")
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(),
        loc="outside right center",
        frameon=False,
        markerscale=1.6,
        title="class",
    )
    return figure


def class_name(names: Sequence[str], label: int) -> str:
    """Returns the class name of a label, or 'no label' for -1."""
    return "no label" if label == NO_LABEL else names[label]


def short_name(name: str) -> str:
    """Truncates a class name to fit under a small image."""
    return plot_text(name, 13)


def _draw_row(axes: Axes, top: float, tiles: Sequence[tuple[np.ndarray, str, str | None]]) -> None:
    """Draws images of side 1 side by side, each with a caption and a frame color."""
    for column, (image, caption, color) in enumerate(tiles):
        left = 1.1 * column
        axes.imshow(image, extent=(left, left + 1, top + 1, top), interpolation="nearest")
        frame = Rectangle((left, top), 1, 1, fill=False, linewidth=3 if color else 1)
        frame.set_edgecolor(color or "0.3")
        axes.add_patch(frame)
        axes.text(left + 0.5, top + 1.05, caption, fontsize=8, ha="center", va="top")


def neighbors(inputs: PictureInputs) -> Figure:
    """Test images, and their nearest training images under each encoder.

    Neighbors of the query's class have a green frame and a check mark, others an orange frame and a
    cross, so the picture can be read without colors.
    """
    names, classes = list(inputs.encoders), inputs.class_names
    columns = 1 + inputs.encoders[names[0]].neighbors.shape[1]
    width, height = 1.1 * columns, 1.35 * len(inputs.queries)
    figure = new_figure(width, len(names) * (height + 0.6))
    panels = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        for row, query in enumerate(inputs.queries):
            image, truth = inputs.test_images[int(query)]
            tiles: list[tuple[np.ndarray, str, str | None]] = [
                (image, short_name(class_name(classes, truth)), None)
            ]
            for index in inputs.encoders[name].neighbors[row]:
                image, label = inputs.train_images[int(index)]
                caption = short_name(class_name(classes, label))
                if NO_LABEL in (label, truth):
                    tiles.append((image, caption, None))
                    continue
                mark, color = ("✓", GREEN) if label == truth else ("✗", ORANGE)
                tiles.append((image, f"{mark} {caption}", color))
            _draw_row(axes, 1.35 * row, tiles)
        axes.set_xlim(-0.05, width)
        axes.set_ylim(height, -0.05)
        axes.set_aspect("equal")
        axes.axis("off")
        title = f"{plot_text(name)}: test image, then its nearest training images"
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    return figure
