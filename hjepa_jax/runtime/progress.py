"""The progress display of a training run, and the clocks of its log and its checkpoints."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from hjepa_jax.runtime import distributed


class _Lasting(Console):
    """A console that reports a broken pipe as an error, instead of ending the program."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class ProgressDisplay:
    """A progress bar with loss, images/s and time left; plain lines without a terminal."""

    def __init__(self, total_steps: int, first_step: int, *, quiet: bool = False) -> None:
        """Shows the progress from `first_step` to `total_steps`; nothing if `quiet`."""
        self._console = Console(quiet=True) if quiet else _Lasting(stderr=True)
        self._total = total_steps
        self._start: float | None = None
        self._started_at = first_step
        self._bar: Progress | None = None
        self._last_update = 0.0
        if self._console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("loss {task.fields[loss]}  {task.fields[rate]} images/s  time left"),
                TimeRemainingColumn(),
                console=self._console,
                auto_refresh=False,  # a refresh thread would fail once the terminal is gone
            )
            self._task = self._bar.add_task(
                "train", total=total_steps, completed=first_step, loss="-", rate="-"
            )
            with self._terminal():
                self._bar.start()

    def step(self, step: int) -> None:
        """Counts a finished step; rates exclude the first one, which compiles."""
        with self._terminal():
            self._step(step)

    def _step(self, step: int) -> None:
        if self._start is None:
            self._start, self._started_at = time.perf_counter(), step
        if self._bar is not None and time.perf_counter() - self._last_update > 0.1:
            self._last_update = time.perf_counter()
            self._bar.update(self._task, completed=step, refresh=True)

    def show(self, step: int, loss: float, images_per_second: float) -> None:
        """Shows the values of a log step."""
        with self._terminal():
            self._show(step, loss, images_per_second)

    def _show(self, step: int, loss: float, images_per_second: float) -> None:
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=step,
                loss=f"{loss:.4f}",
                rate=f"{images_per_second:.0f}",
                refresh=True,
            )
            return
        elapsed = time.perf_counter() - (self._start or time.perf_counter())
        done = max(step - self._started_at, 1)
        left = (self._total - step) * elapsed / done
        self._console.print(
            f"step {step}/{self._total}  loss {loss:.4f}  {images_per_second:.0f} images/s  "
            f"time left {int(left // 60)}:{int(left % 60):02d}",
            highlight=False,
        )

    def close(self) -> None:
        """Stops the display."""
        with self._terminal():
            if self._bar is not None:
                self._bar.stop()

    @contextlib.contextmanager
    def _terminal(self) -> Iterator[None]:
        """Keeps the run going if the terminal or pipe is closed."""
        try:
            yield
        except OSError:
            bar, self._bar = self._bar, None
            with contextlib.suppress(OSError):
                if bar is not None:
                    bar.stop()  # it redirects what is printed
            self._console = Console(quiet=True)


class SaveClock:
    """Tells when a checkpoint is due by time."""

    def __init__(self, minutes: float | None, clock: Callable[[], float] = time.monotonic):
        """Starts now; `minutes` since the last checkpoint, None = never."""
        self._minutes, self._clock = minutes, clock
        self.restart()

    def restart(self) -> None:
        """Starts over, after a checkpoint."""
        self._since = self._clock()

    def is_due(self, together: bool) -> bool:
        """Returns whether to save now, with the answer of process 0 in all processes of a run.

        Args:
          together: whether all processes make this call, which several processes need.
        """
        if self._minutes is None or not (together or jax.process_count() == 1):
            return False
        late = self._clock() - self._since >= 60 * self._minutes
        return distributed.sum_over_processes(int(late and distributed.is_primary())) > 0


class LogClock:
    """Measures steps and seconds since the last log."""

    def __init__(self, step: int):
        """Starts at `step`."""
        self._since, self._step = time.perf_counter(), step

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time is not counted."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def restart(self, step: int) -> tuple[int, float]:
        """Returns the steps and seconds since the last log, and starts over at `step`."""
        now = time.perf_counter()
        steps, seconds = step - self._step, now - self._since
        self._since, self._step = now, step
        return steps, seconds
