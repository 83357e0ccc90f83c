"""What a search writes: its record, a document, pictures, and the best trials as flag files."""

from __future__ import annotations

import logging
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hjepa_jax.evaluation.report.figures import (
    BLUE,
    ORANGE,
    new_figure,
    save_each,
    styles_of,
    tidy,
)
from hjepa_jax.evaluation.report.tables import NOTHING, markdown_table
from hjepa_jax.evaluation.report.text import plot_text
from hjepa_jax.evaluation.validity import wilson
from hjepa_jax.storage.files import json_text, write_atomically
from hjepa_jax.tools.sweep import override_flag, with_effect
from hjepa_jax.tools.tuning.ranges import Space, fields_of, overrides_of
from hjepa_jax.tools.tuning.trials import Outcome, Plan, Rules, Trial

_log = logging.getLogger(__name__)
_PROGRESS = "best_so_far.png"
_COLUMNS = 4


def best_file(method: str) -> str:
    """Returns the name of the file with a method's best trial, within the search's folder."""
    return f"best/{method}.flags"


def _status(plan: Plan, outcome: Outcome, number: int) -> str:
    """Returns how far a trial came, in a word."""
    if number in outcome.failed:
        return "failed"
    return "complete" if plan.steps[-1] in outcome.scores.get(number, {}) else "stopped"


def _last(outcome: Outcome, number: int) -> tuple[int, float]:
    """Returns (the last step with a score, the score) of a trial; (0, nan) without one."""
    known = {s: v for s, v in outcome.scores.get(number, {}).items() if math.isfinite(v)}
    return max(known.items(), default=(0, math.nan))


def record_of(
    plans: Sequence[Plan], outcomes: Mapping[str, Outcome], rules: Rules, command: str
) -> dict[str, Any]:
    """Returns all that is known, for JSON."""
    methods = {}
    for plan in plans:
        outcome = outcomes[plan.method]
        methods[plan.method] = {
            "config": plan.source,
            "fixed": plan.space.fixed,
            "ranges": {key: one._asdict() for key, one in plan.space.ranges.items()},
            "steps": plan.steps,
            "holdout_images": plan.holdout,
            "best": outcome.best(plan.steps[-1]),
            "trials": [
                {
                    "number": trial.number,
                    "status": _status(plan, outcome, trial.number),
                    "overrides": list(overrides_of(trial.drawn)),
                    "scores": outcome.scores.get(trial.number, {}),
                    "failure": outcome.failed.get(trial.number),
                }
                for trial in plan.trials
            ],
        }
    return {"schema_version": 1, "rules": rules._asdict(), "methods": methods, "command": command}


def _table(plan: Plan, outcome: Outcome) -> str:
    """Returns a method's trials in Markdown, the best first."""

    def rank(trial: Trial) -> tuple[int, float, int]:
        step, score = _last(outcome, trial.number)
        return -step, -score if math.isfinite(score) else math.inf, trial.number

    rows = []
    for trial in sorted(plan.trials, key=rank):
        step, score = _last(outcome, trial.number)
        shown = NOTHING if not step else f"{100 * score:.2f}"
        values = ", ".join(f"{key}={value}" for key, value in trial.drawn.items())
        status = _status(plan, outcome, trial.number)
        rows.append([str(trial.number), values or "the configuration", status, str(step), shown])
    return "\n".join(markdown_table(["trial", "drawn", "status", "step", "hold-out kNN %"], rows))


def document(
    plans: Sequence[Plan], outcomes: Mapping[str, Outcome], rules: Rules, command: str
) -> str:
    """Returns the search in Markdown."""
    best = []
    for plan in plans:
        outcome, last = outcomes[plan.method], plan.steps[-1]
        number = outcome.best(last)
        ended = sum(last in by for by in outcome.scores.values())
        cells = [plan.method, str(len(plan.trials)), str(ended), NOTHING, NOTHING, NOTHING]
        if number is not None:
            score = outcome.scores[number][last]
            low, high = (100 * end for end in wilson(score, plan.holdout))
            cells[3:] = [str(number), f"{100 * score:.2f} ({low:.1f} to {high:.1f})"]
            cells.append(best_file(plan.method))
        best.append(cells)
    header = ["method", "trials", "complete", "best", "hold-out kNN %", "its file"]
    sections = [
        "# Tuning",
        f"{rules.trials} trials of each method: trial 0 is the configuration itself, the others "
        f"are random draws with seed {rules.seed}. Trials are compared by kNN on training images "
        f"that are held out of training, after {_steps(plans)} steps; one in {rules.factor} goes "
        "on. The best score of many is optimistic: only a test of the best trial on other images "
        "says how good it is. In parentheses, 95 % Wilson intervals over the held-out images.",
        "\n".join(markdown_table(header, best)),
        f"![Best accuracy so far, over the trials]({_PROGRESS})",
    ]
    for plan in plans:
        picture = f"![Accuracy against each field of {plan.method}]({plan.method}.png)"
        sections += [f"## {plan.method}", _table(plan, outcomes[plan.method]), picture]
    sections.append(f"## How to reproduce\n\n```bash\n{command}\n```")
    return "\n\n".join(sections) + "\n"


def _steps(plans: Sequence[Plan]) -> str:
    """Returns the rungs in words."""
    shown = {", ".join(map(str, plan.steps)) for plan in plans}
    return shown.pop() if len(shown) == 1 else "each method's own"


