"""What an ablation writes: the record, the document, and its picture."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hjepa_jax.evaluation.paired.per_image import CLASSIFIERS, read_answers
from hjepa_jax.evaluation.report.figures import BLUE, GREEN, ORANGE, new_figure, save_each, tidy
from hjepa_jax.evaluation.report.tables import markdown_table
from hjepa_jax.evaluation.report.text import plot_text
from hjepa_jax.storage.files import json_text, write_atomically
from hjepa_jax.tools import sweep
from hjepa_jax.tools.ablation.axes import Arm, Levels
from hjepa_jax.tools.ablation.effects import (
    Answered,
    Contrast,
    check_same_images,
    contrasts,
)
from hjepa_jax.tools.sweep import SweepRun

_log = logging.getLogger(__name__)
PICTURE = "ablation.png"
TITLES = dict(zip(CLASSIFIERS, ("kNN", "probe top-1", "logistic top-1"), strict=True))
_COLORS = dict(zip(CLASSIFIERS, (BLUE, ORANGE, GREEN), strict=True))
_MARKERS = dict(zip(CLASSIFIERS, "os^", strict=True))
_ON_EFFECTS = (
    "Differences in points of accuracy, paired by seed and by test image, with 95 % percentile "
    "bootstrap intervals over the test images (10,000 resamples). An interval holds for the "
    "trained runs: the spread over seeds is in brackets, as smallest and largest difference."
)


def read_answered(runs: Mapping[tuple[str, int], SweepRun], out: pathlib.Path) -> Answered:
    """Returns arm -> seed -> answers of the finished runs.

    Raises:
      UserError: if a report has no answers, or runs were tested on different images.
    """
    found: dict[str, dict[int, Any]] = {}
    for (arm, seed), run in runs.items():
        report = sweep.report_of(run, out)
        if report is not None:
            found.setdefault(arm, {})[seed] = read_answers(report)
    check_same_images(found)
    return found


def _json(one: Contrast) -> dict[str, Any]:
    """Returns a contrast as JSON holds it."""
    effects = {name: effect._asdict() for name, effect in one.effects.items()}
    return {**one._asdict(), "effects": effects}


def _cell(one: Contrast, accuracy: str) -> str:
    """Formats a difference, its interval, and its range over seeds, in points."""
    effect, seeds = one.effects[accuracy], one.by_seed[accuracy].values()
    text = f"{100 * effect.difference:+.2f} [{100 * effect.low:+.2f}, {100 * effect.high:+.2f}]"
    if len(seeds) > 1:
        text += f" ({100 * min(seeds):+.2f} to {100 * max(seeds):+.2f})"
    return text


def effects_table(found: Sequence[Contrast], *, others: bool) -> str:
    """Returns a Markdown table of contrasts, with the levels of the other axes if `others`."""
    names = list(found[0].effects)
    header = ["difference", *(["at"] if others else []), "pairs", *(TITLES[n] for n in names)]
    rows = [
        [
            f"{one.axis}: {one.level} − {one.base}",
            *([", ".join(one.others.values())] if others else []),
            str(one.pairs),
            *(_cell(one, name) for name in names),
        ]
        for one in found
    ]
    return "\n".join(markdown_table(header, rows))


def document(
    results: dict[str, Any], mains: Sequence[Contrast], simple: Sequence[Contrast], command: str
) -> str:
    """Returns the ablation in Markdown: arms, main effects, differences, picture, and command."""
    parts = [sweep.markdown(results, "Ablation").strip()]
    if mains:
        parts += ["## Main effects", "Means over all levels of the other axes. " + _ON_EFFECTS]
        parts += [effects_table(mains, others=False)]
    if simple:
        parts += ["## Differences at each level of the other axes"]
        parts += [effects_table(simple, others=True)]
    parts += [f"![Accuracies of the arms, and main effects]({PICTURE})"] if mains else []
    parts += [f"## How to reproduce\n\n```bash\n{command}\n```"]
    return "\n\n".join(parts) + "\n"


def _draw_arms(axes: Axes, groups: Mapping[str, Any], names: Sequence[str]) -> None:
    """Draws the accuracies of each arm: its mean, and a small mark for each seed."""
    for name in names:
        style: dict[str, Any] = {"color": _COLORS[name], "marker": _MARKERS[name]}
        style["linestyle"] = "none"
        for row, group in enumerate(groups.values()):
            values = [100 * figures[name] for figures in group["runs"].values()]
            axes.plot(values, [row] * len(values), markersize=3, alpha=0.5, **style)
        means = [
            100 * float(np.mean([one[name] for one in group["runs"].values()]))
            for group in groups.values()
        ]
        axes.plot(means, range(len(groups)), markersize=7, label=TITLES[name], **style)
    axes.set_yticks(range(len(groups)), [plot_text(name, 60) for name in groups])
    axes.invert_yaxis()
    axes.set_xlabel("accuracy on test images (%)")
    axes.set_title("Arms")
    axes.legend(frameon=False)
    tidy(axes)


def _draw_effects(axes: Axes, mains: Sequence[Contrast]) -> None:
    """Draws the main effects with their intervals."""
    for shift, name in zip((-0.15, 0.0, 0.15), mains[0].effects):
        effects = [one.effects[name] for one in mains]
        middle = np.array([100 * effect.difference for effect in effects])
        # Rounding may put an end of an interval of one value beyond it.
        below = np.maximum(middle - [100 * effect.low for effect in effects], 0)
        above = np.maximum([100 * effect.high for effect in effects] - middle, 0)
        axes.errorbar(
            middle,
            np.arange(len(mains)) + shift,
            xerr=np.stack([below, above]),
            color=_COLORS[name],
            marker=_MARKERS[name],
            linestyle="none",
            capsize=3,
        )
    labels = [plot_text(f"{one.axis}: {one.level} − {one.base}", 60) for one in mains]
    axes.set_yticks(range(len(mains)), labels)
    axes.set_ylim(len(mains) - 0.5, -0.5)
    axes.axvline(0, color="0.4", linewidth=1)
    axes.set_xlabel("difference (points), 95 % interval over test images")
    axes.set_title("Main effects")
    tidy(axes)


def picture(groups: Mapping[str, Any], mains: Sequence[Contrast]) -> Figure:
    """Draws the arms and the main effects."""
    rows = max(len(groups), len(mains), 3)
    figure = new_figure(12.0, 1.6 + 0.38 * rows)
    arms, effects = figure.subplots(1, 2)
    _draw_arms(arms, groups, list(mains[0].effects))
    _draw_effects(effects, mains)
    return figure


def write_ablation(
    axes: Mapping[str, Levels],
    arms: Sequence[Arm],
    runs: Mapping[tuple[str, int], SweepRun],
    out: pathlib.Path,
    command: str,
) -> str:
    """Writes the results of the finished runs, and returns the text of `ablation.md`.

    Args:
      axes: the axes.
      arms: their combinations.
      runs: the run of each arm and seed.
      out: the ablation's folder.
      command: the command that produced it.

    Raises:
      UserError: if the reports of finished runs cannot be compared.
    """
    results = sweep.results(list(runs.values()), out)
    mains, simple = contrasts(axes, arms, read_answered(runs, out))
    text = document(results, mains, simple, command)
    record = {
        **results,
        "axes": axes,
        "arms": {arm.name: arm.levels for arm in arms},
        "main_effects": [_json(one) for one in mains],
        "differences": [_json(one) for one in simple],
        "command": command,
    }
    write_atomically(out / "ablation.json", json_text(record))
    write_atomically(out / "ablation.md", text)
    if mains:
        failed = save_each(out, {PICTURE: lambda: picture(results["groups"], mains)})
        for name, reason in failed.items():
            _log.warning("%s could not be drawn (%s); the table is written.", out / name, reason)
    return text
