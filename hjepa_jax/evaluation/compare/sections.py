"""Tables and charts of a comparison page, each a function of groups of runs to HTML."""

from __future__ import annotations

import base64
import logging
import math
import os
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hjepa_jax.evaluation.compare import charts
from hjepa_jax.evaluation.compare.charts import escape
from hjepa_jax.evaluation.compare.runs import (
    Group,
    RunResult,
    bootstrap_difference,
    differing_fields,
    mean_curve,
)
from hjepa_jax.evaluation.report import plots
from hjepa_jax.evaluation.report.summary import RANKS, headline_position
from hjepa_jax.storage.files import read_regular

_log = logging.getLogger(__name__)

# Figure -> (title, factor, digits, whether higher is better; None = neither).
FIGURES: dict[str, tuple[str, float, int, bool | None]] = {
    "knn": ("kNN@{k} %", 100, 2, True),
    "knn_first": ("kNN@{first} %", 100, 2, True),
    "probe_top1": ("probe top-1 %", 100, 2, True),
    "probe_top5": ("probe top-5 %", 100, 2, True),
    "effective_rank": ("effective rank", 1, 1, None),
    "participation_ratio": ("particip. ratio", 1, 1, None),
    "rankme": ("RankMe", 1, 1, None),
    "mean_share": ("energy in mean %", 100, 1, None),
    "alignment": ("alignment", 1, 3, None),
    "uniformity": ("uniformity", 1, 3, None),
}
# Training curves, in order, if a run has them: tag -> title.
CURVES = {
    "total": "Loss (not comparable between objectives)",
    "pred": "Prediction loss",
    "online/knn_top1": "kNN top-1 during training",
    "online/probe_top1": "Linear probe top-1 on training views",
    "sigreg": "SIGReg statistic",
    "q_pr": "Participation ratio of q (normalized)",
    "p_pr": "Participation ratio of p (normalized)",
    "q_std_min": "Smallest standard deviation of q",
    "p_std_min": "Smallest standard deviation of p",
    "q2": "Mean square of q",
    "p2": "Mean square of p",
    "grad_norm": "Gradient norm",
    "lr": "Learning rate",
}
_PICTURES = {
    "neighbors.png": "Test images and their nearest training images",
    "map.png": "Test features: principal axes and t-SNE",
    "flow.png": "States of test images under the learned Hamiltonian flow",
}
_PICTURE_BYTES = 2**26
# Pictures that would be too small to read at half width.
_WIDE = ("flow.png",)


def _name(text: str) -> str:
    """Returns a run's name for the first column, with line breaks allowed after punctuation."""
    return re.sub(r"([-_.=])", r"\1<wbr>", escape(text))


def _swatch(style: int) -> str:
    dash = charts.dashes(style)
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        '<svg class="swatch" viewBox="0 0 26 10" aria-hidden="true"><line x1="1" x2="25" y1="5" '
        f'y2="5" stroke="{charts.color(style)}" stroke-width="3"{dashed}/></svg>'
    )


def _legend(names: Sequence[tuple[str, int]]) -> str:
    items = "".join(f"<span>{_swatch(style)}{escape(name)}</span>" for name, style in names)
    return f'<p class="legend">{items}</p>'


def _values(group: Group, figure: str) -> list[float]:
    return [run.figures()[figure] for run in group.runs]


def _titles(groups: Sequence[Group]) -> dict[str, str]:
    """Returns the column titles, without the smallest k if that is the headline k."""
    metrics = groups[0].runs[0].metrics
    ks = metrics["encoders"]["trained"]["knn"]["k_values"]
    k = max((k for k in ks if k <= metrics["headline_k"]), default=ks[0])
    titles = {name: spec[0].format(k=k, first=ks[0]) for name, spec in FIGURES.items()}
    if k == ks[0]:
        del titles["knn_first"]
    return titles


def _shown(value: float, digits: int) -> str:
    """Formats a number with `digits` decimals, or as a dash if it is missing."""
    return f"{value:.{digits}f}".replace("-", "−") if math.isfinite(value) else "–"


def _spread(values: Sequence[float], digits: int) -> str:
    """Formats the standard deviation of several values; '' for one."""
    if len(values) < 2:
        return ""
    return f" <small>± {_shown(float(np.std(values, ddof=1)), digits)}</small>"


