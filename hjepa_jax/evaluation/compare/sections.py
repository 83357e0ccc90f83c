"""Tables and charts of a comparison page, each a function of groups of runs to HTML."""

from __future__ import annotations

import base64
import logging
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hjepa_jax.evaluation.checkpoint_curves.draw import CurveGroup, curves_over_training
from hjepa_jax.evaluation.checkpoint_curves.stored import by_common_protocol
from hjepa_jax.evaluation.compare.runs import (
    Group,
    RunResult,
    bootstrap_difference,
    differing_fields,
)
from hjepa_jax.evaluation.page import charts, curves
from hjepa_jax.evaluation.page.ink import REFERENCE, breakable, legend, swatch
from hjepa_jax.evaluation.page.tables import Row, head, table
from hjepa_jax.evaluation.page.text import escape, shown
from hjepa_jax.evaluation.report import plots
from hjepa_jax.evaluation.report.summary import (
    ACCURACIES,
    FIGURES,
    RANKS,
    further,
    headline_ks,
    headline_position,
    in_sqrt_h,
    titles_at,
)
from hjepa_jax.storage.files import read_regular

_log = logging.getLogger(__name__)

_PICTURES = {
    "neighbors.png": "Test images and their nearest training images",
    "map.png": "Test features: principal axes and t-SNE",
    "flow.png": "States of test images under the learned Hamiltonian flow",
}
_PICTURE_BYTES = 2**26
_MOVED = in_sqrt_h("trained")
# Pictures that would be too small to read at half width.
_WIDE = ("flow.png",)


def _values(group: Group, figure: str) -> list[float]:
    return [run.figures().get(figure, math.nan) for run in group.runs]


def _titles(groups: Sequence[Group]) -> dict[str, str]:
    """Returns the column titles, those of the first run; of figures that some run has."""
    metrics = groups[0].runs[0].metrics
    trained = [run.metrics["encoders"]["trained"] for group in groups for run in group.runs]
    used = headline_ks(trained[0], metrics["headline_k"])
    found = titles_at(used, {name for one in trained for name in further(one)})
    return {
        figure: title
        for figure, title in found.items()
        if any(math.isfinite(value) for group in groups for value in _values(group, figure))
    }


def _main(columns: Mapping[str, str]) -> list[str]:
    """Returns the main accuracies, of those that some run has."""
    return [name for name in ("knn", "probe_top1") if name in columns]


def _heads(groups: Sequence[Group], first: str = "") -> list[str]:
    """Returns the heads of a table with a column for each group."""
    return [first, *(f"{swatch(s)}{breakable(g.name)}" for s, g in enumerate(groups))]


def _digits(figure: str) -> int:
    """Returns the decimals of a mean over seeds: one more than a report has for an accuracy."""
    return FIGURES[figure].digits + (figure in ACCURACIES)


