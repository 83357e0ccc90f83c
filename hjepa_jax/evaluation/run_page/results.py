"""Sections of numbers: headline figures, accuracies of parts, and properties of features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from hjepa_jax.evaluation.page import charts
from hjepa_jax.evaluation.page.ink import REFERENCE, breakable, legend, swatch
from hjepa_jax.evaluation.page.tables import Row, head, table
from hjepa_jax.evaluation.page.text import escape, shown
from hjepa_jax.evaluation.report import plots, tables
from hjepa_jax.evaluation.report.gallery import PictureInputs
from hjepa_jax.evaluation.report.plots import Metrics
from hjepa_jax.evaluation.report.summary import (
    ACCURACIES,
    FIGURES,
    headline,
    headline_intervals,
    titles,
)

_FIT_AXES = plots.Axes("step of the fit", "SIGReg of H^{1/2} z", "Fit of H", log_y=True)
_ENVELOPE_AXES = plots.Axes(
    "radial bin, from low to high frequency",
    "eigenvalue / smallest eigenvalue",
    "Spectrum of the fitted H",
    log_y=True,
)
_TILES = ("knn", "probe_top1", "effective_rank", "uniformity")


def _columns(metrics: Metrics) -> dict[str, str]:
    """Returns the titles of the headline figures that some encoder has."""
    encoders, k = metrics["encoders"].values(), metrics["headline_k"]
    found = [headline(one, k) for one in encoders]
    names = titles(next(iter(encoders)), k)
    return {
        name: title
        for name, title in names.items()
        if any(math.isfinite(figures.get(name, math.nan)) for figures in found)
    }


def _figure(name: str, value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return shown(math.nan, 0)
    figure = FIGURES[name]
    return shown(figure.factor * value, figure.digits, signed=signed)


def _interval(low_high: Sequence[float] | None) -> str:
    """Returns a 95% interval in percent, rounded outward; '' for none."""
    if low_high is None:
        return ""
    low, high = (100 * bound for bound in low_high)
    return f"{math.floor(low)}–{math.ceil(high)}"


def _tiles(metrics: Metrics) -> str:
    """Returns the main figures of the trained encoder, large, with those of the random one."""
    encoders, k, columns = metrics["encoders"], metrics["headline_k"], _columns(metrics)
    if "trained" not in encoders:
        return ""
    figures, bounds = headline(encoders["trained"], k), headline_intervals(encoders["trained"], k)
    parts = []
    for name in _TILES:
        if name not in columns or not math.isfinite(figures[name]):
            continue
        notes = [f"95 % interval {_interval(bounds[name])}"] if bounds.get(name) else []
        if "random" in encoders:
            notes.append(f"random: {_figure(name, headline(encoders['random'], k)[name])}")
        unit = " %" if name in ACCURACIES else ""
        text = "".join(f"<small>{note}</small>" for note in notes)
        title, value = escape(columns[name].removesuffix(" %")), _figure(name, figures[name])
        parts.append(f'<div class="tile">{title}<b>{value}{unit}</b>{text}</div>')
    return f'<div class="tiles">{"".join(parts)}</div>' if parts else ""


def _headline_table(metrics: Metrics) -> str:
    """Returns one row for each encoder, and trained minus random."""
    k, columns = metrics["headline_k"], _columns(metrics)
    rows = []
    for style, (name, one) in enumerate(metrics["encoders"].items()):
        figures, bounds = headline(one, k), headline_intervals(one, k)
        cells = []
        for column in columns:
            interval = _interval(bounds.get(column))
            text = f"<b>{_figure(column, figures.get(column))}</b>"
            cells.append(f'{text}<div class="difference">{interval}</div>' if interval else text)
        rows.append(Row(f"{swatch(style)}{breakable(name)}", cells))
    for title, key in tables.DIFFERENCES.items():
        difference = metrics.get(key)
        if difference:
            cells = [_figure(column, difference.get(column), signed=True) for column in columns]
            rows.append(Row(escape(title.replace(" - ", " − ")), cells, "total"))
    heads = ["encoder", *map(head, columns.values())]
    return table("Headline figures", heads, rows)


def _explanation(metrics: Metrics) -> str:
    """Returns what the columns mean."""
    sentences = [tables.ON_STATES]
    if set(_columns(metrics)) & set(ACCURACIES):
        sentences.insert(0, tables.ON_ACCURACIES)
    return f'<p class="note">{escape(" ".join(sentences))}</p>'


def results(metrics: Metrics) -> str:
    """Returns the section of the headline figures."""
    return f"{_tiles(metrics)}{_headline_table(metrics)}{_explanation(metrics)}"


def _text_table(label: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of texts, in which an interval in parentheses is small."""
    lines = []
    for name, *cells in rows:
        parts = (escape(cell).partition(" (") for cell in cells)
        lines.append(
            Row(
                breakable(name),
                [f"{value} <small>({rest}</small>" if rest else value for value, _, rest in parts],
            )
        )
    return table(label, [head(title) for title in heads], lines, narrow=True)


