"""The training loop: batch -> step -> log -> checkpoint."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from hjepa_jax import config_check, sharding
from hjepa_jax.build import build_modules
from hjepa_jax.checkpoint import Checkpointer
from hjepa_jax.config import steps_per_epoch, total_steps
from hjepa_jax.data.pipeline import WaitTimer, device_prefetch, train_batches
from hjepa_jax.data.sources import ImageSource, open_source
from hjepa_jax.errors import CheckpointError, ConfigError, TrainingError
from hjepa_jax.train_state import TrainState, init_state, learning_rates, make_optimizer
from hjepa_jax.train_step import Method, train_step
from hjepa_jax.writers import ProgressDisplay, create_writer

_log = logging.getLogger(__name__)

# Sections and fields that change neither the state nor the batches: free to differ on a resume.
_FREE = ("evaluation", "checkpoint", "log", "data.num_workers", "data.num_threads")
_FREE += ("data.prefetch_batches", "data.device_prefetch", "data.root", "data.test_split")
_FREE += ("data.max_test_images", "data.eval_resize")


class Run(NamedTuple):
    """A run made ready: method, abstract state, and the compiled functions."""

    method: Method
    mesh: Any
    num_steps: int
    init: Callable[[], TrainState]
    step: Callable[[TrainState, Any], tuple[TrainState, Any]]
    abstract_state: Any


def prepare(config: ConfigDict, num_images: int, mesh: Any) -> Run:
    """Builds modules, optimiser, and the jitted, donated init and step functions.

    Raises:
      ConfigError: if the batch does not split over the devices or exceeds the data set.
    """
    sentence = sharding.divisibility_error(config.data.batch_size, mesh, "config.data.batch_size")
    if sentence:
        raise ConfigError(sentence)
    if config.data.batch_size > num_images:
        raise ConfigError(
            f"config.data.batch_size is {config.data.batch_size} but the training split has only "
            f"{num_images} images: set it to {num_images} or less."
        )
    epoch_steps = steps_per_epoch(num_images, config.data.batch_size)
    num_steps = total_steps(config, num_images)
    rates = learning_rates(config, total_steps=num_steps, steps_per_epoch=epoch_steps)
    method = Method(
        config, build_modules(config), make_optimizer(config, rates), rates, epoch_steps
    )
    init = functools.partial(init_state, config, method.modules, method.optimizer)
    key = jax.random.key(config.seed)
    everywhere = sharding.replicated(mesh)
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        jax.eval_shape(init, key),
    )
    jitted = jax.jit(functools.partial(train_step, method), donate_argnums=0)
    return Run(
        method, mesh, num_steps, lambda: jax.jit(init, out_shardings=everywhere)(key), jitted, abstract
    )


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
    source = open_source(config.data, config.data.train_split, seed=config.seed)
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
