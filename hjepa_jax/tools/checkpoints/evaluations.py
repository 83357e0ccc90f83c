"""Evaluates the checkpoints of a run one by one; what is done is not done again."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from hjepa_jax.console import BOARD
from hjepa_jax.errors import CheckpointError, first_line
from hjepa_jax.evaluate import (
    Evaluated,
    Opened,
    measure,
    open_evaluation,
    restore,
)
from hjepa_jax.evaluation.checkpoint_curves import stored
from hjepa_jax.evaluation.features import DivergedError
from hjepa_jax.evaluation.probes.tokens import both_encoders
from hjepa_jax.evaluation.report.plots import Metrics
from hjepa_jax.evaluation.report.summary import ACCURACIES, FIGURES, headline, titles
from hjepa_jax.runtime import checkpoint_files
from hjepa_jax.runtime.checkpoint import try_again
from hjepa_jax.storage.checkpoint_meta import META
from hjepa_jax.storage.checksums import DamagedError, UnreadableError, content_digest, read_meta
from hjepa_jax.storage.files import check_writable_folder, json_ready
from hjepa_jax.tools.checkpoints.kept_features import FeatureStore
from hjepa_jax.training.automatic.resolved import resolved
from hjepa_jax.training.saved_run import check_has_checkpoints, epoch_steps

# Settings of an evaluation that features depend on, besides those of the images.
_OF_FEATURES = ("data.", "evaluation.alignment_samples", "runtime.")
# Stands for the digest of a checkpoint.
_RANDOM = "random initialization"
# What the line about a checkpoint has if there is no accuracy.
_WITHOUT_LABELS = ("rankme", "effective_rank", "alignment", "uniformity")


class Outcome(NamedTuple):
    """What became of a run's checkpoints.

    Attributes:
      folder: of their evaluations.
      failed: reason for each checkpoint that could not be evaluated.
    """

    folder: pathlib.Path
    failed: dict[str, str]


class _Task(NamedTuple):
    """A checkpoint to evaluate: its step, and the digest of its content."""

    step: int
    checkpoint: str


def evaluate_checkpoints(config: ConfigDict, workdir: pathlib.Path, features: int) -> Outcome:
    """Evaluates the checkpoints of a run that this protocol has not evaluated yet.

    Args:
      config: the configuration of the evaluation.
      workdir: the run.
      features: most bytes of features to keep in its folder.

    Raises:
      UserError: something is missing or does not match; the message says what to do.
    """
    check_has_checkpoints(workdir)
    check_writable_folder(workdir, "RUN")
    settings = resolved(config, workdir, training=False)
    opened = _opened_once(open_evaluation(settings, workdir, None))
    identity = stored.identity_of(opened.settings, opened.saved, opened.train, opened.test)
    folder = stored.open_folder(workdir, identity)
    store = FeatureStore(workdir, stored.digest(_of_features(identity)), features)
    epoch, failed = _epoch_of(workdir), dict[str, str]()
    begins = settings.evaluation.random_baseline and _begins_random(opened)
    tasks = list(_tasks(workdir, failed, begins))
    todo = [task for task in tasks if not stored.is_done(folder, *task)]
    if len(todo) < len(tasks):
        print(f"{workdir}: {len(tasks) - len(todo)} of {len(tasks)} are evaluated already")
    for number, task in enumerate(todo, 1):
        at = _RANDOM if task.checkpoint == _RANDOM else f"step {task.step}"
        try:
            with BOARD.busy(f"{at} ({number} of {len(todo)})"):
                found = _found(opened, workdir, task)
                keep = store.of(*task)
                metrics = measure(opened, workdir, found, str(task.step), keep).metrics
        except (CheckpointError, DivergedError) as error:
            # A training that goes on removes older ones.
            if (workdir / "checkpoints" / str(task.step)).exists():
                failed[at] = first_line(error, 400)
            continue
        done = task.step / epoch if epoch else None
        stored.write_result(folder, task.step, done, task.checkpoint, metrics)
        print(f"{workdir} {at}{_shown_epoch(done)}: {_shown(metrics)}", flush=True)
    return Outcome(folder, failed)


def _opened_once(opened: Opened) -> Opened:
    """Returns an evaluation of one encoder at a time, which makes the pairs of views once."""
    changes = dict.fromkeys(stored.BASELINES, False)
    pairs = functools.cache(opened.sources.augmented_pairs)
    return opened._replace(
        settings=opened.settings.replace(changes),
        sources=dataclasses.replace(opened.sources, augmented_pairs=pairs),
    )


def _of_features(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a protocol's identity that features depend on."""
    settings = identity["settings"]
    kept = {name: value for name, value in settings.items() if name.startswith(_OF_FEATURES)}
    return {**identity, "settings": kept}


def _begins_random(opened: Opened) -> bool:
    """Returns whether the run began as the random encoder, and that can be evaluated alike."""
    raw = opened.settings.evaluation.coordinates == "raw"
    return raw and opened.saved.train.init_from is None


def _tasks(workdir: pathlib.Path, failed: dict[str, str], begins: bool) -> Iterator[_Task]:
    """Yields the random initialization if the run begins with it, and the readable checkpoints."""
    folder = workdir / "checkpoints"
    try:
        steps = checkpoint_files.steps(folder)
    except UnreadableError as error:
        raise CheckpointError(try_again(error)) from error
    if begins and 0 not in steps:
        yield _Task(0, _RANDOM)
    for step in steps:
        try:
            yield _Task(step, content_digest(folder / str(step)))
        except (DamagedError, UnreadableError) as error:
            failed[f"step {step}"] = str(error)


def _found(opened: Opened, workdir: pathlib.Path, task: _Task) -> Evaluated:
    if task.checkpoint == _RANDOM:
        fresh = opened.run.init()
        weights = {"random": (fresh.params, fresh.batch_stats)}
        encoders, tokens = both_encoders(opened.run, weights)
        return Evaluated(encoders, None, 0, None, {}, tokens)
    return restore(opened.settings, opened.run, workdir, str(task.step))


def _epoch_of(workdir: pathlib.Path) -> int | None:
    """Returns the steps of an epoch, as a checkpoint tells them; None if none does."""
    folder = workdir / "checkpoints"
    for step in reversed(checkpoint_files.steps(folder)):
        try:
            return epoch_steps(read_meta(folder / str(step), META)["data"])
        except (DamagedError, UnreadableError):
            continue
    return None


def _shown_epoch(epoch: float | None) -> str:
    return "" if epoch is None else f", epoch {epoch:.4g}"


def _shown(metrics: Metrics) -> str:
    """Returns the main figures, such as 'kNN@20 87.1 %, probe top-1 88.0 %'."""
    one = next(iter(metrics["encoders"].values()))
    figures, names = headline(one, metrics["headline_k"]), titles(one, metrics["headline_k"])
    wanted = _WITHOUT_LABELS if "no_accuracy" in one else ACCURACIES
    known = {name: value for name, value in json_ready(figures).items() if value is not None}
    parts = []
    for name in wanted:
        if name in known and name in names:
            figure = FIGURES[name]
            unit = " %" if figure.factor != 1 else ""
            value = f"{figure.factor * figures[name]:.{figure.digits}f}{unit}"
            parts.append(f"{names[name].removesuffix(' %')} {value}")
    return ", ".join(parts)
