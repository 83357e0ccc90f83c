"""The training loop: batch -> step -> log -> checkpoint."""

from __future__ import annotations

import functools
import logging
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from hjepa_jax import config_check, sharding
from hjepa_jax.checkpoint import Checkpointer
from hjepa_jax.config import Config
from hjepa_jax.data.pipeline import BatchStream, WaitTimer, device_prefetch, train_batches
from hjepa_jax.data.sources import ImageSource
from hjepa_jax.errors import CheckpointError, TrainingError
from hjepa_jax.evaluation.online import TrainingMonitor
from hjepa_jax.run import Run, open_split, prepare
from hjepa_jax.train_state import TrainState
from hjepa_jax.train_step import loss_weights
from hjepa_jax.writers import ProgressDisplay, create_writer

_log = logging.getLogger(__name__)

# Sections and fields that change neither the state nor the batches: free to differ on a resume.
_FREE = ("evaluation", "checkpoint", "log", "data.num_workers", "data.num_threads")
_FREE += ("data.prefetch_batches", "data.device_prefetch", "data.root", "data.test_split")
_FREE += ("data.max_test_images", "data.eval_resize")


def data_position(config: Config, source: ImageSource, step: int) -> dict[str, Any]:
    """Returns what identifies the next batch: the step, and the data it counts in."""
    return {
        "step": step,
        "seed": config.seed,
        "num_images": len(source),
        "batch_size": config.data.batch_size,
        "fingerprint": source.fingerprint(),
    }


def check_same_run(saved: dict[str, Any], config: Config, folder: pathlib.Path) -> None:
    """Refuses to continue a run under another configuration, naming the fields that differ.

    Raises:
      CheckpointError: if a field that changes the state or the batches differs.
    """
    old = dict(config_check.flatten(config_check.from_json(saved["config"])))
    differing = [
        f"config.{name} ({old.get(name)!r} there, {value!r} here)"
        for name, value in config_check.flatten(config)
        if old.get(name) != value and not name.startswith(_FREE)
    ]
    if differing:
        raise CheckpointError(
            f"{folder} holds a run of another configuration: {', '.join(differing)}. "
            "Start with the same values, or choose another --workdir."
        )


def restore_or_init(
    run: Run, checkpointer: Checkpointer, config: Config, source: ImageSource
) -> TrainState:
    """Returns the newest checkpoint's state, or a new one where there is none."""
    if not checkpointer.steps():
        return run.init()
    state, meta = checkpointer.restore(run.abstract_state)
    check_same_run(meta, config, checkpointer.folder)
    here = data_position(config, source, int(state.step))
    if meta["data"] != here:
        raise CheckpointError(
            f"the data of the run in {checkpointer.folder} was {meta['data']}, but here it is "
            f"{here}: give the same data, or choose another --workdir."
        )
    return state


def placed_batches(
    config: Config, run: Run, stream: BatchStream, timer: WaitTimer
) -> Iterator[dict[str, jax.Array]]:
    """Yields the stream's batches, placed on the mesh ahead of their use, the wait timed."""
    put = functools.partial(sharding.put_batch, run.mesh)
    return timer.measure(device_prefetch(stream, put, config.data.device_prefetch))


def open_stream(config: Config, run: Run, source: ImageSource, start_step: int) -> BatchStream:
    """Returns this process's batches from `start_step` to the end of the run."""
    return train_batches(
        config,
        source,
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_steps=run.num_steps - start_step,
    )


