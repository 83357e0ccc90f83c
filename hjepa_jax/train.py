"""The training loop: batch -> step -> log -> checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from hjepa_jax.config import Config, may_change_on_resume, steps_per_epoch, total_steps, validation
from hjepa_jax.config.rules import unfinished_schedules
from hjepa_jax.data.pipeline import BatchStream, WaitTimer, device_prefetch, train_batches
from hjepa_jax.data.sources.base import ImageSource
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.data.workers.start import check_can_start
from hjepa_jax.errors import CheckpointError, ConfigError
from hjepa_jax.evaluation.monitor import TrainingMonitor, check_online_labels
from hjepa_jax.runtime import distributed, sharding
from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.runtime.checkpoint_files import report_disk_full
from hjepa_jax.runtime.devices import on_cpu
from hjepa_jax.runtime.progress import LogClock, ProgressDisplay
from hjepa_jax.runtime.stop_request import RunStopped, StoppedAtOnce, StopRequest
from hjepa_jax.runtime.workdir_lock import WorkdirLock
from hjepa_jax.runtime.writers import create_writer
from hjepa_jax.storage.files import check_writable_folder, local_path
from hjepa_jax.training.nonfinite import NonFiniteGuard
from hjepa_jax.training.online_probe import logged_figures
from hjepa_jax.training.prepare import Run, prepare
from hjepa_jax.training.saved_run import check_finite, check_replaceable, config_in, initial_state
from hjepa_jax.training.state import TrainState
from hjepa_jax.training.step import loss_weights

_log = logging.getLogger(__name__)

# Scores of the online kNN, which only some steps have.
KNN = "online/knn_"


def data_identity(config: Config, source: ImageSource) -> dict[str, Any]:
    """Returns what the batches' numbers count in; it reads all of the source, so once a run."""
    return {
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
    differing = validation.differences(
        config_in(saved, folder),
        config,
        lambda name: not may_change_on_resume(name, config),
    )
    if differing:
        raise CheckpointError(
            f"{folder} holds a run of another configuration: {', '.join(differing)}. "
            "Start with the same values, or choose another --workdir."
        )


def restore_or_init(
    run: Run, checkpointer: Checkpointer, config: Config, identity: Mapping[str, Any]
) -> tuple[TrainState, list[int]]:
    """Returns the newest checkpoint's state, or a new one, and the batches skipped before it.

    Raises:
      CheckpointError: if the checkpoint is of another configuration or of other data.
    """
    here = {"the training data": dict(identity), "the checkpoints": checkpointer.steps()}
    distributed.check_same(
        here, f"give all of them the same data and a --workdir that all see ({checkpointer.folder})"
    )
    if not checkpointer.steps():
        return initial_state(config, run), []
    state, meta = checkpointer.restore(run.abstract_state)
    check_finite(state, checkpointer.folder)
    check_same_run(meta, config, checkpointer.folder)
    skipped = meta["data"].get("skipped", [])
    here = {"step": int(state.step), "skipped": skipped, **identity}
    if {"skipped": [], **meta["data"]} != here:
        raise CheckpointError(
            f"the data of the run in {checkpointer.folder} was {meta['data']}, but here it is "
            f"{here}: give the same data, or choose another --workdir."
        )
    return state, list(skipped)


def placed_batches(
    config: Config, run: Run, stream: BatchStream, timer: WaitTimer
) -> Iterator[dict[str, jax.Array]]:
    """Yields the stream's batches, placed on the mesh ahead of their use, the wait timed."""
    put = functools.partial(sharding.put_batch, run.mesh)
    return timer.measure(device_prefetch(stream, put, config.data.device_prefetch))


def open_stream(
    config: Config,
    source: ImageSource,
    first: int,
    count: int,
    stop: Callable[[float], bool] | None = None,
) -> BatchStream:
    """Returns this process's part of `count` batches from number `first` on; see train_batches."""
    return train_batches(
        config,
        source,
        start_step=first,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_steps=count,
        stop=stop,
    )


def load_batch(config: Config, run: Run, source: ImageSource, number: int) -> Any:
    """Returns one batch, placed on the mesh."""
    with open_stream(config, source, number, 1) as stream:
        return sharding.put_batch(run.mesh, next(stream))


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


def warn_of_cut_schedules(config: Config, num_images: int) -> None:
    """Warns where config.train.max_steps ends a run before its warm-ups do."""
    steps = total_steps(config, num_images)
    epochs = steps / steps_per_epoch(num_images, config.data.batch_size)
    unfinished = unfinished_schedules(config, epochs)
    # A run of a few steps is there to see that everything runs.
    if unfinished and config.train.max_steps == steps > 10:
        _log.warning(
            "config.train.max_steps ends the run after %.3g epochs, before the end of %s: the "
            "schedule never reaches its peak.",
            epochs,
            " and ".join(unfinished),
        )


def warn_of_slow_arithmetic(config: Config) -> None:
    """Warns where the encoder computes in bfloat16 on a CPU, which has to emulate most of it."""
    if on_cpu() and config.model.compute_dtype == "bfloat16":
        _log.warning(
            "config.model.compute_dtype is bfloat16, two to three times slower than float32 on "
            "a CPU: set --config.model.compute_dtype=float32, unless it must match a run on a GPU."
        )


@dataclasses.dataclass
class _Session:
    """What one process's share of a run works with, from the restored step `first` on."""

    config: Config
    run: Run
    source: ImageSource
    identity: dict[str, Any]
    checkpointer: Checkpointer
    writer: Any
    display: ProgressDisplay
    monitor: TrainingMonitor
    guard: NonFiniteGuard
    stop: StopRequest
    lock: WorkdirLock
    first: int


def train(config: Config, workdir: pathlib.Path, stop: StopRequest | None = None) -> TrainState:
    """Trains until `train.epochs` are done, from the newest checkpoint of the workdir if any.

    Writes `config.json`, TensorBoard events and `checkpoints/` into the workdir.

    Args:
      config: the whole configuration.
      workdir: folder of the run.
      stop: the entered StopRequest of a caller who goes on afterwards; None = one of its own.

    Raises:
      UserError: one of its kinds, each with a sentence that says what to do.
      RunStopped: a signal asked the run to end; it is saved.
    """
    validation.validate(config)
    if config.data.num_workers:
        check_can_start()
    workdir = local_path(workdir, "--workdir")
    if distributed.is_primary():
        check_writable_folder(workdir, "--workdir", checkpoints=True)
        check_replaceable(workdir)
    asked = StopRequest() if stop is None else contextlib.nullcontext(stop)
    with WorkdirLock(workdir) as lock, asked as current, report_disk_full(workdir):
        return _train(config, workdir, current, lock)


def open_checkpoints(config: Config, workdir: pathlib.Path) -> Checkpointer:
    """Opens the checkpoints of a workdir for saving."""
    settings = config.checkpoint
    return Checkpointer(
        workdir / "checkpoints",
        keep_last=settings.keep_last,
        keep_best=settings.keep_best,
        best_metric=settings.best_metric,
        best_mode=settings.best_mode,
    )


def _opened(config: Config, stop: StopRequest) -> tuple[ImageSource, Run, dict[str, Any]]:
    """Opens and reads the data, which may take long, and builds the run; a stop ends it at once.

    Of several processes none can end alone: they agree before their first step.
    """
    alone = jax.process_count() == 1
    try:
        with stop.at_once("the opening of the data") if alone else contextlib.nullcontext():
            source = open_split(config, "train")
            check_online_labels(config, source)
            run = prepare(config, len(source), sharding.data_mesh(), len(source.class_names))
            return source, run, data_identity(config, source)
    except StoppedAtOnce:
        raise RunStopped(None) from None


def _train(
    config: Config, workdir: pathlib.Path, stop: StopRequest, lock: WorkdirLock
) -> TrainState:
    source, run, identity = _opened(config, stop)
    checkpointer = open_checkpoints(config, workdir)
    state, skipped = restore_or_init(run, checkpointer, config, identity)
    primary = distributed.is_primary()
    if primary:
        validation.save(config, workdir)
    first = int(state.step)
    _log.info("%s; %d steps from step %d", source.description, run.num_steps, first)
    weights = ", ".join(f"{name} {value:g}" for name, value in loss_weights(config).items())
    _log.info("effective weights of the loss: %s", weights)
    warn_of_small_batches(config)
    warn_of_cut_schedules(config, len(source))
    warn_of_slow_arithmetic(config)
    load = functools.partial(load_batch, config, run, source)
    guard = NonFiniteGuard(config, run, workdir, load, skipped)
    writer = create_writer(workdir, active=primary, purge_step=first + 1)
    display = ProgressDisplay(run.num_steps, first, quiet=not primary)
    try:
        monitor = TrainingMonitor(config, run, source, writer)
        session = _Session(
            config=config,
            run=run,
            source=source,
            identity=identity,
            checkpointer=checkpointer,
            writer=writer,
            display=display,
            monitor=monitor,
            guard=guard,
            stop=stop,
            lock=lock,
            first=first,
        )
        state = _loop(session, state)
    finally:
        display.close()
        writer.close()
        checkpointer.close()
    if int(state.step) < run.num_steps:
        raise RunStopped(int(state.step), run.num_steps)
    return state


def _loop(session: _Session, state: TrainState) -> TrainState:
    """Runs the remaining steps; a skipped batch opens the stream anew behind it."""
    failed = True
    while failed and not session.stop.agreed(together=True):
        state, failed = _steps(session, state)
        if failed:
            session.lock.check()
            state = session.guard.after_failure(state, session.checkpointer.steps())
    # Where a stop was asked for, the last step is not saved yet.
    if int(state.step) > max(session.checkpointer.steps(), default=session.first):
        _save(session, state, {})
    return state


def _steps(session: _Session, state: TrainState) -> tuple[TrainState, bool]:
    """Runs steps until the end, a stop or a failure; the host waits only to log and to save.

    Returns:
      (state, whether it has failed).
    """
    config, run = session.config, session.run
    first = int(state.step)
    every = config.checkpoint.every_steps or run.method.steps_per_epoch
    number = first + len(session.guard.skipped)
    left, ends_wait = run.num_steps - first, session.stop.ends_wait
    metrics: Any = {}
    with open_stream(config, session.source, number, left, ends_wait) as stream:
        timer = WaitTimer()
        clock = LogClock(first)
        for step, batch in enumerate(placed_batches(config, run, stream, timer), start=first + 1):
            if step == session.first + 1:
                session.monitor.show_views(step, batch)
            state, metrics = run.step(state, batch)
            if step == session.first + 1:
                ranking(config, metrics, {})  # an unknown metric is told now, not at the first save
            session.display.step(step)
            logs = step % config.log.every_steps == 0 or step in (session.first + 1, run.num_steps)
            stops = session.stop.agreed(together=logs)
            saves = step % every == 0 or step == run.num_steps
            scores_due = session.monitor.is_due(step) and not stops
            if (logs or saves or stops or scores_due) and int(metrics["failed_step"]) >= 0:
                return state, True
            if logs:
                _write_log(session, step, metrics, clock, stream, timer)
            scores = {}
            if scores_due:
                with clock.paused():
                    scores = session.monitor.scores(step, state)
            if saves:
                _save(session, state, ranking(config, metrics, scores))
            if stops:
                break
    # Also where the stream ended early, for a stop came while it waited.
    return state, bool(metrics) and int(metrics["failed_step"]) >= 0


def _save(session: _Session, state: TrainState, metrics: Mapping[str, float]) -> None:
    session.lock.check()
    session.guard.check_state(state, session.checkpointer.steps())
    skipped = session.guard.skipped
    save(session.config, session.identity, skipped, state, session.checkpointer, metrics)


def _write_log(
    session: _Session,
    step: int,
    metrics: Any,
    clock: LogClock,
    stream: BatchStream,
    timer: WaitTimer,
) -> None:
    """Writes and shows the metrics of a step, its speed, and alarms."""
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    del values["failed_step"]
    values = logged_figures(values)
    steps, elapsed = clock.restart(step)
    values["images_per_second"] = steps * session.config.data.batch_size / elapsed
    values["data_wait_share"] = timer.take() / elapsed
    values["corrupt_images"] = distributed.sum_over_processes(stream.corrupt_count)
    values["skipped_batches"] = len(session.guard.skipped)
    session.writer.write_scalars(step, values)
    session.monitor.check(step, values)
    session.display.show(step, values["total"], values["images_per_second"])


def ranking(
    config: Config, metrics: Mapping[str, Any], scores: Mapping[str, float]
) -> dict[str, float]:
    """Returns the metric that a checkpoint is ranked by; {} where none is, or it is not due.

    Raises:
      ConfigError: if config.checkpoint.best_metric is no metric of this run.
    """
    name = config.checkpoint.best_metric
    if not config.checkpoint.keep_best:
        return {}
    if name.startswith(KNN):
        return {name: scores[name]} if name in scores else {}
    options = sorted(set(metrics) - {"failed_step"})
    if name not in options:
        nearest = difflib.get_close_matches(name, options, 1, 0.0)[0]
        raise ConfigError(
            f"config.checkpoint.best_metric is {name!r}, which is none of {', '.join(options)}: "
            f"did you mean {nearest!r}?"
        )
    return {name: float(metrics[name])}


def save(
    config: Config,
    identity: Mapping[str, Any],
    skipped: list[int],
    state: TrainState,
    to: Checkpointer,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Starts saving the state with its data position and configuration."""
    step = int(state.step)
    meta = {
        "config": validation.to_json(config),
        "data": {"step": step, "skipped": list(skipped), **identity},
    }
    to.save(step, state, meta, metrics)
