"""Metric writers (clu) and the progress display.

`clu.metric_writers` imports TensorFlow through one module, `summary_writer`. Where TensorFlow is
absent, a module of that name whose SummaryWriter writes with tensorboardX takes its place.
"""

from __future__ import annotations

import contextlib
import importlib.util
import pathlib
import sys
import time
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class TensorboardXWriter:
    """The part of clu's SummaryWriter interface that we use, written with tensorboardX."""

    def __init__(self, logdir: str) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(logdir)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, float(np.asarray(value)), step)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        for name, value in images.items():
            array = np.asarray(value)
            layout = "NHWC" if array.ndim == 4 else "HWC"
            self._writer.add_images(name, array, step, dataformats=layout) if (
                array.ndim == 4
            ) else self._writer.add_image(name, array, step, dataformats=layout)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for name, value in texts.items():
            self._writer.add_text(name, value, step)

    def write_histograms(
        self,
        step: int,
        arrays: Mapping[str, Any],
        num_buckets: Mapping[str, int] | None = None,
    ) -> None:
        for name, value in arrays.items():
            bins: Any = (num_buckets or {}).get(name, 30)
            self._writer.add_histogram(name, np.asarray(value), step, bins=bins)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._writer.add_hparams(dict(hparams), {})

    def _unsupported(self, what: str) -> None:
        raise NotImplementedError(
            f"{what} need TensorFlow, which is not installed: use scalars, images, texts or "
            "histograms."
        )

    def write_summaries(
        self, step: int, values: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
    ) -> None:
        self._unsupported("raw summaries")

    def write_audios(self, step: int, audios: Mapping[str, Any], *, sample_rate: int) -> None:
        self._unsupported("audio summaries")

    def write_videos(self, step: int, videos: Mapping[str, Any]) -> None:
        self._unsupported("video summaries")

    def write_pointcloud(self, step: int, point_clouds: Any, **_: Any) -> None:
        self._unsupported("point clouds")

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def import_metric_writers() -> types.ModuleType:
    """Imports `clu.metric_writers`, with tensorboardX behind it where TensorFlow is absent."""
    name = "clu.metric_writers.summary_writer"
    if name not in sys.modules and importlib.util.find_spec("tensorflow") is None:
        module = types.ModuleType(name)
        module.SummaryWriter = TensorboardXWriter  # type: ignore[attr-defined]
        sys.modules[name] = module
    from clu import metric_writers

    return metric_writers


def create_writer(workdir: pathlib.Path, *, active: bool = True) -> Any:
    """Returns an asynchronous clu MetricWriter that writes TensorBoard events to the workdir.

    Unless `active`, it writes nothing: of several processes, one writes.
    """
    metric_writers = import_metric_writers()
    writers = [metric_writers.SummaryWriter(str(workdir))] if active else []
    return metric_writers.AsyncMultiWriter(writers)


class ProgressDisplay:
    """A bar with loss, images/s and time left on a terminal; the same as plain lines elsewhere."""

    def __init__(
        self, total_steps: int, first_step: int, batch_size: int, *, quiet: bool = False
    ) -> None:
        """Shows steps `first_step` to `total_steps`; nothing if `quiet`."""
        self._console = Console(stderr=True, quiet=quiet)
        self._total, self._first, self._batch = total_steps, first_step, batch_size
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
            )
            self._task = self._bar.add_task(
                "train", total=total_steps, completed=first_step, loss="-", rate="-"
            )
            self._bar.start()

    def step(self, step: int) -> None:
        """Counts a finished step; the first one, which compiles, is left out of the rates."""
        if self._start is None:
            self._start, self._started_at = time.perf_counter(), step
        if self._bar is not None and time.perf_counter() - self._last_update > 0.1:
            self._last_update = time.perf_counter()
            self._bar.update(self._task, completed=step)

    def show(self, step: int, loss: float, images_per_second: float) -> None:
        """Shows the values of a log step."""
        if self._bar is not None:
            self._bar.update(
                self._task, completed=step, loss=f"{loss:.4f}", rate=f"{images_per_second:.0f}"
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
        """Ends the bar."""
        if self._bar is not None:
            self._bar.stop()


class LogClock:
    """Measures the time of the steps since the last log."""

    def __init__(self, step: int):
        """Starts at `step`."""
        self._since, self._step = time.perf_counter(), step

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time of its context out."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def restart(self, step: int) -> tuple[int, float]:
        """Returns the steps and seconds since the last log."""
        now = time.perf_counter()
        steps, seconds = step - self._step, now - self._since
        self._since, self._step = now, step
        return steps, seconds
