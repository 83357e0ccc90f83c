"""Section on the states' distribution: directions against the Gaussian, norms, and volume."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hjepa_jax.evaluation.distribution.norms import (
    PART_NAMES,
    NormHistogram,
    norm_histogram,
    parts_of,
)
from hjepa_jax.evaluation.distribution.slices import slice_discrepancy
from hjepa_jax.evaluation.distribution.volume import volume
from hjepa_jax.evaluation.page import charts
from hjepa_jax.evaluation.page.ink import REFERENCE, breakable, legend, swatch
from hjepa_jax.evaluation.page.tables import Row, table
from hjepa_jax.evaluation.page.text import escape, number
from hjepa_jax.evaluation.report.gallery import PictureInputs
from hjepa_jax.evaluation.report.plots import Axes, Metrics, Series
from hjepa_jax.methods.hjepa_settings import Loss

_NOTE = (
    "Of the test images on the maps. First, quantiles of their states along random directions, "
    "minus those of N(0, 1), which is what SIGReg sees: median and 10 to 90 % of the directions, "
    "beside as many numbers from N(0, 1). Then the same of their shape alone, and their norms "
    "beside those of standard Gaussian vectors (χ)."
)


def _slices(states: Mapping[str, np.ndarray], *, standardized: bool) -> str:
    """Returns a chart of every encoder's quantiles along random directions."""
    series = []
    for style, (name, rows) in enumerate(states.items()):
        found = slice_discrepancy(rows, standardized=standardized)
        x = found.gaussian.tolist()
        if not series:
            band = found.sample
            ends = band.low.tolist(), band.high.tolist()
            series.append(Series("N(0, 1)", x, band.median.tolist(), REFERENCE, *ends))
        band = found.states
        ends = band.low.tolist(), band.high.tolist()
        series.append(Series(name, x, band.median.tolist(), style, *ends))
    title = "Random directions, mean 0 and variance 1" if standardized else "Random directions"
    axes = Axes("quantile of N(0, 1)", "quantile − Gaussian", title)
    return charts.figure(series, axes)


def _norm_series(name: str, found: NormHistogram, style: int) -> Series:
    centers = (found.edges[1:] + found.edges[:-1]) / 2
    return Series(name, centers.tolist(), found.density.tolist(), style)


def _norms(parts: Mapping[str, Mapping[str, np.ndarray]], part: str) -> str:
    """Returns a chart of the norms of one part of the states."""
    found = {name: norm_histogram(own[part]) for name, own in parts.items()}
    series = [_norm_series(name, one, style) for style, (name, one) in enumerate(found.items())]
    reference = next(iter(found.values()))
    series.append(Series("χ", reference.x.tolist(), reference.chi.tolist(), REFERENCE))
    axes = Axes(f"|{part}| / √{reference.dim}", "density", f"Norms of the {PART_NAMES[part]}")
    return charts.figure(series, axes)


def _volumes(parts: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Returns a table of log-determinants and smallest eigenvalues."""
    rank, ridge = Loss().logdet_dim, Loss().logdet_eps
    rows = []
    for style, (name, own) in enumerate(parts.items()):
        for part, states in own.items():
            found = volume(states, rank, ridge)
            cells = [number(found.logdet), number(found.smallest), str(found.rank)]
            rows.append(Row(f"{swatch(style)}{breakable(name)}: {PART_NAMES[part]}", cells))
    heads = ["covariance in k random directions", "log det / k", "smallest eigenvalue", "k"]
    note = f"A collapse lowers both; {ridge:g} is added to every eigenvalue."
    return table("Volume", heads, rows, narrow=True) + f'<p class="note">{note}</p>'


def distribution(metrics: Metrics, inputs: PictureInputs) -> str:
    """Returns the section of the states' distribution, for every encoder."""
    states = {name: one.states for name, one in inputs.encoders.items()}
    # Only states with halves have accuracies of q, p and both, or are evaluated in part.
    split = any(
        "state_parts" in one or one["state_part"] in ("q", "p")
        for one in metrics["encoders"].values()
    )
    parts = {name: parts_of(rows, split) for name, rows in states.items()}
    names = legend(
        [*((name, style) for style, name in enumerate(states)), ("standard Gaussian", REFERENCE)]
    )
    drawn = [_slices(states, standardized=one) for one in (False, True)]
    drawn += [_norms(parts, part) for part in next(iter(parts.values()))]
    return (
        f'<p class="note">{escape(_NOTE)}</p>{names}<div class="grid">{"".join(drawn)}</div>'
        f"{_volumes(parts)}"
    )