def _spread(values: Sequence[float], digits: int) -> str:
    """Formats the standard deviation of several values; '' for one, or a missing one."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return ""
    return f" <small>± {shown(float(np.std(values, ddof=1)), digits)}</small>"


def _cell(group: Group, baseline: Group, figure: str) -> str:
    factor, digits = FIGURES[figure].factor, _digits(figure)
    values = [factor * value for value in _values(group, figure)]
    text = f"<b>{shown(statistics.mean(values), digits)}</b>{_spread(values, digits)}"
    if group is baseline:
        return f'{text}<div class="difference">baseline</div>'
    reference = [factor * value for value in _values(baseline, figure)]
    difference, interval = bootstrap_difference(values, reference)
    kind, more_is_better = "", FIGURES[figure].more_is_better
    # Ranks of a nearly collapsed state are those of its noise.
    collapsed = figure in RANKS and any(run.is_one_point() for run in (*group.runs, *baseline.runs))
    if collapsed or not math.isfinite(difference):
        return text
    note = shown(difference, digits, signed=True)
    if interval is not None:
        low, high = (shown(bound, digits, signed=True) for bound in interval)
        note += f"<br>[{low}, {high}]"
        if more_is_better is not None and interval[0] * interval[1] > 0:
            kind = " better" if (difference > 0) == more_is_better else " worse"
    return f'{text}<div class="difference{kind}">{note}</div>'


def summary_table(groups: Sequence[Group]) -> str:
    """Returns the table of headline figures, with differences from the first group."""
    columns = _titles(groups)
    rows = []
    for style, group in enumerate(groups):
        seeds = f"{len(group.runs)} run{'s' if len(group.runs) > 1 else ''}"
        name = f"{swatch(style)}{breakable(group.name)}<small>{seeds}</small>"
        rows.append(Row(name, [_cell(group, groups[0], figure) for figure in columns]))
    random = [r for r in groups[0].runs if "random" in r.metrics["encoders"]]
    if random:
        figures = [run.figures("random") for run in random]
        cells = [
            shown(
                FIGURES[f].factor * statistics.mean(x.get(f, math.nan) for x in figures), _digits(f)
            )
            for f in columns
        ]
        name = f"{swatch(REFERENCE)}random encoder<small>of {breakable(groups[0].name)}</small>"
        rows.append(Row(name, cells, "reference"))
    return table("Summary", ["", *map(head, columns.values())], rows)


def intervals(groups: Sequence[Group]) -> str:
    """Returns charts of the differences from the first group; '' if it is the only one."""
    if len(groups) < 2:
        return ""
    columns, parts = _titles(groups), []
    for figure in _main(columns):
        reference = [100 * value for value in _values(groups[0], figure)]
        rows = []
        for style, group in enumerate(groups[1:], 1):
            values = [100 * value for value in _values(group, figure)]
            difference, interval = bootstrap_difference(values, reference)
            if math.isfinite(difference):
                rows.append(charts.Interval(group.name, difference, interval, style))
        label = f"{columns[figure].removesuffix(' %')}: difference from {groups[0].name} in points"
        drawn = charts.interval_chart(rows, "difference in points")
        if drawn:
            parts.append(f"<figure><figcaption>{escape(label)}</figcaption>{drawn}</figure>")
    return f'<div class="grid">{"".join(parts)}</div>' if parts else ""


def _by_group(
    groups: Sequence[Group], line: Callable[[Any], plots.Line], *, geometric: bool = False
) -> list[plots.Series]:
    """Returns a series per group, and in gray the first group's random encoder."""

    def lines(group: Group, encoder: str) -> list[plots.Line]:
        found = (run.metrics["encoders"].get(encoder) for run in group.runs)
        return [line(one) for one in found if one is not None]

    series = [
        plots.over_runs(group.name, style, lines(group, "trained"), geometric=geometric)
        for style, group in enumerate(groups)
    ]
    random = lines(groups[0], "random")
    if not random:
        return series
    return [plots.over_runs("random encoder", REFERENCE, random, geometric=geometric), *series]


def knn_and_spectra(groups: Sequence[Group]) -> str:
    """Returns the charts of kNN accuracy over k and of covariance spectra, with their legend."""
    knn = _by_group(groups, plots.knn_line)
    spectra = _by_group(groups, plots.spectrum_line, geometric=True)
    names = legend((one.name, one.style) for one in knn)
    drawn = charts.figure(knn, plots.knn_axes(knn)) + charts.figure(spectra, plots.SPECTRUM_AXES)
    return f'{names}<div class="grid">{drawn}</div>' if drawn else ""


def training_curves(groups: Sequence[Group]) -> str:
    """Returns small charts of logged training metrics; '' if no run has any."""
    return curves.training_curves(
        [
            curves.Curves(group.name, style, [run.curves for run in group.runs])
            for style, group in enumerate(groups)
        ]
    )


def checkpoint_curves(groups: Sequence[Group]) -> str:
    """Returns the curves of the evaluated checkpoints; '' if no run has any.

    They are by the protocol that most runs have, and of the groups that have it.
    """
    runs = [run for group in groups for run in group.runs]
    chosen = iter(by_common_protocol([run.checkpoints for run in runs]))
    drawn = []
    for style, group in enumerate(groups):
        known = [one for _ in group.runs if (one := next(chosen)) is not None]
        if known:
            drawn.append(CurveGroup(group.name, style, known))
    return curves_over_training(drawn)


def state_parts_table(groups: Sequence[Group]) -> str:
    """Returns kNN and probe accuracies of q, p and qp; '' if no run has them."""
    rows = []
    for style, group in enumerate(groups):
        found = [run.metrics["encoders"]["trained"].get("state_parts", {}) for run in group.runs]
        k = group.runs[0].metrics["headline_k"]
        for part in [name for name in found[0] if all(name in one for one in found)]:
            results = [one[part] for one in found]
            figures = (
                [one["knn"]["top1"][headline_position(one, k)] for one in results],
                [one["linear_probe"]["top1"] for one in results],
                [one["linear_probe"]["top5"] for one in results],
            )
            cells = [shown(100 * statistics.mean(values), 2) for values in figures]
            rows.append(Row(f"{swatch(style)}{breakable(group.name)} <b>{escape(part)}</b>", cells))
    columns = ["", "kNN %", "probe top-1 %", "probe top-5 %"]
    return table("Parts of the state", columns, rows, narrow=True)


