"""Data of the plots of accuracies, spectra and curves, for any way of drawing them."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from hjepa_jax.storage.metrics_file import Curve

# Okabe and Ito's colors, distinguishable under every common color blindness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#8C6510")
# What `metrics.json` says, of all encoders or of one.
Metrics: TypeAlias = Mapping[str, Any]
# Points (x, y) of one run.
Line = tuple[list[float], list[float]]
# Eigenvalues below this share of the largest are rounding errors.
_SMALLEST_SHARE = 1e-12


@dataclasses.dataclass(frozen=True)
class Series:
    """A line: points (x, y), optionally with a band low..high; `style` selects color and dashes."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclasses.dataclass(frozen=True)
class Axes:
    """Title, labels and scales of a plot; `x_ticks` replaces the automatic ticks."""

    x_label: str
    y_label: str = ""
    title: str = ""
    log_x: bool = False
    log_y: bool = False
    percent: bool = False
    x_ticks: Sequence[float] | None = None


SPECTRUM_AXES = Axes(
    "rank of the eigenvalue",
    "eigenvalue / largest eigenvalue",
    "Covariance spectrum of training features",
    log_x=True,
    log_y=True,
)
COSINE_AXES = Axes(
    "cosine similarity", "share of pairs", "Random pairs of test images", percent=True
)


def cosine_edges(similarities: Iterable[npt.NDArray[np.floating]]) -> npt.NDArray[np.float64]:
    """Returns the edges of the bins for cosine similarities, at least from 0 to 1."""
    lowest = min(float(one.min()) for one in similarities)
    return np.linspace(min(lowest, 0.0), 1.0, 61)


def knn_axes(series: Iterable[Series]) -> Axes:
    """Returns the axes for kNN accuracy, with a tick at every k of the series."""
    return Axes(
        "neighbors k",
        "test top-1 accuracy",
        "k-nearest-neighbor accuracy",
        log_x=True,
        percent=True,
        x_ticks=sorted({k for one in series for k in one.x}),
    )


def numbers(values: Iterable[float | None]) -> list[float]:
    """Returns numbers from metrics.json; null becomes NaN, which is not drawn."""
    return [math.nan if value is None else value for value in values]


def knn_line(encoder: Metrics) -> Line:
    """Returns the top-1 accuracies over k in an encoder's metrics."""
    return encoder["knn"]["k_values"], numbers(encoder["knn"]["top1"])


def spectrum_line(encoder: Metrics) -> Line:
    """Returns the eigenvalues over the largest one, by rank; empty for a collapsed encoder."""
    values = numbers(encoder["diagnostics"]["covariance_spectrum_topq"]["eigenvalues"])
    if not values or not values[0] > 0:
        return [], []
    shares = [value / values[0] for value in values if value > values[0] * _SMALLEST_SHARE]
    return [float(rank) for rank in range(1, len(shares) + 1)], shares


def over_runs(name: str, style: int, lines: Sequence[Line], *, geometric: bool = False) -> Series:
    """Returns the mean of several runs' lines at their common x, with the range of the runs.

    Args:
      name: label of the series.
      style: number that selects color and dashes.
      lines: one per run.
      geometric: whether the mean is geometric, which suits a logarithmic y axis.
    """
    mean = statistics.geometric_mean if geometric else statistics.mean
    common = sorted(set.intersection(*(set(x) for x, _ in lines)))
    columns = [[dict(zip(x, y, strict=True))[at] for x, y in lines] for at in common]
    many = len(lines) > 1
    return Series(
        name,
        common,
        [mean(column) for column in columns],
        style,
        [min(column) for column in columns] if many else None,
        [max(column) for column in columns] if many else None,
    )


def mean_curve(
    curves: Sequence[Curve], max_points: int = 300
) -> tuple[Curve, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]] | None:
    """Returns the mean over runs at their common steps, and the (lowest, highest) of the runs.

    More than `max_points` steps are averaged in equal blocks. None without a common step.
    """
    if not curves:
        return None
    steps = curves[0][0]
    for other, _ in curves[1:]:
        steps = np.intersect1d(steps, other)
    if not len(steps):
        return None
    values = np.stack([y[np.isin(x, steps)] for x, y in curves])
    block = -(-len(steps) // max_points)
    edges = np.arange(0, len(steps), block)
    sizes = np.diff(np.append(edges, len(steps)))
    values = np.add.reduceat(values, edges, axis=1) / sizes
    middle = np.add.reduceat(steps, edges) / sizes
    return (middle.astype(np.int64), values.mean(axis=0)), (values.min(axis=0), values.max(axis=0))
