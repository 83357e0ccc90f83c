"""The training loop: batch -> step -> log -> checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import jax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from hjepa_jax.config import Settings
from hjepa_jax.config.files import save as save_settings
from hjepa_jax.console import BOARD
from hjepa_jax.data.augmentation.device import ResidentImages
from hjepa_jax.data.pipeline import BatchStream, WaitTimer, train_batches
from hjepa_jax.data.sources.base import ImageSource
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.data.workers.start import check_can_start
from hjepa_jax.evaluation.monitor import TrainingMonitor, check_online_labels
from hjepa_jax.methods.base import Metrics
from hjepa_jax.runtime import distributed, sharding
from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.runtime.checkpoint_files import report_disk_full
from hjepa_jax.runtime.progress import LogClock, ProgressDisplay, SaveClock
from hjepa_jax.runtime.stop_request import RunStopped, StoppedAtOnce, StopRequest
from hjepa_jax.runtime.workdir_lock import WorkdirLock
from hjepa_jax.runtime.writers.open import create_writer
from hjepa_jax.storage.files import check_writable_folder, local_path
from hjepa_jax.storage.metric_names import tag_of, tagged
from hjepa_jax.training.announcement import summary, warn
from hjepa_jax.training.automatic.resolved import resolved
from hjepa_jax.training.feed import (
    dispatch_lengths,
    dispatches,
    images_between,
    last_metrics,
    resident_images,
    steps_per_dispatch,
    unlike_batches,
    with_backend,
)
from hjepa_jax.training.nonfinite import NonFiniteGuard
from hjepa_jax.training.online_probe import logged_figures
from hjepa_jax.training.prepare import PreparedRun, prepare
from hjepa_jax.training.resume import (
    DataIdentity,
    data_identity,
    kept_intervals,
    open_checkpoints,
    ranking,
    restore_or_init,
    save,
)
from hjepa_jax.training.saved_run import check_replaceable
from hjepa_jax.training.state import TrainState

if TYPE_CHECKING:
    from clu import metric_writers


def open_stream(
    settings: Settings,
    source: ImageSource,
    first: int,
    count: int,
    stop: Callable[[float], bool] | None = None,
) -> BatchStream:
    """Returns this process's part of `count` batches, starting at `first`; see train_batches."""
    return train_batches(
        settings.data,
        settings.seed,
        source,
        start_step=first,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_steps=count,
        stop=stop,
    )


def load_batch(
    settings: Settings,
    run: PreparedRun,
    source: ImageSource,
    resident: dict[str, ResidentImages],
    number: int,
) -> dict[str, PyTree[jax.Array]]:
    """Returns one batch, placed on the mesh."""
    with open_stream(settings, source, number, 1) as stream:
        return sharding.put_batch(run.mesh, next(stream)) | resident


@dataclasses.dataclass
class _Session:
    """The objects of one process's share of a run, starting at the restored step `first`."""

    settings: Settings
    run: PreparedRun
    source: ImageSource
    resident: dict[str, ResidentImages]
    identity: DataIdentity
    checkpointer: Checkpointer
    writer: metric_writers.MetricWriter
    display: ProgressDisplay
    monitor: TrainingMonitor
    guard: NonFiniteGuard
    stop: StopRequest
    save_clock: SaveClock
    lock: WorkdirLock
    first: int
    compiled: set[tuple[int, int]] = dataclasses.field(default_factory=set)

    @property
    def end(self) -> int:
        """The step to stop after: the last one of the run, or of what is asked for now."""
        planned = self.run.num_steps if self.stop.after is None else self.stop.after
        return max(self.first, min(planned, self.run.num_steps))

    def advance(
        self, state: TrainState, batch: dict[str, jax.Array], count: int
    ) -> tuple[TrainState, Metrics]:
        """Dispatches `count` steps; the first time, their program is compiled."""
        step = self.run.step if count == 1 else self.run.steps
        program = (count, batch["index"].shape[-1])
        if program in self.compiled:
            return step(state, batch)
        self.compiled.add(program)
        with BOARD.busy("compiling"):
            return step(state, batch)

    def ends_dispatch(self, step: int) -> bool:
        """Returns whether something is due after a step, or its batch or the next is partial."""
        data, skipped = self.settings.data, len(self.guard.skipped)
        unlike = unlike_batches(data, len(self.source), skipped)
        return any(self.due(step)) or unlike(step)

    def is_written(self, step: int) -> bool:
        """Returns whether a step's metrics go to the files, wherever the run was interrupted."""
        return step % self.settings.log.every_steps == 0 or step in (1, self.run.num_steps)

    def due(self, step: int) -> tuple[bool, bool, bool]:
        """Returns what is due after a step: a log line, a checkpoint, an evaluation."""
        epoch, checkpoint = self.run.method.steps_per_epoch, self.settings.checkpoint
        intervals = (checkpoint.every_steps or epoch, *kept_intervals(checkpoint, epoch))
        logs = step == self.first + 1 or self.is_written(step)
        saves = any(step % n == 0 for n in intervals) or step == self.end
        return logs, saves, self.monitor.is_due(step)


