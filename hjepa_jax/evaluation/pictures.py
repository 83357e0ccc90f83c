"""Pictures of an evaluation, drawn with matplotlib's object API (no global state, no display)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, ScalarFormatter

from hjepa_jax.evaluation.gallery import EncoderPictures, PictureInputs

# Okabe and Ito's colours, told apart under every common colour blindness.
BLUE, ORANGE, GREEN, PURPLE, SKY, BROWN = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#8C6510",
)
_ENCODER_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, BROWN)
_ENCODER_MARKERS = ("o", "s", "^", "D", "v", "P")
_LINE_STYLES = ("-", "--", "-.", ":", "-", "--")
# Classes differ by colour and by marker, so the map can be read without colours too.
_CLASS_COLOURS = (
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


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, which="major", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line style of each encoder, in order; repeated beyond six."""
    size = len(_ENCODER_COLOURS)
    return {
        name: {
            "color": _ENCODER_COLOURS[i % size],
            "marker": _ENCODER_MARKERS[i % size],
            "linestyle": _LINE_STYLES[i % size],
        }
        for i, name in enumerate(names)
    }


def spectra(metrics: Mapping[str, Any]) -> Figure:
    """Covariance eigenvalues against their rank, both logarithmic, each over its largest."""
    figure = _figure(6.4, 4.4)
    axes = figure.add_subplot()
    styles = _styles(list(metrics["encoders"]))
    for name, one in metrics["encoders"].items():
        covariance = one["diagnostics"]["covariance_spectrum_topq"]
        values = np.asarray(covariance["eigenvalues"])
        style = {k: v for k, v in styles[name].items() if k != "marker"}
        label = f"{name} (effective rank {covariance['effective_rank']:.1f})"
        if values.size and values[0] > 0:
            share = values[values > values[0] * 1e-12] / values[0]
            axes.loglog(np.arange(1, len(share) + 1), share, linewidth=2, label=label, **style)
    axes.set_xlabel("rank of the eigenvalue")
    axes.set_ylabel("eigenvalue / largest eigenvalue")
    axes.set_title("Covariance spectrum of training features")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.legend(frameon=False, loc="lower left")
    _tidy(axes)
    return figure


