"""The training loop: batch -> step -> log -> checkpoint."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from hjepa_jax import config_check, sharding
from hjepa_jax.checkpoint import Checkpointer
from hjepa_jax.data.pipeline import WaitTimer, device_prefetch, train_batches
from hjepa_jax.data.sources import ImageSource, open_split
from hjepa_jax.errors import CheckpointError, TrainingError
from hjepa_jax.run import Run, prepare
from hjepa_jax.train_state import TrainState
from hjepa_jax.writers import ProgressDisplay, create_writer

_log = logging.getLogger(__name__)

# Sections and fields that change neither the state nor the batches: free to differ on a resume.
_FREE = ("evaluation", "checkpoint", "log", "data.num_workers", "data.num_threads")
_FREE += ("data.prefetch_batches", "data.device_prefetch", "data.root", "data.test_split")
_FREE += ("data.max_test_images", "data.eval_resize")


def data_position(config: ConfigDict, source: ImageSource, step: int) -> dict[str, Any]:
    """Returns what identifies the next batch: the step, and the data it counts in."""
    return {
        "step": step,
        "seed": config.seed,
        "num_images": len(source),
        "batch_size": config.data.batch_size,
        "fingerprint": source.fingerprint(),
    }


def check_same_run(saved: dict[str, Any], config: ConfigDict, folder: pathlib.Path) -> None:
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
    run: Run, checkpointer: Checkpointer, config: ConfigDict, source: ImageSource
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


def batches(
    config: ConfigDict, run: Run, source: ImageSource, start_step: int, timer: WaitTimer
) -> Iterator[dict[str, jax.Array]]:
    """Yields this run's batches from `start_step` on, placed on the mesh."""
    stream = train_batches(
        config,
        source,
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_steps=run.num_steps - start_step,
    )
    put = functools.partial(sharding.put_batch, run.mesh)
    with contextlib.closing(stream):
        yield from timer.measure(device_prefetch(stream, put, config.data.device_prefetch))


def train(config: ConfigDict, workdir: pathlib.Path) -> TrainState:
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
    save_config(config, workdir)
    first = int(state.step)
    _log.info("%s; %d steps from step %d", source.description, run.num_steps, first)
    writer = create_writer(workdir)
    display = ProgressDisplay(run.num_steps, first, config.data.batch_size)
    try:
        state = _loop(config, run, source, state, checkpointer, writer, display)
    finally:
        display.close()
        writer.close()
        checkpointer.close()
    return state


def _loop(
    config: ConfigDict,
    run: Run,
    source: ImageSource,
    state: TrainState,
    checkpointer: Checkpointer,
    writer: Any,
    display: ProgressDisplay,
) -> TrainState:
    """Runs the remaining steps; the host waits for the device only to log and to save."""
    first = int(state.step)
    every = config.checkpoint.every_steps or run.method.steps_per_epoch
    timer, since, last_logged = WaitTimer(), time.perf_counter(), first
    for step, batch in enumerate(batches(config, run, source, first, timer), start=first + 1):
        state, metrics = run.step(state, batch)
        display.step(step)
        if step % config.log.every_steps == 0 or step in (first + 1, run.num_steps):
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            _check_finite(values, checkpointer)
            elapsed = time.perf_counter() - since
            values["images_per_second"] = (step - last_logged) * config.data.batch_size / elapsed
            values["data_wait_share"] = timer.take() / elapsed
            since, last_logged = time.perf_counter(), step
            values.pop("failed_step")
            writer.write_scalars(step, values)
            display.show(step, values["total"], values["images_per_second"])
        if step % every == 0 or step == run.num_steps:
            _check_finite({"failed_step": float(metrics["failed_step"])}, checkpointer)
            meta = {
                "config": config_check.to_json(config),
                "data": data_position(config, source, step),
            }
            checkpointer.save(step, state, meta)
    return state


def _check_finite(values: dict[str, float], checkpointer: Checkpointer) -> None:
    """Stops at the first step whose loss or gradient was not finite."""
    failed = int(values["failed_step"])
    if failed >= 0:
        saved = checkpointer.steps()
        intact = f"the checkpoint of step {saved[-1]} is intact" if saved else "none was saved yet"
        raise TrainingError(
            f"the loss or its gradient was NaN or infinite at step {failed} "
            f"({checkpointer.folder}; {intact}): lower config.train.lr, or set "
            "config.train.grad_clip, and start again."
        )


def save_config(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Writes the resolved configuration to `config.json`, whole or not at all."""
    workdir.mkdir(parents=True, exist_ok=True)
    temporary = workdir / "config.json.tmp"
    temporary.write_text(config_check.to_json(config) + "\n")
    os.replace(temporary, workdir / "config.json")