def _cell(group: Group, baseline: Group, figure: str) -> str:
    _, factor, digits, more_is_better = FIGURES[figure]
    values = [factor * value for value in _values(group, figure)]
    text = f"<b>{_shown(statistics.mean(values), digits)}</b>{_spread(values, digits)}"
    if group is baseline:
        return f'<td>{text}<div class="difference">baseline</div></td>'
    reference = [factor * value for value in _values(baseline, figure)]
    difference, interval = bootstrap_difference(values, reference)
    kind = ""
    # Ranks of a nearly collapsed state are those of its noise.
    collapsed = figure in RANKS and any(run.is_one_point() for run in (*group.runs, *baseline.runs))
    if collapsed or not math.isfinite(difference):
        return f"<td>{text}</td>"
    note = f"{difference:+.{digits}f}"
    if interval is not None:
        note += f"<br>[{interval[0]:+.{digits}f}, {interval[1]:+.{digits}f}]"
        if more_is_better is not None and interval[0] * interval[1] > 0:
            kind = " better" if (difference > 0) == more_is_better else " worse"
    note = note.replace("-", "−")
    return f'<td>{text}<div class="difference{kind}">{note}</div></td>'


def summary_table(groups: Sequence[Group]) -> str:
    """Returns the table of headline figures, with differences from the first group."""
    titles = _titles(groups)
    head = "".join(f"<th>{escape(title)}</th>" for title in titles.values())
    rows = []
    for style, group in enumerate(groups):
        cells = "".join(_cell(group, groups[0], figure) for figure in titles)
        seeds = f"{len(group.runs)} run{'s' if len(group.runs) > 1 else ''}"
        name = f"{_swatch(style)}{_name(group.name)}<small>{seeds}</small>"
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    random = [r for r in groups[0].runs if "random" in r.metrics["encoders"]]
    if random:
        figures = [run.figures("random") for run in random]
        cells = "".join(
            f"<td>{_shown(FIGURES[f][1] * statistics.mean(x[f] for x in figures), FIGURES[f][2])}"
            "</td>"
            for f in titles
        )
        name = f"{_swatch(-1)}random encoder<small>of {_name(groups[0].name)}</small>"
        rows.append(f'<tr class="reference"><th scope="row">{name}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def intervals(groups: Sequence[Group]) -> str:
    """Returns charts of the differences from the first group; '' if it is the only one."""
    if len(groups) < 2:
        return ""
    titles, parts = _titles(groups), []
    for figure in ("knn", "probe_top1"):
        reference = [100 * value for value in _values(groups[0], figure)]
        rows = []
        for style, group in enumerate(groups[1:], 1):
            values = [100 * value for value in _values(group, figure)]
            difference, interval = bootstrap_difference(values, reference)
            if math.isfinite(difference):
                rows.append(charts.Interval(group.name, difference, interval, style))
        label = f"{titles[figure].removesuffix(' %')}: difference from {groups[0].name} in points"
        parts.append(f"<figure>{charts.interval_chart(rows, label)}</figure>")
    return f'<div class="grid2">{"".join(parts)}</div>'


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
    return [plots.over_runs("random encoder", -1, random, geometric=geometric), *series]


def _figure(series: Sequence[plots.Series], axes: plots.Axes) -> str:
    chart = charts.line_chart(series, axes)
    return f"<figure><figcaption>{escape(axes.title)}</figcaption>{chart}</figure>"


def knn_and_spectra(groups: Sequence[Group]) -> str:
    """Returns the charts of kNN accuracy over k and of covariance spectra, with their legend."""
    knn = _by_group(groups, plots.knn_line)
    spectra = _by_group(groups, plots.spectrum_line, geometric=True)
    names = [(one.name, one.style) for one in knn]
    return (
        f'{_legend(names)}<div class="grid2">{_figure(knn, plots.knn_axes(knn))}'
        f"{_figure(spectra, plots.SPECTRUM_AXES)}</div>"
    )


def training_curves(groups: Sequence[Group]) -> str:
    """Returns small charts of logged training metrics; '' if no run has events."""
    figures = []
    for tag, title in CURVES.items():
        series = []
        for style, group in enumerate(groups):
            found = mean_curve([run.curves[tag] for run in group.runs if tag in run.curves])
            if found is None:
                continue
            (steps, mean), (low, high) = found
            band = (low.tolist(), high.tolist()) if len(group.runs) > 1 else (None, None)
            series.append(plots.Series(group.name, steps.tolist(), mean.tolist(), style, *band))
        axes = plots.Axes("step", percent=tag.startswith("online/"))
        drawn = charts.line_chart(series, axes, width=420, height=240)
        if drawn:
            figures.append(f"<figure><figcaption>{escape(title)}</figcaption>{drawn}</figure>")
    if not figures:
        return ""
    names = [(group.name, style) for style, group in enumerate(groups)]
    return f'{_legend(names)}<div class="grid3">{"".join(figures)}</div>'


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
            cells = "".join(f"<td>{_shown(100 * statistics.mean(v), 2)}</td>" for v in figures)
            name = f"{_swatch(style)}{escape(group.name)} <b>{escape(part)}</b>"
            rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    if not rows:
        return ""
    head = "<th></th><th>kNN %</th><th>probe top-1 %</th><th>probe top-5 %</th>"
    return (
        f'<div class="scroll"><table class="narrow"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _extra_tests(run: RunResult) -> dict[str, dict[str, Any]]:
    """Returns the optional parts of an evaluation by title: few-shot, coarse, and robustness."""
    one = run.metrics["encoders"]["trained"]
    titles = {"few_shot": "{} images per class", "coarse": "{} labels", "robustness": "{} images"}
    return {
        titles[kind].format(key): found
        for kind in titles
        for key, found in one.get(kind, {}).items()
    }


def extra_table(groups: Sequence[Group]) -> str:
    """Returns probe top-1 of the optional parts, a column per group; '' if there are none."""
    found = [[_extra_tests(run) for run in group.runs] for group in groups]
    names = list(dict.fromkeys(name for tests in found for one in tests for name in one))
    if not names:
        return ""
    head = "".join(f"<th>{_swatch(s)}{escape(g.name)}</th>" for s, g in enumerate(groups))
    rows = []
    for name in names:
        cells = ""
        for tests in found:
            values = [100 * _probe_top1(one[name]) for one in tests if name in one]
            mean = _shown(statistics.mean(values), 2) if values else ""
            cells += f"<td>{mean}{_spread(values, 2)}</td>"
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table class="narrow"><thead><tr><th>probe top-1 %</th>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


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
            title = f"{_swatch(style)}{escape(group.runs[0].name)}: {escape(caption)}"
            parts.append(
                f"<figure{wide}><figcaption>{title}</figcaption>"
                f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}"></figure>'
            )
    return f'<div class="pictures">{"".join(parts)}</div>' if parts else ""


def configuration_table(groups: Sequence[Group]) -> str:
    """Returns the configuration fields that differ between groups; '' if none does."""
    fields = differing_fields(groups)
    if not fields:
        return ""
    head = "".join(f"<th>{_swatch(s)}{escape(g.name)}</th>" for s, g in enumerate(groups))
    rows = "".join(
        f'<tr><th scope="row"><code>{escape(name)}</code></th>'
        + "".join(f"<td><code>{escape(value)}</code></td>" for value in values)
        + "</tr>"
        for name, values in fields.items()
    )
    return (
        f'<div class="scroll"><table class="narrow"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def runs_table(groups: Sequence[Group]) -> str:
    """Returns one row per run: step, device and main figures with 95% intervals over images."""
    titles = _titles(groups)
    shown = ("knn", "probe_top1")
    rows = []
    for style, group in enumerate(groups):
        for run in group.runs:
            figures, info = run.figures(), run.metrics["info"]
            cells = [info.get("data", ""), info.get("step", ""), info.get("device", "")]
            cells.append(run.config.get("seed", ""))
            values = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            bounds = run.intervals()
            for name in shown:
                low_high = bounds[name] or (math.nan, math.nan)
                low, high = (_shown(100 * bound, 1) for bound in low_high)
                values += (
                    f"<td>{_shown(100 * figures[name], 2)} <small>[{low}, {high}]</small></td>"
                )
            rows.append(f'<tr><th scope="row">{_swatch(style)}{escape(run.name)}</th>{values}</tr>')
    names = ["data", "step", "device", "seed", *(titles[name] for name in shown)]
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *names))
    return (
        f'<div class="scroll"><table class="narrow"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
