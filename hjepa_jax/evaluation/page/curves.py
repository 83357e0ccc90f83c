"""Charts of logged training metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hjepa_jax.evaluation.page import charts
from hjepa_jax.evaluation.page.ink import legend
from hjepa_jax.evaluation.report import plots
from hjepa_jax.storage.metrics_file import Curve

# Training curves, in order, if a run has them: tag -> title.
CURVES = {
    "loss/total": "Total loss",
    "loss/prediction": "Prediction loss",
    "online/knn_top1": "kNN top-1 during training",
    "online/probe_top1": "Linear probe top-1 on training views",
    "loss/sigreg": "SIGReg statistic",
    "state/q_participation_ratio": "Participation ratio of q (normalized)",
    "state/p_participation_ratio": "Participation ratio of p (normalized)",
    "state/q_logdet": "Log-determinant of q per dimension",
    "state/p_logdet": "Log-determinant of p per dimension",
    "state/q_eigenvalue_min": "Smallest eigenvalue of q in random directions",
    "state/p_eigenvalue_min": "Smallest eigenvalue of p in random directions",
    "state/q_std_min": "Smallest standard deviation of q",
    "state/p_std_min": "Smallest standard deviation of p",
    "state/q_mean_square": "Mean square of q",
    "state/p_mean_square": "Mean square of p",
    "optim/gradient_norm": "Gradient norm",
    "optim/lr": "Learning rate",
}


class Curves(NamedTuple):
    """Logged metrics, by tag, of runs that are drawn as one series."""

    name: str
    style: int
    runs: Sequence[Mapping[str, Curve]]


def _series(curves: Curves, tag: str) -> plots.Series | None:
    found = plots.mean_curve([run[tag] for run in curves.runs if tag in run])
    if found is None:
        return None
    (steps, mean), (low, high) = found
    band = (low.tolist(), high.tolist()) if len(curves.runs) > 1 else (None, None)
    return plots.Series(curves.name, steps.tolist(), mean.tolist(), curves.style, *band)


def _grid(groups: Sequence[Curves], titles: Mapping[str, str]) -> str:
    """Returns a chart for each tag that was logged; '' if none was."""
    figures = []
    for tag, title in titles.items():
        series = [one for group in groups if (one := _series(group, tag)) is not None]
        axes = plots.Axes("step", title=title, percent=tag.startswith("online/"))
        figures.append(charts.figure(series, axes))
    return f'<div class="grid">{"".join(figures)}</div>' if any(figures) else ""


def training_curves(groups: Sequence[Curves], *, rest: bool = False) -> str:
    """Returns a chart of every known metric that was logged; '' if none was.

    Args:
      groups: the runs.
      rest: whether all other metrics follow, folded.
    """
    shown = _grid(groups, CURVES)
    if rest:
        tags = sorted({tag for group in groups for run in group.runs for tag in run} - {*CURVES})
        others = _grid(groups, {tag: tag for tag in tags if "/" in tag})
        shown += (
            f"<details><summary>All other metrics</summary>{others}</details>" if others else ""
        )
    if not shown:
        return ""
    names = legend((group.name, group.style) for group in groups) if len(groups) > 1 else ""
    return names + shown
