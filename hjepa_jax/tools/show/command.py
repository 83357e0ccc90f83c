"""Show what a run is, where it stands, its scores, its files, and what to run next.

    hjepa show runs/x
    hjepa show runs
    hjepa show runs/x --json

RUN is the folder of a run, or a folder of runs. Only files are read, also while the run trains.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from hjepa_jax.config.command_line.program import Program, write_out
from hjepa_jax.errors import UserError, size
from hjepa_jax.storage.files import local_path

if TYPE_CHECKING:
    from hjepa_jax.tools.show.state import RunState

PROGRAM = Program(
    "show", __doc__, arguments="RUN [RUN ...]", number=(1, 10_000), example="runs/quickstart"
)
_FLAGS = PROGRAM.flags
_EVAL_DIR = flags.DEFINE_string(
    "eval_dir", None, "Folder of reports beside those in the run's own.", flag_values=_FLAGS
)
_JSON = flags.DEFINE_boolean("json", False, "Print JSON, a list of runs.", flag_values=_FLAGS)
_CHANGES = 6
_CHECKPOINTS = 8


def find_runs(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns a run, or the runs in a folder and its subfolders.

    Raises:
      UserError: if there is none.
    """
    if (path / "config.json").is_file():
        return [path]
    files = [file for deep in ("*", "*/*") for file in path.glob(f"{deep}/config.json")]
    found = sorted(file.parent for file in files)
    if not found:
        raise UserError(
            f"{path} is no run, and holds none, as there is no config.json: give the folder of a "
            "run, such as runs/x."
        )
    return found


def block(state: RunState) -> str:
    """Returns the lines about one run."""
    of = "" if state.total_steps is None else f" of {state.total_steps}"
    share = "" if not state.total_steps else f" ({100 * state.step / state.total_steps:.0f} %)"
    left = "" if state.remaining is None else f", {age(state.remaining)} from done"
    epochs = "" if state.epoch is None else f", epoch {state.epoch:.1f} of {state.epochs:g}"
    rows = [
        ("run", state.path),
        ("status", f"{state.status}, step {state.step}{of}{share}{epochs}{left}"),
        ("trains", f"{state.method} on {state.data}, encoder {state.encoder}"),
        ("batch", f"{state.batch_size} images"),
        ("recipe", _recipe(state)),
        ("checkpoint", _checkpoint(state)),
    ]
    rows += [("loss", f"{state.loss:.4g}")] if state.loss is not None else []
    rows += [("online", ", ".join(f"{k} {v:.4g}" for k, v in state.online.items()))] * bool(
        state.online
    )
    rows += [("scores", _scores(scores)) for scores in state.scores] or [("scores", "none yet")]
    rows += [("files", ", ".join(f"{k} {size(v)}" for k, v in state.files.items()))]
    rows += [("next", state.next)]
    return "\n".join(f"{name:<11}{text}" for name, text in rows)


def _recipe(state: RunState) -> str:
    if state.recipe is None:
        return "none that is similar"
    if not state.changes:
        return state.recipe
    more = len(state.changes) - _CHANGES
    listed = ", ".join(state.changes[:_CHANGES]) + (f", and {more} more" if more > 0 else "")
    return f"{state.recipe} with {listed}"


def _checkpoint(state: RunState) -> str:
    if state.checkpoint_age is None:
        return "none yet"
    steps = state.checkpoints
    kept = f"{len(steps)} from {steps[0]} to {steps[-1]}"
    if len(steps) <= _CHECKPOINTS:
        kept = ", ".join(map(str, steps))
    return f"step {steps[-1]}, {age(state.checkpoint_age)} ago (kept: {kept})"


def _scores(scores: dict) -> str:
    accuracies = {"knn": "kNN", "knn_first": "kNN@1", "probe_top1": "probe", "probe_top5": "top-5"}
    shown = [
        f"{title} {100 * scores[name]:.1f} %"
        for name, title in accuracies.items()
        if name in scores
    ]
    if "effective_rank" in scores:
        shown.append(f"effective rank {scores['effective_rank']:.1f}")
    where = " after the projector" if "features" in scores else ""
    where += " in H^{1/2} z" if "coordinates" in scores else ""
    return f"{', '.join(shown)}{where} (step {scores['step']}, {scores['report']})"


def table(states: Sequence[RunState]) -> str:
    """Returns a line for each run."""
    rows = [("run", "status", "step", "method", "data", "kNN %", "probe %")]
    for state in states:
        raw = [one for one in state.scores if not {"coordinates", "features"} & one.keys()]
        best = [
            max((100 * one[name] for one in raw if name in one), default=None)
            for name in ("knn", "probe_top1")
        ]
        step = f"{state.step}/{'?' if state.total_steps is None else state.total_steps}"
        shown = ["-" if value is None else f"{value:.1f}" for value in best]
        rows.append((state.path, state.status, step, state.method, state.data, shown[0], shown[1]))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(t.ljust(w) for t, w in zip(row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


def age(seconds: float) -> str:
    """Returns a time span in the unit that people would use."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def main(argv: list[str]) -> None:
    """Prints the runs."""
    from hjepa_jax.tools.show.state import read_state

    given = _EVAL_DIR.value
    eval_dir = None if given is None else local_path(str(given), "--eval_dir")
    runs = [run for text in argv[1:] for run in find_runs(local_path(text, "RUN"))]
    states = []
    for run in runs:
        try:
            states.append(read_state(run, eval_dir))
        except UserError as error:
            if len(runs) == 1:
                raise
            print(f"hjepa show: {error}", file=sys.stderr)
    if _JSON.value:
        write_out(json.dumps([dataclasses.asdict(state) for state in states], indent=2))
    else:
        write_out(block(states[0]) if len(runs) == 1 else table(states))


def run() -> None:
    """Entry point of `hjepa show`."""
    PROGRAM.run(main)