def train(
    config: ConfigDict | Settings,
    workdir: pathlib.Path,
    stop: StopRequest | None = None,
    *,
    changes: tuple[str, ...] | None = None,
) -> TrainState:
    """Trains until `train.epochs` are done, from the newest checkpoint of the workdir if any.

    Writes `config.json`, `metrics.jsonl`, TensorBoard events and `checkpoints/` into the workdir.

    Args:
      config: the complete configuration.
      workdir: folder of the run.
      stop: the entered StopRequest of a caller that continues afterwards; None = a new one.
      changes: what is named as changed in a recipe, see `announcement.summary`.

    Raises:
      UserError: a subclass, whose message says what to do.
      RunStopped: if a signal or `stop.after` stopped the run; its state is saved.
    """
    workdir = local_path(workdir, "--workdir")
    settings = resolved(config, workdir)
    if settings.data.num_workers:
        check_can_start()
    if distributed.is_primary():
        check_writable_folder(workdir, "--workdir", checkpoints=True)
        check_replaceable(workdir)
    asked = StopRequest() if stop is None else contextlib.nullcontext(stop)
    with WorkdirLock(workdir) as lock, asked as current, report_disk_full(workdir):
        return _train(settings, workdir, current, lock, changes)


def _opened(settings: Settings, stop: StopRequest) -> tuple[ImageSource, PreparedRun, DataIdentity]:
    """Opens and reads the data and builds the run; a stop request ends this at once.

    One of several processes cannot stop alone: they agree before their first step.
    """
    alone = jax.process_count() == 1
    try:
        with stop.at_once("the opening of the data") if alone else contextlib.nullcontext():
            source = open_split(settings, "train")
            check_online_labels(settings.evaluation, source)
            run = prepare(settings, len(source), sharding.data_mesh(), len(source.class_names))
            return source, run, data_identity(settings.data, settings.seed, source)
    except StoppedAtOnce:
        raise RunStopped(None) from None


def _train(
    settings: Settings,
    workdir: pathlib.Path,
    stop: StopRequest,
    lock: WorkdirLock,
    changes: tuple[str, ...] | None,
) -> TrainState:
    with BOARD.busy("reading the data"):
        source, run, identity = _opened(settings, stop)
    checkpointer = open_checkpoints(settings, workdir, run.method.steps_per_epoch)
    with BOARD.busy("preparing"):
        state, skipped, backend = restore_or_init(run, checkpointer, settings, identity)
    settings = with_backend(settings, backend, source)
    first = int(state.step)
    if distributed.is_primary():
        save_settings(settings, workdir)
        BOARD.table(summary(settings, run, source, workdir, first=first, changes=changes))
    warn(settings, run, len(source), workdir, first)
    resident = resident_images(settings.data, source, run.mesh)
    load = functools.partial(load_batch, settings, run, source, resident)
    guard = NonFiniteGuard(run, workdir, load, skipped)
    writer, display = _outputs(settings, run, workdir, first)
    try:
        monitor = TrainingMonitor(settings, run, source, writer)
        session = _Session(
            settings=settings,
            run=run,
            source=source,
            resident=resident,
            identity=identity,
            checkpointer=checkpointer,
            writer=writer,
            display=display,
            monitor=monitor,
            guard=guard,
            stop=stop,
            save_clock=SaveClock(settings.checkpoint.every_minutes),
            lock=lock,
            first=first,
        )
        state = _loop(session, state)
    finally:
        display.close()
        writer.close()
        checkpointer.close()
    if int(state.step) < run.num_steps:
        planned = stop.after is not None and not stop.asked
        raise RunStopped(int(state.step), run.num_steps, planned=planned)
    return state


def _outputs(
    settings: Settings, run: PreparedRun, workdir: pathlib.Path, first: int
) -> tuple[metric_writers.MetricWriter, ProgressDisplay]:
    """Opens the metric writer, which gets the configuration, and the display."""
    primary, epoch = distributed.is_primary(), run.method.steps_per_epoch
    weights = run.method.weights()
    writer = create_writer(
        workdir,
        active=primary and first < run.num_steps,
        purge_step=first + 1,
        epoch_steps=epoch,
        writers=settings.log.writers,
    )
    writer.write_hparams(settings.values())
    writer.write_texts(first, {"configuration": f"```json\n{settings.to_json()}\n```"})
    terms = [tag_of(name, weights) for name, weight in weights.items() if weight]
    display = ProgressDisplay(
        run.num_steps, first, epoch_steps=epoch, terms=terms, quiet=not primary
    )
    return writer, display


def _loop(session: _Session, state: TrainState) -> TrainState:
    """Runs the remaining steps; after a skipped batch the stream is reopened behind it."""
    failed = True
    while failed and not session.stop.agreed(together=True):
        state, failed = _steps(session, state)
        if failed:
            session.lock.check()
            state = session.guard.after_failure(state, session.checkpointer.steps())
    # After a stop request, the last step is not saved yet.
    if int(state.step) > max(session.checkpointer.steps(), default=session.first):
        _save(session, state, {})
    return state


def _steps(session: _Session, state: TrainState) -> tuple[TrainState, bool]:
    """Runs steps until the end, a stop request or a failure; the host waits only to log and save.

    Where several steps are dispatched together, a log line is read once the next are under way.

    Returns:
      (state, whether it has failed).
    """
    settings, run = session.settings, session.run
    first = int(state.step)
    number = first + len(session.guard.skipped)
    left, ends_wait = session.end - first, session.stop.ends_wait
    step, metrics, unread = first, None, None
    with open_stream(settings, session.source, number, left, ends_wait) as stream:
        timer = WaitTimer()
        clock = LogClock(first)
        log = functools.partial(_write_log, session, clock, stream, timer)
        most = steps_per_dispatch(settings.train, session.resident)
        lengths = dispatch_lengths(first, session.end, most, session.ends_dispatch)
        placed = dispatches(stream, lengths, run.mesh, session.resident, settings.data, timer)
        for count, batch in placed:
            step += count
            if step == session.first + 1:
                session.monitor.show_views(step, batch)
            state, metrics = session.advance(state, batch, count)
            if step == session.first + 1:
                # Report an unknown metric now, not at the first save.
                ranking(settings.checkpoint, metrics, {})
            session.display.step(step)
            logs, saves, scored = session.due(step)
            stops = session.stop.agreed(together=logs)
            saves |= session.save_clock.is_due(together=logs)
            scored &= not stops
            if unread is not None and not log(*unread):
                return state, True
            unread = (step, metrics) if logs else None
            # While the next batch is awaited, nothing else is under way: its step may be far off.
            if not (saves or stops or scored or (logs and most == 1)):
                continue
            last = last_metrics(metrics)
            if last["failed_step"] >= 0:
                return state, True
            if unread is not None:
                log(*unread)
                unread = None
            scores = {}
            if scored:
                with clock.paused(), BOARD.busy("evaluating"):
                    scores = session.monitor.scores(step, state)
                session.display.score(step, scores)
            if saves:
                _save(session, state, ranking(settings.checkpoint, last, scores))
            if stops:
                break
        # Also if the stream ended early because of a stop request.
        if metrics is not None and last_metrics(metrics)["failed_step"] >= 0:
            return state, True
        if unread is not None:
            log(*unread)
    return state, False


def _save(session: _Session, state: TrainState, metrics: Mapping[str, float]) -> None:
    session.lock.check()
    session.guard.check_state(state, session.checkpointer.steps())
    # What is logged before a checkpoint is not written again by a run that resumes from it.
    session.writer.flush()
    skipped = session.guard.skipped
    save(session.settings, session.identity, skipped, state, session.checkpointer, metrics)
    session.save_clock.restart()


def _write_log(
    session: _Session,
    clock: LogClock,
    stream: BatchStream,
    timer: WaitTimer,
    step: int,
    metrics: Metrics,
) -> bool:
    """Writes and shows the metrics of a step, its speed, and alarms; returns False if it failed."""
    values = {name: float(value) for name, value in last_metrics(metrics).items()}
    if values.pop("failed_step") >= 0:
        return False
    values = logged_figures(values)
    steps, elapsed = clock.restart(step)
    skipped, data = len(session.guard.skipped), session.settings.data
    images = images_between(data, len(session.source), step - steps + skipped, step + skipped)
    values["images_per_second"] = images / elapsed
    values["data_wait_share"] = timer.take() / elapsed
    values["corrupt_images"] = distributed.sum_over_processes(stream.corrupt_count)
    values["skipped_batches"] = len(session.guard.skipped)
    by_tag = tagged(values, session.run.method.weights())
    if session.is_written(step):
        session.writer.write_scalars(step, by_tag)
    session.monitor.check(step, values)
    session.display.show(step, by_tag)
    return True
