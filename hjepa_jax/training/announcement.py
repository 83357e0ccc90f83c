"""What is said when training starts: what the run is, and settings that are likely mistakes."""

from __future__ import annotations

import logging
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence

import jax
from jaxtyping import PyTree

from hjepa_jax.config import (
    Settings,
    steps_per_epoch,
    total_steps,
    view_sizes,
)
from hjepa_jax.config.rules import unfinished_schedules
from hjepa_jax.config.training import Model
from hjepa_jax.data.sources.base import ImageSource
from hjepa_jax.errors import counted, size
from hjepa_jax.methods.base import Method
from hjepa_jax.runtime import checkpoint_files
from hjepa_jax.runtime.arithmetic import described
from hjepa_jax.runtime.devices import on_cpu
from hjepa_jax.storage.metric_names import tag_of
from hjepa_jax.training.prepare import PreparedRun
from hjepa_jax.training.resume import kept_intervals

_log = logging.getLogger(__name__)
# Differences from the defaults that are named; config.json has all.
_MOST_CHANGES = 8


def summary(
    settings: Settings,
    run: PreparedRun,
    source: ImageSource,
    workdir: pathlib.Path,
    *,
    first: int,
    changes: tuple[str, ...] | None,
) -> dict[str, str]:
    """Returns what a run is in about ten short lines, by their title.

    Args:
      settings: the run's settings.
      run: the prepared run.
      source: the training images.
      workdir: folder of the run.
      first: steps done before.
      changes: what the command line changes in a recipe, such as 'seed=3'; None = name what differs
        from the defaults.
    """
    data, train, epoch = settings.data, settings.train, run.method.steps_per_epoch
    weights = ", ".join(
        f"{tag_of(name, run.method.weights()).rpartition('/')[-1]} {weight:g}"
        for name, weight in run.method.weights().items()
        if weight
    )
    counts = {part: _millions(tree) for part, tree in run.abstract_state.params.items()}
    views = " + ".join(
        f"{count} views of {side}x{side}" for count, side in view_sizes(data).values()
    )
    kinds = [device.device_kind for device in run.mesh.devices.flat]
    split = f" in {train.accumulation} micro-batches" if train.accumulation > 1 else ""
    rest = 0 if data.drop_last else len(source) % data.batch_size
    last = f" (the last of an epoch {rest})" if rest else ""
    steps = f"{run.num_steps} steps, {run.num_steps / epoch:.3g} epochs of {epoch}"
    lr = f"learning rate {train.lr:g}, warm-up {train.warmup_epochs:g} epochs"
    every = settings.checkpoint.every_steps or epoch
    computed = described(settings.runtime)
    return {
        "method": f"{settings.method}" + (f" (weights: {weights})" if weights else ""),
        "data": source.description,
        "encoder": f"{settings.model.encoder}, {counts.pop('encoder')} parameters"
        + "".join(f"; {part} {count}" for part, count in counts.items()),
        "devices": f"{len(kinds)} x {kinds[0]}"
        + (f", {jax.process_count()} processes" if jax.process_count() > 1 else ""),
        "batch": f"{data.batch_size} images{split}{last}, {views} each, made on the {data.backend}",
        "training": f"{steps}; {lr}" + (f"; resumed at step {first}" if first else ""),
        "precision": f"{settings.model.compute_dtype} encoder, float32 parameters and loss",
        **({"runtime": computed} if computed else {}),
        **_changed(settings, changes),
        "folder": f"{workdir}: config.json, metrics.jsonl, events, a checkpoint every {every} steps"
        + _kept(run),
    }


def _kept(run: PreparedRun) -> str:
    """Returns what checkpoints that are kept for good take on disk; '' if there are none."""
    intervals = kept_intervals(run.settings.checkpoint, run.method.steps_per_epoch)
    count = len(_multiples(intervals, 0, run.num_steps))
    if not count:
        return ""
    often = " and ".join(f"{interval}" for interval in intervals)
    total = size(count * _state_bytes(run))
    return f"; those of every {often} steps are kept, {count} of them, about {total}"


