"""The progress display of a training run, and the clocks of its log and its checkpoints."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping

import jax
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hjepa_jax.console import BOARD, Board, duration
from hjepa_jax.runtime import distributed

# Seconds between lines: at least, and at most.
_LINE_SECONDS, _SILENT_SECONDS = 10.0, 300.0


class ProgressDisplay:
    """Epoch, step, times, images/s, learning rate, loss and scores of a run.

    In a terminal they stand below all other output. Elsewhere there is a line for the first step,
    for each epoch (at most every ten seconds, at least every five minutes), and for the last step.
    """

    def __init__(
        self,
        total_steps: int,
        first_step: int,
        *,
        epoch_steps: int | None = None,
        terms: Collection[str] = (),
        quiet: bool = False,
        board: Board = BOARD,
    ) -> None:
        """Shows the progress from `first_step` to `total_steps`.

        Args:
          total_steps: steps of the whole run.
          first_step: steps done before.
          epoch_steps: steps of an epoch; None = epochs are not shown.
          terms: tags of the terms of the loss, shown behind it.
          quiet: whether to show nothing.
          board: where to show it.
        """
        self._total, self._epoch_steps, self._terms = total_steps, epoch_steps, terms
        self._step, self._started_at = first_step, first_step
        self._begun = time.perf_counter()
        self._start: float | None = None
        self._values: Mapping[str, float] = {}
        self._scores = ""
        self._line_at, self._line_epochs = -math.inf, 0
        self._quiet, self._board = quiet, board
        self._shown = contextlib.ExitStack()
        if not quiet:
            self._shown.enter_context(board.shown(self._live))

    def step(self, step: int) -> None:
        """Counts a finished step; rates exclude the first one, which compiles."""
        self._step = step
        if self._start is None:
            self._start, self._started_at = time.perf_counter(), step

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the metrics of a step, by tag."""
        self._values = values
        if self._is_hidden() or self._board.is_live or not self._is_line_due(step):
            return
        self._line_at, self._line_epochs = time.perf_counter(), self._epochs_done(step)
        self._board.say(self._line(step))

    def score(self, step: int, scores: Mapping[str, float]) -> None:
        """Shows the newest scores of the online kNN below the loss, if the display is live."""
        low, high = (100 * scores[f"online/knn_top1_{end}"] for end in ("low", "high"))
        self._scores = (
            f"kNN top-1 {100 * scores['online/knn_top1']:.1f} % ({low:.1f} to {high:.1f}) at step "
            f"{step}"
        )

    def close(self) -> None:
        """Ends the display; a live one leaves its last state as a line."""
        if self._values and not self._is_hidden() and self._board.is_live:
            self._board.say(self._line(self._step))
        self._shown.close()

    def _is_hidden(self) -> bool:
        return self._quiet or self._board.is_brief

    def _line(self, step: int) -> str:
        """Returns all values as one line."""
        elapsed = duration(time.perf_counter() - self._begun)
        times = [f"{elapsed} elapsed"]
        if self._started_at < step < self._total:
            times.append(f"{self._left(step)} left")
        return "  ".join([self._where(step), *self._loss(), *self._speed(step), *times])

    def _epoch(self, step: int) -> int:
        """Returns the epoch that a step belongs to, from 1."""
        return 1 if self._epoch_steps is None else -(-max(step, 1) // self._epoch_steps)

    def _epochs_done(self, step: int) -> int:
        return 0 if self._epoch_steps is None else step // self._epoch_steps

    def _is_line_due(self, step: int) -> bool:
        since = time.perf_counter() - self._line_at
        new = self._epochs_done(step) > self._line_epochs and since >= _LINE_SECONDS
        return new or since >= _SILENT_SECONDS or step == self._total

    def _where(self, step: int) -> str:
        place = f"step {step}/{self._total}"
        if self._epoch_steps is None:
            return place
        return f"epoch {self._epoch(step)}/{self._epoch(self._total)}  {place}"

    def _left(self, step: int) -> str:
        """Returns the time that the remaining steps take at the average speed."""
        if self._start is None or step == self._started_at:
            return "-"
        each = (time.perf_counter() - self._start) / (step - self._started_at)
        return duration((self._total - step) * each)

    def _loss(self) -> list[str]:
        """Returns the loss and its terms."""
        if "loss/total" not in self._values:
            return []
        terms = [tag for tag in self._terms if tag in self._values]
        told = [f"{tag.rpartition('/')[-1]} {self._values[tag]:.3g}" for tag in terms]
        behind = f" ({', '.join(told)})" if told else ""
        return [f"loss {self._values['loss/total']:.4f}{behind}"]

    def _speed(self, step: int) -> list[str]:
        """Returns images/s, but not of the first step, which compiles, and the learning rate."""
        known = {"speed/images_per_second": "{:.0f} images/s", "optim/lr": "lr {:.2g}"}
        if step <= self._started_at:
            del known["speed/images_per_second"]
        return [
            form.format(self._values[tag]) for tag, form in known.items() if tag in self._values
        ]

    def _live(self) -> RenderableType:
        """Returns the live display: a bar, then values, then scores."""
        elapsed = duration(time.perf_counter() - self._begun)
        times = f"{elapsed} elapsed  {self._left(self._step)} left"
        bar = ProgressBar(total=self._total, completed=self._step, width=None)
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True)
        row.add_row(self._where(self._step), bar, times)
        lines = ["  ".join([*self._loss(), *self._speed(self._step)]), self._scores]
        texts = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines if line]
        return Group(row, *texts)


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