def warn_of_small_batches(config: Config) -> None:
    """Warns where the log-det floor sees too few rows for its projection to be met.

    The sample covariance of N rows in k dimensions loses log-determinant as k nears N, so that the
    floor pushes noise into the state instead of preventing collapse.
    """
    data, rank = config.data, config.loss.logdet_dim
    rows = data.batch_size * (data.num_global_views + data.num_local_views)
    if config.objective == "hjepa" and config.loss.logdet_weight > 0 and rank > rows // 4:
        _log.warning(
            "config.loss.logdet_dim is %d but a step has only %d rows (views x images): the "
            "log-det floor cannot be met and drowns the prediction; set it to %d or less.",
            rank,
            rows,
            max(rows // 4, 1),
        )


def train(config: Config, workdir: pathlib.Path) -> TrainState:
    """Trains until `train.epochs` are done, from the newest checkpoint of the workdir if any.

    Writes `config.json`, TensorBoard events and `checkpoints/` into the workdir.

    Raises:
      UserError: one of its kinds, each with a sentence that says what to do.
    """
    config_check.validate(config)
    source = open_split(config, "train")
    mesh = sharding.data_mesh()
    run = prepare(config, len(source), mesh)
    checkpointer = Checkpointer(workdir / "checkpoints", keep_last=config.checkpoint.keep_last)
    state = restore_or_init(run, checkpointer, config, source)
    config_check.save(config, workdir)
    first = int(state.step)
    _log.info("%s; %d steps from step %d", source.description, run.num_steps, first)
    weights = ", ".join(f"{name} {value:g}" for name, value in loss_weights(config).items())
    _log.info("effective weights of the loss: %s", weights)
    warn_of_small_batches(config)
    writer = create_writer(workdir)
    display = ProgressDisplay(run.num_steps, first, config.data.batch_size)
    try:
        monitor = TrainingMonitor(config, run, source, writer)
        state = _loop(config, run, source, state, checkpointer, writer, display, monitor)
    finally:
        display.close()
        writer.close()
        checkpointer.close()
    return state


def _loop(
    config: Config,
    run: Run,
    source: ImageSource,
    state: TrainState,
    checkpointer: Checkpointer,
    writer: Any,
    display: ProgressDisplay,
    monitor: TrainingMonitor,
) -> TrainState:
    """Runs the remaining steps; the host waits for the device only to log and to save."""
    first = int(state.step)
    every = config.checkpoint.every_steps or run.method.steps_per_epoch
    with open_stream(config, run, source, first) as stream:
        timer = WaitTimer()
        batches = placed_batches(config, run, stream, timer)
        since, last_logged = time.perf_counter(), first
        for step, batch in enumerate(batches, start=first + 1):
            if step == first + 1:
                monitor.show_views(step, batch)
            state, metrics = run.step(state, batch)
            display.step(step)
            if step % config.log.every_steps == 0 or step in (first + 1, run.num_steps):
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                _check_finite(values.pop("failed_step"), checkpointer)
                elapsed = time.perf_counter() - since
                values["images_per_second"] = (
                    (step - last_logged) * config.data.batch_size / elapsed
                )
                values["data_wait_share"] = timer.take() / elapsed
                values["corrupt_images"] = stream.corrupt_count
                since, last_logged = time.perf_counter(), step
                writer.write_scalars(step, values)
                monitor.check(step, values)
                display.show(step, values["total"], values["images_per_second"])
            if step % every == 0 or step == run.num_steps:
                _check_finite(metrics["failed_step"], checkpointer)
                save(config, source, step, state, checkpointer)
            since += monitor.after_step(step, state)
    return state


def save(
    config: Config, source: ImageSource, step: int, state: TrainState, to: Checkpointer
) -> None:
    """Starts saving the state with its data position and configuration."""
    meta = {"config": config_check.to_json(config), "data": data_position(config, source, step)}
    to.save(step, state, meta)


def _check_finite(failed_step: Any, checkpointer: Checkpointer) -> None:
    """Stops if the loss or gradient of a step was not finite."""
    failed = int(failed_step)
    if failed >= 0:
        saved = checkpointer.steps()
        intact = f"the checkpoint of step {saved[-1]} is intact" if saved else "none was saved yet"
        raise TrainingError(
            f"the loss or its gradient was NaN or infinite at step {failed} "
            f"({checkpointer.folder}; {intact}): lower config.train.lr, or set "
            "config.train.grad_clip, and start again."
        )