def _draw_field(axes: Axes, key: str, space: Space, plan: Plan, outcome: Outcome) -> None:
    """Draws the last score of each trial against one field."""
    of = space.ranges[key]
    for complete, color in ((False, ORANGE), (True, BLUE)):
        points = []
        for trial in plan.trials:
            step, score = _last(outcome, trial.number)
            if key in trial.drawn and step and (step == plan.steps[-1]) == complete:
                value = trial.drawn[key]
                place = of.choices.index(value) if of.choices else float(value)
                points.append((place, 100 * score))
        face = color if complete else "none"
        axes.scatter(*zip(*points), s=22, facecolors=face, edgecolors=color) if points else None
    if of.choices:
        axes.set_xticks(range(len(of.choices)), [plot_text(text, 16) for text in of.choices])
        axes.set_xlim(-0.5, len(of.choices) - 0.5)
    else:
        axes.set_xscale("log" if of.kind == "log" else "linear")
        axes.set_xlim(of.low, of.high)
    if plan.steps[-1] in outcome.scores.get(0, {}):
        axes.axhline(100 * _last(outcome, 0)[1], color="0.5", linestyle=":", linewidth=1)
    axes.set_title("\n".join(plot_text(name) for name in fields_of(key)), fontsize=9)
    tidy(axes)


def fields_picture(plan: Plan, outcome: Outcome) -> Figure:
    """Draws the last score of each trial against each field; open if it was stopped early."""
    keys = list(plan.space.ranges)
    rows = -(-len(keys) // _COLUMNS)
    figure = new_figure(3.0 * _COLUMNS, 0.6 + 2.4 * rows)
    panels = figure.subplots(rows, _COLUMNS, squeeze=False, sharey=True)
    for axes, key in zip(panels.ravel(), keys):
        _draw_field(axes, key, plan.space, plan, outcome)
    for axes in panels.ravel()[len(keys) :]:
        axes.set_axis_off()
    for axes in panels[:, 0]:
        axes.set_ylabel("hold-out kNN %")
    title = f"{plot_text(plan.method)}: filled = trained to the end, open = stopped early"
    if plan.steps[-1] in outcome.scores.get(0, {}):
        title += ", dotted = the configuration itself"
    figure.suptitle(title)
    return figure


def progress_picture(plans: Sequence[Plan], outcomes: Mapping[str, Outcome]) -> Figure:
    """Draws the best complete trial so far against the number of trials, for each method."""
    figure = new_figure(6.4, 4.2)
    axes = figure.add_subplot()
    for plan, style in zip(plans, styles_of([plan.method for plan in plans]).values()):
        last, best, curve = plan.steps[-1], math.nan, list[float]()
        for trial in plan.trials:
            score = outcomes[plan.method].scores.get(trial.number, {}).get(last, math.nan)
            best = score if math.isnan(best) or score > best else best
            curve.append(100 * best)
        numbers = range(1, len(curve) + 1)
        axes.step(numbers, curve, where="post", label=plot_text(plan.method), **style)
    axes.set_xlabel("trials")
    axes.set_ylabel("best hold-out kNN % so far")
    axes.legend(frameon=False)
    tidy(axes)
    return figure


def best_flags(plan: Plan, outcome: Outcome) -> str | None:
    """Returns the flag file of a method's best trial, for `hjepa train`; None without one.

    It has what was drawn and fixed, but neither what the command line set for all trials, such as
    the number of images, nor the hold-out.
    """
    number = outcome.best(plan.steps[-1])
    if number is None:
        return None
    score = outcome.scores[number][plan.steps[-1]]
    trial = plan.trials[number]
    overrides = with_effect(plan.source, (*plan.space.fixed, *overrides_of(trial.drawn)))
    lines = [
        f"# Trial {number} of {plan.method}, the best of {len(plan.trials)}: hold-out kNN "
        f"{100 * score:.2f} % after {plan.steps[-1]} steps.",
        f"--config={plan.source}",
        *map(override_flag, overrides),
    ]
    return "\n".join(lines) + "\n"


def write_search(
    plans: Sequence[Plan],
    outcomes: Mapping[str, Outcome],
    rules: Rules,
    out: pathlib.Path,
    command: str,
) -> str:
    """Writes `tune.json`, its document, pictures, and flag files; returns the document.

    Args:
      plans: the methods.
      outcomes: what is known of each.
      rules: of the search.
      out: the search's folder.
      command: the command that produced it.
    """
    text = document(plans, outcomes, rules, command)
    write_atomically(out / "tune.json", json_text(record_of(plans, outcomes, rules, command)))
    write_atomically(out / "tune.md", text)
    drawn: dict[str, Callable[[], Figure]] = {_PROGRESS: lambda: progress_picture(plans, outcomes)}
    for plan in plans:
        outcome = outcomes[plan.method]
        drawn[f"{plan.method}.png"] = lambda p=plan, o=outcome: fields_picture(p, o)
        flags = best_flags(plan, outcome)
        if flags is not None:
            (out / "best").mkdir(exist_ok=True)
            write_atomically(out / best_file(plan.method), flags)
    for name, reason in save_each(out, drawn).items():
        _log.warning("%s could not be drawn (%s); the table is written.", out / name, reason)
    return text