def _multiples(intervals: Sequence[int], first: int, last: int) -> set[int]:
    """Returns the multiples of any of the intervals above `first`, up to `last`."""
    return {step for n in intervals for step in range(n * (first // n + 1), last + 1, n)}


def _state_bytes(run: PreparedRun) -> int:
    """Returns the bytes of a checkpoint's arrays, which hardly shrink when they are written."""
    leaves = jax.tree.leaves(run.abstract_state)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def disk_space(run: PreparedRun, workdir: pathlib.Path, first: int = 0) -> Iterator[str]:
    """Yields a sentence if the disk has less space than the checkpoints of a run will take.

    Args:
      run: the prepared run.
      workdir: its folder.
      first: steps done before.
    """
    settings, one = run.settings.checkpoint, _state_bytes(run)
    intervals = kept_intervals(settings, run.method.steps_per_epoch)
    there = len(checkpoint_files.steps(workdir / "checkpoints"))
    # The newest is written before the oldest is removed.
    passing = max(1, settings.keep_last + settings.keep_best + 1 - there)
    count = min(len(_multiples(intervals, first, run.num_steps)) + passing, run.num_steps - first)
    free = shutil.disk_usage(workdir).free
    if count * one > free:
        yield (
            f"{counted(count, 'more checkpoint')} will take about {size(count * one)}, but only "
            f"{size(free)} are free in {workdir}: free disk space, or keep fewer "
            "(config.checkpoint.keep_every_steps, keep_every_epochs, keep_last, keep_best)."
        )


def _millions(params: PyTree[jax.ShapeDtypeStruct]) -> str:
    """Returns the number of parameters, such as '11.2 M'."""
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    for factor, unit in ((1e6, " M"), (1e3, " k")):
        if count >= factor:
            return f"{count / factor:.3g}{unit}"
    return str(count)


def _changed(settings: Settings, changes: tuple[str, ...] | None) -> Mapping[str, str]:
    """Returns the line of what differs from the recipe, or from the defaults."""
    if changes is not None:
        return {"changed": ", ".join(changes)} if changes else {}
    found = [f"{path}={value}" for path, (value, _) in settings.changed().items()]
    more = f", and {len(found) - _MOST_CHANGES} more" if len(found) > _MOST_CHANGES else ""
    return {"changed": ", ".join(found[:_MOST_CHANGES]) + more} if found else {}


def cautions(settings: Settings, method: Method, num_images: int) -> Iterator[str]:
    """Yields a sentence for each setting that is likely a mistake, the method's first.

    Args:
      settings: a validated configuration.
      method: the run's method.
      num_images: number of images in the training split.
    """
    yield from method.warnings()
    yield from _cut_schedules(settings, num_images)
    yield from _slow_arithmetic(settings.model)
    yield from _unused_precision(settings)


def warn(
    settings: Settings, run: PreparedRun, num_images: int, workdir: pathlib.Path, first: int
) -> None:
    """Logs that a run is finished already, and settings that are likely mistakes.

    Args:
      settings: the run's settings.
      run: the prepared run.
      num_images: number of images in the training split.
      workdir: folder of the run.
      first: steps done before.
    """
    if first >= run.num_steps:
        _log.info(
            "%s is finished: all %d steps are done, and nothing is trained. For another run choose "
            "another --workdir; config.train.init_from begins it with these parameters.",
            workdir,
            run.num_steps,
        )
    found = [*cautions(settings, run.method, num_images), *disk_space(run, workdir, first)]
    for sentence in found:
        _log.warning("%s", sentence)


def _cut_schedules(settings: Settings, num_images: int) -> Iterator[str]:
    """Yields a sentence if config.train.max_steps ends a run before its warm-ups."""
    epoch_steps = steps_per_epoch(num_images, settings.data.batch_size, settings.data.drop_last)
    steps = total_steps(settings.train, epoch_steps)
    epochs = steps / epoch_steps
    unfinished = unfinished_schedules(settings, epochs)
    # A run of a few steps only checks that everything runs.
    if unfinished and settings.train.max_steps == steps > 10:
        yield (
            f"config.train.max_steps ends the run after {epochs:.3g} epochs, before the end of "
            f"{' and '.join(unfinished)}: the schedule never reaches its peak."
        )


def _unused_precision(settings: Settings) -> Iterator[str]:
    """Yields a sentence if the precision of float32 products is set, but the encoder has none."""
    precision, dtype = settings.runtime.matmul_precision, settings.model.compute_dtype
    if precision != "default" and dtype != "float32":
        yield (
            f"config.runtime.matmul_precision is {precision!r}, but the encoder computes in "
            f"{dtype}, to which it does not apply: set --config.model.compute_dtype=float32, or "
            "leave it at 'default'."
        )


def _slow_arithmetic(model: Model) -> Iterator[str]:
    """Yields a sentence if the encoder uses bfloat16 on a CPU, where it is emulated."""
    if on_cpu() and model.compute_dtype == "bfloat16":
        yield (
            "config.model.compute_dtype is bfloat16, two to three times slower than float32 on "
            "a CPU: set --config.model.compute_dtype=float32, unless it must match a run on a GPU."
        )
