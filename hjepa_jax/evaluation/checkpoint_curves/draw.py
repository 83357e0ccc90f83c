"""Curves of headline figures over the training, as charts of a page and as a picture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from hjepa_jax.errors import counted
from hjepa_jax.evaluation.checkpoint_curves.stored import Evaluations, Point
from hjepa_jax.evaluation.page import charts
from hjepa_jax.evaluation.page.ink import legend
from hjepa_jax.evaluation.report import plots
from hjepa_jax.evaluation.report.figures import draw_series, new_figure
from hjepa_jax.evaluation.report.summary import FIGURES
from hjepa_jax.evaluation.report.text import plot_text

_COLUMNS = 3


@dataclasses.dataclass(frozen=True)
class CurveGroup:
    """Runs that are drawn as one curve; `style` selects its color."""

    name: str
    style: int
    runs: Sequence[Evaluations]

    @property
    def label(self) -> str:
        """The name, with the number of seeds if there are several."""
        many = len(self.runs) > 1
        return f"{self.name} ({counted(len(self.runs), 'seed')})" if many else self.name


class Over(NamedTuple):
    """What a curve is drawn over: the label of the axis, and the position of a checkpoint."""

    label: str
    at: Callable[[Point], float | None]


EPOCHS = Over("epoch", lambda point: point.epoch)
STEPS = Over("step", lambda point: float(point.step))


def titles_of(groups: Sequence[CurveGroup]) -> dict[str, str]:
    """Returns the titles of the figures of which some run has a value, in their order."""
    runs = [run for group in groups for run in group.runs]
    titles = runs[0].titles if runs else {}
    return {
        name: title
        for name, title in titles.items()
        if any(
            math.isfinite(point.figures.get(name, math.nan)) for run in runs for point in run.points
        )
    }


def series_of(groups: Sequence[CurveGroup], figure: str, over: Over) -> list[plots.Series]:
    """Returns a series for each group that has a figure.

    That of several runs is their mean at the checkpoints that all of them have, with a band from
    the lowest to the highest.
    """
    found = []
    for group in groups:
        lines = [line for run in group.runs if (line := _line(run, figure, over))[0]]
        if lines:
            found.append(plots.over_runs(group.label, group.style, lines))
    return found


def _line(run: Evaluations, figure: str, over: Over) -> plots.Line:
    """Returns the points of a run at which a figure is known."""
    known = [
        (x, y)
        for point in run.points
        if (x := over.at(point)) is not None
        and math.isfinite(y := point.figures.get(figure, math.nan))
    ]
    return [x for x, _ in known], [y for _, y in known]


def _axes(figure: str, title: str, over: Over) -> plots.Axes:
    percent = FIGURES[figure].factor != 1
    return plots.Axes(over.label, title=title.removesuffix(" %"), percent=percent)


def _grid(groups: Sequence[CurveGroup], over: Over) -> str:
    """Returns a chart of each figure; '' if there is nothing to draw."""
    drawn = "".join(
        charts.figure(series_of(groups, name, over), _axes(name, title, over))
        for name, title in titles_of(groups).items()
    )
    return f'<div class="grid">{drawn}</div>' if drawn else ""


def _named(groups: Sequence[CurveGroup]) -> bool:
    """Returns whether there are several runs, which must be named."""
    return sum(len(group.runs) for group in groups) > 1


def curves_over_training(groups: Sequence[CurveGroup]) -> str:
    """Returns the charts of all figures over epochs, and folded over steps; '' if there is none."""
    by_epoch, by_step = _grid(groups, EPOCHS), _grid(groups, STEPS)
    if not by_epoch and not by_step:
        return ""
    # The only run of a page has its title.
    names = legend((group.label, group.style) for group in groups) if _named(groups) else ""
    if not by_epoch:  # imported runs do not say how long an epoch is
        return names + by_step
    return f"{names}{by_epoch}<details><summary>Over steps</summary>{by_step}</details>"


def picture(groups: Sequence[CurveGroup]) -> Figure:
    """Returns all figures over epochs (over steps where these are unknown) as one picture."""
    over = EPOCHS if _grid(groups, EPOCHS) else STEPS
    shown = titles_of(groups)
    columns = min(_COLUMNS, max(len(shown), 1))
    rows = -(-max(len(shown), 1) // columns)
    figure = new_figure(4.4 * columns, 3.2 * rows + 0.4)
    named = [dataclasses.replace(group, name=plot_text(group.name)) for group in groups]
    for number, (name, title) in enumerate(shown.items(), 1):
        axes = figure.add_subplot(rows, columns, number)
        series = series_of(named, name, over)
        # Points are marked where they are few.
        marked = len({x for one in series for x in one.x}) <= 16
        draw_series(axes, series, _axes(name, title, over), marked=marked)
    if figure.axes and _named(groups):
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure
