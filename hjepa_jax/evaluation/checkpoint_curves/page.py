"""The curves of one or several runs' checkpoints as a page, a picture, and tables of numbers."""

from __future__ import annotations

import csv
import io
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from hjepa_jax.errors import counted
from hjepa_jax.evaluation.checkpoint_curves import draw
from hjepa_jax.evaluation.checkpoint_curves.draw import CurveGroup
from hjepa_jax.evaluation.checkpoint_curves.stored import Evaluations, Point
from hjepa_jax.evaluation.compare.runs import by_seed
from hjepa_jax.evaluation.page.document import Section, document, warning
from hjepa_jax.evaluation.page.ink import breakable, swatch
from hjepa_jax.evaluation.page.tables import Row, facts, head, table
from hjepa_jax.evaluation.page.text import NOTHING, escape, shown
from hjepa_jax.evaluation.report.figures import save_each
from hjepa_jax.evaluation.report.summary import FIGURES
from hjepa_jax.storage.files import json_text

PAGE = "curves.html"
# Longer tables are folded.
_ROWS_SHOWN = 24


class CurveRun(NamedTuple):
    """A run: its name, its flat configuration, and its evaluated checkpoints."""

    name: str
    config: Mapping[str, object]
    evaluations: Evaluations


def _drawn(groups: Mapping[str, Sequence[CurveRun]]) -> list[CurveGroup]:
    return [
        CurveGroup(name, style, [run.evaluations for run in runs])
        for style, (name, runs) in enumerate(groups.items())
    ]


def _warnings(groups: Mapping[str, Sequence[CurveRun]]) -> Iterator[str]:
    """Yields what makes curves hard to compare, or incomplete."""
    runs = [run for found in groups.values() for run in found]
    settings = [run.evaluations.settings for run in runs]
    names = sorted({name for one in settings for name in one})
    differing = [n for n in names if len({json.dumps(one.get(n)) for one in settings}) > 1]
    if differing:
        yield f"These runs were evaluated with different settings: {', '.join(differing)}."
    devices = sorted({device for run in runs for device in run.evaluations.devices})
    if len(devices) > 1:
        yield (
            f"Checkpoints were evaluated on different devices ({', '.join(devices)}), which round "
            "differently."
        )
    for reason in dict.fromkeys(run.evaluations.reason for run in runs):
        if reason:
            yield f"No accuracy: {reason}"
    for name, found in groups.items():
        steps = [{point.step for point in run.evaluations.points} for run in found]
        left = len(set.union(*steps)) - len(set.intersection(*steps))
        if left:
            yield (
                f"{name}: {counted(left, 'checkpoint is', 'checkpoints are')} left out of the mean "
                "and its band, as not all of its seeds have them."
            )


def _cells(point: Point, figures: Sequence[str]) -> list[str]:
    cells = [NOTHING if point.epoch is None else f"{point.epoch:.4g}"]
    for name in figures:
        figure = FIGURES[name]
        value = figure.factor * point.figures.get(name, math.nan)
        cells.append(shown(value, figure.digits))
    return cells


def _numbers(groups: Mapping[str, Sequence[CurveRun]]) -> str:
    """Returns a table with a row for each checkpoint."""
    titles, rows = draw.titles_of(_drawn(groups)), []
    several = sum(map(len, groups.values())) > 1
    for style, runs in enumerate(groups.values()):
        for run in runs:
            name = f"{swatch(style)}{breakable(run.name)} " if several else ""
            rows += [
                Row(f"{name}step {point.step}", _cells(point, [*titles]))
                for point in run.evaluations.points
            ]
    heads = ["", "epoch", *map(head, titles.values())]
    found = table("Figures of each checkpoint", heads, rows)
    if len(rows) <= _ROWS_SHOWN:
        return found
    return f"<details><summary>{counted(len(rows), 'checkpoint')}</summary>{found}</details>"


def _evaluated(groups: Mapping[str, Sequence[CurveRun]]) -> str:
    runs = [run for found in groups.values() for run in found]
    where = {run.name: str(run.evaluations.folder) for run in runs}
    settings = facts(runs[0].evaluations.settings)
    return (
        f"{facts(where)}<details><summary>settings of the evaluation</summary>{settings}</details>"
    )


def page(runs: Sequence[CurveRun]) -> str:
    """Returns the page as HTML."""
    groups = by_seed(runs)
    note = "Frozen features of every checkpoint, evaluated alike; step 0 is the initialization."
    if any(len(found) > 1 for found in groups.values()):
        note += (
            " Runs that differ only in their seed are one curve: the mean over seeds, with a band "
            "from the lowest to the highest."
        )
    intro = f'<p class="note">{escape(note)}</p>{"".join(map(warning, _warnings(groups)))}'
    title = f"Checkpoints of {runs[0].name}" if len(runs) == 1 else "Checkpoints of several runs"
    sections = [
        Section("Over the training", draw.curves_over_training(_drawn(groups))),
        Section("Numbers", _numbers(groups)),
        Section("What was evaluated", _evaluated(groups)),
    ]
    return document(title, intro, sections)


def _rows(groups: Mapping[str, Sequence[CurveRun]]) -> Iterator[dict[str, object]]:
    """Yields the figures of each checkpoint, accuracies as shares."""
    for name, runs in groups.items():
        for run in runs:
            for point in run.evaluations.points:
                known = {
                    figure: None if math.isnan(value) else value
                    for figure, value in point.figures.items()
                }
                place = {"step": point.step, "epoch": point.epoch}
                yield {"group": name, "run": run.name, **place, **known}


def _csv(groups: Mapping[str, Sequence[CurveRun]]) -> str:
    text, rows = io.StringIO(), list(_rows(groups))
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _json(groups: Mapping[str, Sequence[CurveRun]]) -> str:
    runs = [run for found in groups.values() for run in found]
    settings = {run.name: run.evaluations.settings for run in runs}
    return json_text({"checkpoints": list(_rows(groups)), "settings": settings})


def write_curves(runs: Sequence[CurveRun], out: pathlib.Path) -> dict[str, str]:
    """Writes the page, the picture, and the numbers as CSV and JSON into a folder.

    Args:
      runs: the runs, with at least one evaluated checkpoint each.
      out: the folder.

    Returns:
      The error of each file that could not be written, in one line, by its name.
    """
    groups = by_seed(runs)
    return save_each(
        out,
        {
            "curves.json": lambda: _json(groups).encode(),
            "curves.csv": lambda: _csv(groups).encode(),
            "curves.png": lambda: draw.picture(_drawn(groups)),
            PAGE: lambda: page(runs).encode(),
        },
    )