def coordinates_table(groups: Sequence[Group]) -> str:
    """Returns figures of z and H^{1/2} z, for groups that have both; '' if none has."""
    columns, rows = _titles(groups), []
    for style, group in enumerate(groups):
        if any(_MOVED not in run.metrics["encoders"] for run in group.runs):
            continue
        kinds = {_kind_of_h(run) for run in group.runs}
        for name, shown_as in (
            ("trained", "z"),
            (_MOVED, f"H^{{1/2}} z{', '.join(sorted(kinds))}"),
        ):
            found = [run.figures(name) for run in group.runs]
            cells = []
            for figure in columns:
                values = [FIGURES[figure].factor * one.get(figure, math.nan) for one in found]
                digits = _digits(figure)
                cells.append(f"{shown(statistics.mean(values), digits)}{_spread(values, digits)}")
            title = f"{swatch(style)}{breakable(group.name)} <b>{escape(shown_as)}</b>"
            rows.append(Row(title, cells))
    return table("Coordinates", ["", *map(head, columns.values())], rows)


def _kind_of_h(run: RunResult) -> str:
    """Returns ' (post-hoc KIND)' for an H that was not trained, else ''."""
    kind = run.metrics["info"].get("posthoc")
    return f" (post-hoc {kind})" if kind else ""


def _extra_tests(run: RunResult) -> dict[str, dict[str, Any]]:
    """Returns the optional parts of an evaluation by title: few-shot, coarse, and robustness."""
    one = run.metrics["encoders"]["trained"]
    names = {"few_shot": "{} images per class", "coarse": "{} labels", "robustness": "{} images"}
    return {
        names[kind].format(key): found for kind in names for key, found in one.get(kind, {}).items()
    }


def extra_table(groups: Sequence[Group]) -> str:
    """Returns probe top-1 of the optional parts, a column per group; '' if there are none."""
    found = [[_extra_tests(run) for run in group.runs] for group in groups]
    names = list(dict.fromkeys(name for tests in found for one in tests for name in one))
    rows = []
    for name in names:
        cells = []
        for tests in found:
            values = [100 * _probe_top1(one[name]) for one in tests if name in one]
            mean = shown(statistics.mean(values), 2) if values else ""
            cells.append(f"{mean}{_spread(values, 2)}")
        rows.append(Row(escape(name), cells))
    return table("Optional tests", _heads(groups, "probe top-1 %"), rows, narrow=True)


def _probe_top1(found: dict[str, Any]) -> float:
    """Returns probe top-1 of an optional part, which has a probe or is one."""
    return found.get("linear_probe", found)["top1"]


def galleries(groups: Sequence[Group]) -> str:
    """Returns the pictures of each group's first report, embedded; '' if there are none."""
    parts = []
    for file, caption in _PICTURES.items():
        wide = ' class="wide"' if file in _WIDE else ""
        for style, group in enumerate(groups):
            path = group.runs[0].report / file
            if not os.path.lexists(path):
                continue
            try:
                picture = read_regular(path, _PICTURE_BYTES)
            except OSError as error:
                _log.warning("skipping a picture: %s", error)
                continue
            data = base64.b64encode(picture).decode("ascii")
            title = f"{swatch(style)}{escape(group.runs[0].name)}: {escape(caption)}"
            parts.append(
                f"<figure{wide}><figcaption>{title}</figcaption>"
                f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}"></figure>'
            )
    return f'<div class="pictures">{"".join(parts)}</div>' if parts else ""


def configuration_table(groups: Sequence[Group]) -> str:
    """Returns the configuration fields that differ between groups; '' if none does."""
    rows = [
        Row(
            f"<code>{breakable(name)}</code>", [f"<code>{escape(value)}</code>" for value in values]
        )
        for name, values in differing_fields(groups).items()
    ]
    return table("Configuration differences", _heads(groups), rows, narrow=True)


def runs_table(groups: Sequence[Group]) -> str:
    """Returns one row per run: step, device and main figures with 95% intervals over images."""
    columns = _titles(groups)
    figures = _main(columns)
    rows = []
    for style, group in enumerate(groups):
        for run in group.runs:
            info, found, bounds = run.metrics["info"], run.figures(), run.intervals()
            facts = [info.get("data", ""), info.get("step", ""), info.get("device", "")]
            cells = [escape(fact) for fact in (*facts, run.config.get("seed", ""))]
            for name in figures:
                text, interval = shown(100 * found[name], 2), bounds[name]
                if interval is not None:
                    low, high = (shown(100 * bound, 1) for bound in interval)
                    text += f" <small>[{low}, {high}]</small>"
                cells.append(text)
            rows.append(Row(f"{swatch(style)}{breakable(run.name)}", cells))
    heads = ["", "data", "step", "device", "seed", *(head(columns[name]) for name in figures)]
    return table("Runs", heads, rows, narrow=True)
