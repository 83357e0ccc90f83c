"""Figures comparing methods over seeds: kNN sweep, spectra and training curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

from hjepa_jax.evaluation.report import plots
from hjepa_jax.evaluation.report.figures import (
    draw_series,
    new_figure,
    styles_of,
    tidy,
)
from hjepa_jax.storage.metrics_file import Curve

Metrics = Mapping[str, Mapping[int, Mapping[str, Any]]]
Curves = Mapping[str, Mapping[int, Mapping[str, Curve]]]
# Logged metrics to draw: tag -> title; methods that lack a metric are left out of its panel.
_CURVES = {
    "loss/total": "total loss",
    "loss/prediction": "prediction loss",
    "optim/gradient_norm": "gradient norm before clipping",
    "state/q_participation_ratio": "participation ratio of q / k",
    "state/q_std_min": "smallest std of q",
    "method/potential_variance": "variance of the potential",
}


def _encoders(metrics: Metrics) -> dict[str, list[Mapping[str, Any]]]:
    """Returns row -> the encoder metrics of its seeds: methods, then the references."""
    rows = {
        method: [one["encoders"]["trained"] for one in by_seed.values()]
        for method, by_seed in metrics.items()
    }
    first = next(iter(metrics.values())).values()
    for name in ("random", "pixels"):
        found = [one["encoders"][name] for one in first if name in one["encoders"]]
        rows |= {name: found} if found else {}
    return rows


def _over_seeds(
    metrics: Metrics,
    titles: Mapping[str, str],
    line: Callable[[Any], plots.Line],
    *,
    geometric: bool = False,
) -> list[plots.Series]:
    return [
        plots.over_runs(titles[name], style, [line(one) for one in ones], geometric=geometric)
        for style, (name, ones) in enumerate(_encoders(metrics).items())
    ]


def _drawn(series: list[plots.Series], described: plots.Axes) -> Figure:
    figure = new_figure(7.0, 4.6)
    axes = figure.add_subplot()
    draw_series(axes, series, described)
    axes.set_title(f"{described.title} (bands: range over seeds)")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def knn_sweep(metrics: Metrics, titles: Mapping[str, str]) -> Figure:
    """Draws kNN top-1 accuracy over k: mean, and the range over seeds."""
    series = _over_seeds(metrics, titles, plots.knn_line)
    return _drawn(series, plots.knn_axes(series))


def spectra(metrics: Metrics, titles: Mapping[str, str]) -> Figure:
    """Draws covariance eigenvalues, relative to the largest, by rank: geometric mean and range."""
    series = _over_seeds(metrics, titles, plots.spectrum_line, geometric=True)
    return _drawn(series, plots.SPECTRUM_AXES)


def training_curves(curves: Curves, titles: Mapping[str, str]) -> Figure:
    """Draws logged metrics by step, mean and range over seeds, one panel per metric."""
    figure = new_figure(10.0, 5.6)
    panels = figure.subplots(2, 3)
    styles = styles_of(list(curves))
    for axes, (tag, title) in zip(panels.ravel(), _CURVES.items()):
        for method, by_seed in curves.items():
            found = plots.mean_curve([one[tag] for one in by_seed.values() if tag in one])
            if found is None:
                continue
            (steps, values), (low, high) = found
            style = {k: v for k, v in styles[method].items() if k != "marker"}
            axes.plot(steps, values, linewidth=1.5, label=titles[method], **style)
            axes.fill_between(steps, low, high, color=style["color"], alpha=0.15)
        axes.set_title(title, fontsize=10)
        if tag in ("optim/gradient_norm", "method/potential_variance"):
            axes.set_yscale("log")
        tidy(axes)
    for axes in panels[-1]:
        axes.set_xlabel("step")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def painters(
    metrics: Metrics, curves: Curves, titles: Mapping[str, str]
) -> dict[str, Callable[[], Figure]]:
    """Returns the function that draws each figure, by file name; needs at least one run."""
    return {
        "knn.png": lambda: knn_sweep(metrics, titles),
        "spectra.png": lambda: spectra(metrics, titles),
        "curves.png": lambda: training_curves(curves, titles),
    }