def state_parts(metrics: Metrics) -> str:
    """Returns the accuracies of q, p and both; '' if they were not measured."""
    k = tables.used_k(metrics)
    heads = ["part of the state", f"kNN@{k}", "probe top-1", "probe top-5"]
    return _text_table("Parts of the state", heads, tables.state_part_rows(metrics))


def posthoc(metrics: Metrics) -> str:
    """Returns what was fitted as H, with loss and spectrum of the fit; '' if nothing was."""
    rows = tables.posthoc_rows(metrics)
    if not rows:
        return ""
    note = f'<p class="note">{escape(tables.ON_POSTHOC)}</p>'
    fitted = [
        (style, name, one["posthoc"])
        for style, (name, one) in enumerate(metrics["encoders"].items())
        if "losses" in one.get("posthoc", {})
    ]
    losses = [
        plots.Series(name, list(range(1, len(y) + 1)), y, style)
        for style, name, found in fitted
        for y in [found["losses"]]
    ]
    envelopes = [
        plots.Series(name, list(range(1, len(y) + 1)), [math.exp(value) for value in y], style)
        for style, name, found in fitted
        for y in [found["log_envelope"]]
    ]
    if fitted:
        ends = [1, max(len(one.x) for one in losses)]
        value = fitted[0][2]["sigreg_gaussian"]
        losses.append(plots.Series("an isotropic Gaussian", ends, [value] * 2, REFERENCE))
    drawn = charts.figure(losses, _FIT_AXES) + charts.figure(envelopes, _ENVELOPE_AXES)
    names = legend((name, style) for style, name, _ in fitted) if fitted else ""
    grid = f'{names}<div class="grid">{drawn}</div>' if drawn else ""
    return f"{_text_table('Post-hoc H', tables.POSTHOC_HEADS, rows)}{note}{grid}"


def extra(metrics: Metrics) -> str:
    """Returns the accuracies of the optional tests; '' if they were not measured."""
    k = tables.used_k(metrics)
    heads = ["test", f"kNN@{k}", "probe top-1"]
    return _text_table("Optional tests", heads, tables.extra_rows(metrics))


def extraction(metrics: Metrics) -> str:
    """Returns the table of the time that features took."""
    return _text_table("Feature extraction", tables.EXTRACTION, tables.extraction_rows(metrics))


def _knn(metrics: Metrics) -> str:
    """Returns the chart of kNN accuracy over k, with intervals and chance; '' without any."""
    series = []
    for style, (name, one) in enumerate(metrics["encoders"].items()):
        bounds = one["knn"].get("top1_interval") or []
        pairs = [pair or (math.nan, math.nan) for pair in bounds]
        x, y = plots.knn_line(one)
        whole = len(pairs) == len(x)
        low, high = ([pair[i] for pair in pairs] for i in (0, 1))
        series.append(
            plots.Series(name, x, y, style, low if whole else None, high if whole else None)
        )
    if not any(math.isfinite(y) for one in series for y in one.y):
        return ""
    axes, count = plots.knn_axes(series), metrics["num_classes"]
    if count:
        ends = [min(axes.x_ticks or [1]), max(axes.x_ticks or [1])]
        series.append(plots.Series("chance", ends, [1 / count] * 2, REFERENCE))
    return charts.figure(series, axes)


def _spectra(encoders: Mapping[str, Metrics]) -> str:
    series = [
        plots.Series(name, *plots.spectrum_line(one), style)
        for style, (name, one) in enumerate(encoders.items())
    ]
    return charts.figure(series, plots.SPECTRUM_AXES)


def _cosines(inputs: PictureInputs) -> str:
    found = {name: one.cosine for name, one in inputs.encoders.items()}
    edges = plots.cosine_edges(found.values())
    centers = ((edges[1:] + edges[:-1]) / 2).tolist()
    series = []
    for style, (name, values) in enumerate(found.items()):
        counts, _ = np.histogram(np.minimum(values, 1.0), edges)
        series.append(plots.Series(name, centers, (counts / max(len(values), 1)).tolist(), style))
    return charts.figure(series, plots.COSINE_AXES)


def features(metrics: Metrics, inputs: PictureInputs | None) -> str:
    """Returns the charts of kNN accuracy, spectrum and cosine similarities."""
    encoders = metrics["encoders"]
    drawn = _knn(metrics) + _spectra(encoders) + (_cosines(inputs) if inputs else "")
    names = legend((name, style) for style, name in enumerate(encoders))
    return f'{names}<div class="grid">{drawn}</div>' if drawn else ""
