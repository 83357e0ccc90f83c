"""Pictures of how states are distributed, a row for each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hjepa_jax.evaluation.distribution.norms import PART_NAMES, NormHistogram
from hjepa_jax.evaluation.distribution.slices import Band, SliceDiscrepancy
from hjepa_jax.evaluation.distribution.volume import Volume
from hjepa_jax.evaluation.report.figures import new_figure, tidy
from hjepa_jax.evaluation.report.plots import PALETTE
from hjepa_jax.storage.metrics_file import Curve

BLUE, ORANGE, GREEN = PALETTE[:3]
_GRAY = "0.55"
_PART_COLORS = {"q": BLUE, "p": ORANGE, "z": GREEN}


def _draw_band(axes: Axes, x: np.ndarray, band: Band, color: str, name: str, alpha: float) -> None:
    axes.fill_between(
        x, band.low, band.high, color=color, alpha=alpha, lw=0, label=f"{name}, 10–90%"
    )
    for end, label in ((band.lowest, f"{name}, extremes"), (band.highest, None)):
        axes.plot(x, end, color=color, linewidth=0.8, linestyle=":", label=label)
    axes.plot(x, band.median, color=color, linewidth=1.8, label=f"{name}, median")


def _draw_slices(axes: Axes, found: SliceDiscrepancy, title: str, name: str) -> None:
    _draw_band(axes, found.gaussian, found.sample, _GRAY, "Gaussian samples", 0.35)
    _draw_band(axes, found.gaussian, found.states, BLUE, "states", 0.25)
    axes.axhline(0.0, color="k", linewidth=0.6)
    own, sample = found.statistics()
    axes.set_title(
        f"{name}: {title}\nSIGReg statistic {own:.3g} (Gaussian samples {sample:.3g})",
        fontsize=10,
    )
    axes.set_xlabel("quantile of N(0, 1)")
    axes.set_ylabel("quantile along a direction − Gaussian")
    tidy(axes)


def slices_figure(found: Mapping[str, tuple[SliceDiscrepancy, SliceDiscrepancy]]) -> Figure:
    """Empirical minus Gaussian quantiles, raw and standardized.

    Args:
      found: the two of each run, by its name.
    """
    figure = new_figure(10.0, 3.9 * len(found) + 0.9)
    panels = figure.subplots(len(found), 2, squeeze=False)
    for row, (name, (raw, standardized)) in zip(panels, found.items(), strict=True):
        _draw_slices(row[0], raw, "as SIGReg sees it", name)
        _draw_slices(row[1], standardized, "shape (mean 0, variance 1)", name)
    first = next(iter(found.values()))[0]
    figure.suptitle(
        "Quantiles of {} states along {} random directions, minus those of the Gaussian".format(
            *first.columns.shape
        ),
        fontsize=11,
    )
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        frameon=False,
    )
    return figure


def _draw_norms(axes: Axes, part: str, found: NormHistogram, name: str) -> None:
    color = _PART_COLORS[part]
    axes.stairs(found.density, found.edges, fill=True, color=color, alpha=0.3)
    axes.stairs(found.density, found.edges, color=color, linewidth=1.6)
    axes.plot(found.x, found.chi, color="k", linewidth=1.2, linestyle="--")
    # A sharp peak far from the states would flatten them.
    top = 1.15 * max(found.density.max(), min(found.chi.max(), 3 * found.density.max()))
    axes.set_ylim(0, top)
    left = found.mean > 1
    # Beside the flank of the reference, where it has half its height.
    flank = 1 + (-1 if left else 1) * 1.2 / np.sqrt(2 * found.dim)
    axes.annotate(
        f"N(0, I) in {found.dim}\ndimensions (χ)",
        (flank, min(0.5 * float(found.chi.max()), 0.9 * top)),
        (-6 if left else 6, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        fontsize=8,
    )
    axes.set_title(
        f"{name}: {PART_NAMES[part]}\nmean {found.mean:.3g}, deviation {found.deviation:.2g}",
        fontsize=10,
    )
    low, high = axes.get_xlim()
    room = 0.25 * (high - low)
    axes.set_xlim(max(0.0, low - room) if left else low, high if left else high + room)
    axes.set_xlabel(f"|{part}| / √{found.dim}")
    axes.set_ylabel("density of states")
    tidy(axes)


def norms_figure(found: Mapping[str, Mapping[str, NormHistogram]]) -> Figure:
    """Histograms of the norms of q, p and z beside the chi distribution.

    Args:
      found: `norm_histograms` of each run, by its name.
    """
    columns = max(map(len, found.values()))
    figure = new_figure(3.7 * columns + 0.4, 3.3 * len(found) + 0.4)
    panels = figure.subplots(len(found), columns, squeeze=False)
    for row, (name, parts) in zip(panels, found.items(), strict=True):
        for axes in row[len(parts) :]:
            axes.set_visible(False)
        for axes, (part, one) in zip(row, parts.items(), strict=False):
            _draw_norms(axes, part, one, name)
    figure.suptitle(
        "Norms of states (filled) and of standard Gaussian vectors (dashed)", fontsize=11
    )
    return figure


class VolumeCurve(NamedTuple):
    """The volume of one part of a run's states over training.

    Attributes:
      part: 'q', 'p' or 'z'.
      logged: log-determinant of training batches, as logged; None if it was not.
      steps: of the checkpoints, ascending.
      volumes: of test images there.
      floor: the loss's floor of the log-determinant; None without one.
      ridge: what is added to every eigenvalue.
    """

    part: str
    logged: Curve | None
    steps: Sequence[int]
    volumes: Sequence[Volume]
    floor: float | None
    ridge: float


def _draw_volumes(left: Axes, right: Axes, curves: Sequence[VolumeCurve], name: str) -> None:
    for one in curves:
        color, shown = _PART_COLORS[one.part], PART_NAMES[one.part]
        if one.logged is not None:
            left.plot(
                *one.logged,
                color=color,
                linewidth=1.2,
                alpha=0.6,
                label=f"{one.part}, training batches",
            )
        left.plot(
            one.steps,
            [v.logdet for v in one.volumes],
            "o-",
            color=color,
            label=f"{one.part}, test images of checkpoints",
        )
        right.plot(one.steps, [v.smallest for v in one.volumes], "o-", color=color, label=shown)
    for floor in sorted({one.floor for one in curves if one.floor is not None}):
        _level(left, floor, f"floor of the loss: {floor:g}")
    _level(right, curves[0].ridge, f"ridge ε = {curves[0].ridge:g}: collapsed")
    left.set(xlabel="training step", ylabel="log det(C) / k")
    left.set_title(f"{name}: log-determinant per dimension", fontsize=10)
    right.set(xlabel="training step", ylabel="eigenvalue", yscale="log")
    right.set_title(f"{name}: smallest eigenvalue, test images", fontsize=10)
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
        tidy(axes)


def _level(axes: Axes, value: float, text: str) -> None:
    """Draws a horizontal line that is labeled at its end."""
    axes.axhline(value, color="0.4", linewidth=1, linestyle="--")
    axes.annotate(
        text,
        (1.0, value),
        (-2, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color="0.3",
    )


def volume_figure(found: Mapping[str, Sequence[VolumeCurve]]) -> Figure:
    """Log-determinant and smallest eigenvalue of C over training, see `volume`.

    Args:
      found: the curves of each run, by its name.
    """
    figure = new_figure(10.0, 3.7 * len(found) + 0.5)
    panels = figure.subplots(len(found), 2, squeeze=False)
    for row, (name, curves) in zip(panels, found.items(), strict=True):
        _draw_volumes(row[0], row[1], curves, name)
    rank = next(iter(found.values()))[0].volumes[0].rank
    figure.suptitle(
        f"Covariance C of states in k = {rank} random directions: both fall in a collapse",
        fontsize=11,
    )
    return figure
