"""The state of a run, from the files in its folder and its evaluation reports."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
import time
from typing import Any

from hjepa_jax.config import Settings, files, steps_per_epoch, total_steps
from hjepa_jax.config.checks import typed
from hjepa_jax.config.fields import AUTO
from hjepa_jax.config.load import load_config, recipe_names, variants
from hjepa_jax.errors import UserError
from hjepa_jax.evaluation.report.folder import read_metrics, reports_of
from hjepa_jax.evaluation.report.summary import headline, in_sqrt_h
from hjepa_jax.main import next_command
from hjepa_jax.runtime.checkpoint_files import steps
from hjepa_jax.storage import metrics_file
from hjepa_jax.storage.checkpoint_meta import META, DataPosition
from hjepa_jax.storage.lock import take_lock
from hjepa_jax.storage.schema import read_json

# Where a run's data is and how it is fed say nothing about the recipe.
_LOCAL = ("data.root", "data.download", "data.backend", "data.num_workers", "data.num_threads")
# A configuration that differs more is no recipe with changes.
_MOST_CHANGES = 20
# Log lines that tell the present speed.
_RECENT = 21


@dataclasses.dataclass(frozen=True)
class RunState:
    """What the files of a run say.

    Attributes:
      path: its folder.
      method, data, encoder: what is trained, on what.
      batch_size: images per step.
      recipe: the most similar recipe with its variant; None if none is similar.
      changes: 'field=value (value of the recipe)' of each differing field.
      status: 'running', 'finished', 'stopped', 'imported' (weights of other software), or 'not
        started' (no step is known).
      step: steps done, as logged or saved; total_steps: of the complete run, None = unknown.
      epoch: epochs done; None = unknown. epochs: of the complete run.
      checkpoints: saved steps.
      checkpoint_age: seconds since the newest was saved; None without one.
      remaining: seconds that the missing steps take at the latest speed; None = unknown.
      loss: total loss of the last logged step; None = unknown.
      scores: of each evaluation, with its folder and step.
      online: last scores during training, by tag.
      files: bytes of each file and folder.
      next: the command worth running next.
    """

    path: str
    method: str
    data: str
    encoder: str
    batch_size: int
    recipe: str | None
    changes: list[str]
    status: str
    step: int
    total_steps: int | None
    epoch: float | None
    epochs: float
    checkpoints: list[int]
    checkpoint_age: float | None
    remaining: float | None
    loss: float | None
    scores: list[dict[str, Any]]
    online: dict[str, float]
    files: dict[str, int]
    next: str


def read_state(run: pathlib.Path, eval_dir: pathlib.Path | None = None) -> RunState:
    """Reads a run.

    Args:
      run: its folder.
      eval_dir: folder of reports beside those in the run's own, see `reports_of`.

    Raises:
      UserError: if its configuration cannot be read.
    """
    settings = typed(load_config(f"{run}/config.json"))
    curves = metrics_file.read_metrics(run)
    saved = steps(run / "checkpoints")
    logged = [int(curve[0][-1]) for curve in curves.values() if len(curve[0])]
    step = max([0, *saved, *logged])
    recorded = _recorded(run, saved)
    images = recorded.get("num_images")
    data, per_epoch = settings.data, None
    if images is not None:
        per_epoch = steps_per_epoch(images, data.batch_size, data.drop_last)
    total = settings.train.max_steps
    total = total_steps(settings.train, per_epoch) if per_epoch else total
    last = run / "checkpoints" / str(saved[-1]) if saved else None
    if is_running(run):
        status = "running"
    elif "imported" in recorded:
        status, total = "imported", None
    elif total is not None and saved and saved[-1] >= total:
        status = "finished"
    else:
        status = "stopped" if step else "not started"
    recipe, changes = nearest_recipe(settings)
    scores = [one for folder in reports_of(run, eval_dir) for one in _scores(folder)]
    return RunState(
        path=str(run),
        method=settings.method,
        data=f"{data.name}{f' in {data.root}' if data.root else ''}",
        encoder=settings.model.encoder,
        batch_size=data.batch_size,
        recipe=recipe,
        changes=changes,
        status=status,
        step=step,
        total_steps=total,
        epoch=step / per_epoch if per_epoch else None,
        epochs=float(settings.train.epochs),
        checkpoints=saved,
        checkpoint_age=None if last is None else max(0.0, time.time() - last.stat().st_mtime),
        remaining=_remaining(curves.get("time"), step, total),
        loss=_last(curves.get("loss/total")),
        scores=scores,
        online={
            tag: value
            for tag in curves
            if tag.startswith("eval/")
            if (value := _last(curves[tag])) is not None
        },
        files={entry.name: _size(entry) for entry in sorted(run.iterdir())},
        next=next_command(run, status, evaluated=bool(scores), eval_dir=eval_dir, shown=True),
    )


def is_running(run: pathlib.Path) -> bool:
    """Returns whether a process trains in the folder, as the lock of `WorkdirLock` tells."""
    try:
        file = os.open(run / "lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Given back at once; Python has no call that only asks.
        return take_lock(file, shared=True) == "held"
    except OSError:
        return False
    finally:
        os.close(file)


@functools.cache
def _recipes() -> dict[str, dict[str, Any]]:
    """Returns the fields of each recipe and variant; read once for all runs that are shown."""
    return {
        f"{name}:{variant}{end}": dict(files.flatten(load_config(f"{name}:{variant}{end}")))
        for name in recipe_names()
        for variant in variants(name)
        for end in ("", "-smoke")
    }


def nearest_recipe(settings: Settings) -> tuple[str | None, list[str]]:
    """Returns the recipe with the fewest differing fields, and these fields with both values."""
    here = settings.values()
    found: tuple[int, str, list[str]] | None = None
    for recipe, there in _recipes().items():
        changes = [
            f"{path}={value} ({there[path]})"
            for path, value in here.items()
            if path not in _LOCAL and there.get(path, value) not in (value, AUTO)
        ]
        if found is None or len(changes) < found[0]:
            found = (len(changes), recipe, changes)
    if found is None or found[0] > _MOST_CHANGES:
        return None, []
    return found[1], found[2]


def _recorded(run: pathlib.Path, saved: list[int]) -> DataPosition:
    """Returns what the newest readable checkpoint tells of its data, {} if there is none."""
    for step in reversed(saved):
        try:
            meta = read_json(run / "checkpoints" / str(step) / "meta" / "metadata", META)
        except (OSError, ValueError):
            continue
        return meta["data"]
    return {}


def _remaining(times: metrics_file.Curve | None, step: int, total: int | None) -> float | None:
    """Returns the seconds until a run is done, by the speed of the last logged steps."""
    if times is None or total is None or len(times[0]) < 2 or step >= total:
        return None
    steps_done, seconds = (values[-_RECENT:] for values in times)
    # A pause between two runs is longer than any other.
    pace = sorted((seconds[1:] - seconds[:-1]) / (steps_done[1:] - steps_done[:-1]))
    return float((total - step) * pace[len(pace) // 2])


def _last(curve: metrics_file.Curve | None) -> float | None:
    """Returns the last value of a curve; None if there is none, or if it is not finite."""
    if curve is None or not len(curve[1]) or not math.isfinite(curve[1][-1]):
        return None
    return float(curve[1][-1])


def _scores(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the headline figures of an evaluation's trained encoder, without missing ones.

    An evaluation in both coordinates has two; figures of H^{1/2} z have 'coordinates', and those of
    the projector's output 'features'.
    """
    found = []
    try:
        metrics = read_metrics(folder)
        encoders = metrics["encoders"]
        rows = [encoders["trained"], encoders.get(in_sqrt_h("trained"))]
        for one in filter(None, rows):
            figures = headline(one, metrics["headline_k"])
            known: dict[str, Any] = {
                k: value for k, value in figures.items() if math.isfinite(value)
            }
            if metrics["info"].get("features") == "projector":
                known["features"] = "projector"
            if one.get("coordinates", "raw") != "raw":
                known["coordinates"] = one["coordinates"]
            found.append({"report": str(folder), "step": metrics["info"].get("step"), **known})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} has no readable evaluation ({error}): delete it, and evaluate again."
        ) from error
    return found


def _size(path: pathlib.Path) -> int:
    """Returns the bytes of a file, or of all files in a folder; 0 for what has just gone."""
    try:
        if path.is_dir() and not path.is_symlink():
            return sum(_size(entry) for entry in path.iterdir())
        return path.lstat().st_size
    except OSError:
        return 0