def knn_accuracy(metrics: Mapping[str, Any]) -> Figure:
    """kNN top-1 accuracy over k, with the level of chance."""
    figure = _figure(6.4, 4.4)
    axes = figure.add_subplot()
    styles = _styles(list(metrics["encoders"]))
    ks: set[int] = set()
    for name, one in metrics["encoders"].items():
        found = one["knn"]
        ks.update(found["k_values"])
        axes.plot(found["k_values"], found["top1"], linewidth=2, label=name, **styles[name])
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
    axes.set_xscale("log")
    axes.set_xticks(sorted(ks), [str(k) for k in sorted(ks)])
    axes.minorticks_off()
    axes.set_ylim(bottom=0.0, top=1.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("neighbours k")
    axes.set_ylabel("test top-1 accuracy")
    axes.set_title("k-nearest-neighbour accuracy")
    axes.legend(frameon=False, loc="best")
    _tidy(axes)
    return figure


def cosine_histogram(inputs: PictureInputs) -> Figure:
    """Distribution of cosine similarities of random pairs of test images."""
    figure = _figure(6.4, 4.0)
    axes = figure.add_subplot()
    styles = _styles(list(inputs.encoders))
    lowest = min(float(one.cosine.min()) for one in inputs.encoders.values())
    edges = np.linspace(min(lowest, 0.0), 1.0, 61)
    for name, one in inputs.encoders.items():
        colour = styles[name]["color"]
        # A value may exceed 1 by rounding and would fall out of the last bin.
        values = np.minimum(one.cosine, 1.0)
        label = f"{name} (mean {values.mean():.2f})"
        weights = np.full(len(values), 1.0 / len(values))
        axes.hist(values, edges, weights=weights, color=colour, alpha=0.25)
        axes.hist(
            values,
            edges,
            weights=weights,
            color=colour,
            histtype="step",
            linewidth=1.8,
            linestyle=styles[name]["linestyle"],
            label=label,
        )
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("cosine similarity")
    axes.set_ylabel("share of pairs")
    axes.set_title("Random pairs of test images")
    axes.legend(frameon=False, loc="best")
    _tidy(axes)
    return figure


def _principal_plane(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns coordinates [M, 2] on the first two principal axes and their shares of variance."""
    centred = features - features.mean(axis=0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    total = float(np.sum(np.square(singular)))
    plane = np.zeros((len(features), 2))
    plane[:, : min(2, len(singular))] = left[:, :2] * singular[:2]
    shares = np.zeros(2)
    if total > 0:
        shares[: min(2, len(singular))] = np.square(singular[:2]) / total
    return plane, shares


def _draw_map(axes: Axes, one: EncoderPictures, shown: Sequence[int], names: Sequence[str]) -> None:
    plane, shares = _principal_plane(one.features)
    others = ~np.isin(one.labels, shown)
    if others.any():
        axes.scatter(*plane[others].T, s=6, color="0.85", linewidths=0, label="other classes")
    for i, label in enumerate(shown):
        axes.scatter(
            *plane[one.labels == label].T,
            s=16,
            color=_CLASS_COLOURS[i],
            marker=_CLASS_MARKERS[i],
            linewidths=0,
            alpha=0.8,
            label=names[label],
        )
    axes.set_xlabel(f"first axis ({shares[0]:.0%} of variance)")
    axes.set_ylabel(f"second axis ({shares[1]:.0%})")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(False)


def feature_map(inputs: PictureInputs) -> Figure:
    """Test features on their first two principal axes; at most ten classes are coloured."""
    count = len(inputs.encoders)
    figure = _figure(4.4 * count + 1.4, 4.4)
    labels = next(iter(inputs.encoders.values())).labels
    shown = np.unique(labels)[:_MAX_MAP_CLASSES].tolist()
    panels = figure.subplots(1, count, squeeze=False)[0]
    for axes, (name, one) in zip(panels, inputs.encoders.items(), strict=True):
        _draw_map(axes, one, shown, inputs.class_names)
        axes.set_title(name)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside right center",
        frameon=False,
        markerscale=1.6,
        title="class",
    )
    figure.suptitle("Test features on their first two principal axes")
    return figure


def _draw_image(axes: Axes, image: np.ndarray, caption: str, colour: str, wide: bool) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(caption, fontsize=8, labelpad=2, color="black")
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(colour)
        spine.set_linewidth(3.5 if wide else 1.0)


def neighbours(inputs: PictureInputs) -> Figure:
    """Test images, and their nearest training images under each encoder.

    A neighbour of the query's class has a green (solid) frame and a tick, another a red one and a
    cross, so the picture can be read without colours.
    """
    queries = [int(q) for q in inputs.queries]
    columns = 1 + next(iter(inputs.encoders.values())).neighbours.shape[1]
    names = list(inputs.encoders)
    figure = _figure(0.95 * columns + 0.4, len(names) * (1.12 * len(queries) + 0.5) + 0.5)
    parts = np.atleast_1d(np.asarray(figure.subfigures(len(names), 1, squeeze=False)).ravel())
    for part, name in zip(parts, names, strict=True):
        part.suptitle(f"nearest training images: {name}", fontsize=11, fontweight="bold")
        grid = part.subplots(len(queries), columns, squeeze=False)
        for row, query in enumerate(queries):
            image, truth = inputs.test_images[query]
            _draw_image(grid[row, 0], image, f"query: {inputs.class_names[truth]}", "0.3", False)
            for column, index in enumerate(inputs.encoders[name].neighbours[row], 1):
                image, label = inputs.train_images[int(index)]
                right = label == truth
                caption = f"{'✓' if right else '✗'} {inputs.class_names[label]}"
                _draw_image(grid[row, column], image, caption, GREEN if right else ORANGE, True)
    return figure


def draw_all(metrics: Mapping[str, Any], inputs: PictureInputs) -> dict[str, Figure]:
    """Returns every picture by file name."""
    return {
        "spectrum.png": spectra(metrics),
        "knn.png": knn_accuracy(metrics),
        "cosine.png": cosine_histogram(inputs),
        "map.png": feature_map(inputs),
        "neighbours.png": neighbours(inputs),
    }
