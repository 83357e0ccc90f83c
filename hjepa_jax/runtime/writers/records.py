"""Files of records that grow while a run goes on, written by a thread that never holds it up."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

_log = logging.getLogger(__name__)
_QUEUE_RECORDS = 1000
_CLOSE_SECONDS = 10.0


class RecordFile:
    """A file to append to; each record is either passed to the kernel complete, or dropped.

    A record that does not fit on the disk is removed and counted; later ones are tried again.
    """

    def __init__(self, path: pathlib.Path, *, exclusive: bool):
        """Opens the file.

        Args:
          path: the file; its folder is created.
          exclusive: whether it must not exist yet.

        Raises:
          OSError: if it cannot be opened.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self.path = path
        self._file = os.open(path, flags | (os.O_EXCL if exclusive else 0), 0o644)
        self.dropped = 0
        self._failing = False

    def append(self, record: bytes) -> None:
        """Appends a record.

        Raises:
          OSError: if it does not fit; nothing of it remains.
        """
        before = os.fstat(self._file).st_size
        try:
            written = 0
            while written < len(record):
                written += os.write(self._file, record[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, before)
            raise

    def write(self, record: bytes) -> None:
        """Appends a record, or drops it, warning about the first of several in a row."""
        try:
            self.append(record)
        except OSError as error:
            self.dropped += 1
            if not self._failing:
                self._failing = True
                _log.warning(
                    "%s cannot be written to (%s): metrics of these steps are dropped, and "
                    "training continues.",
                    self.path,
                    error.strerror,
                )
        else:
            if self._failing:
                self._failing = False
                _log.warning(
                    "%s can be written to again; %d values were dropped.", self.path, self.dropped
                )

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


class Sink:
    """clu's MetricWriter interface, of which subclasses override what they can show.

    It is not derived from clu's class, whose import needs `open.import_metric_writers`.
    """

    def write_summaries(
        self, step: int, values: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Ignores tensors of TensorBoard plugins."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Ignores scalars."""

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Ignores images."""

    def write_videos(self, step: int, videos: Mapping[str, Any]) -> None:
        """Ignores videos."""

    def write_audios(self, step: int, audios: Mapping[str, Any], *, sample_rate: int) -> None:
        """Ignores sounds."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Ignores texts."""

    def write_histograms(
        self,
        step: int,
        arrays: Mapping[str, Any],
        num_buckets: Mapping[str, int] | None = None,
    ) -> None:
        """Ignores arrays to make histograms of."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Ignores the configuration."""

    def flush(self) -> None:
        """Waits until everything is written."""

    def close(self) -> None:
        """Writes what remains."""


class QueuedSink(Sink):
    """A sink whose work is done by a thread, in order.

    Calls neither fail nor block for long if the destination does: what fails, or arrives while it
    hangs, is dropped.
    """

    def __init__(self, place: object):
        """Starts the thread; `place` names the destination in messages."""
        self._place = place
        self._queue: queue.Queue[Callable[[], object] | None] = queue.Queue(_QUEUE_RECORDS)
        self._overflow = 0
        self._closed = False
        self._thread = threading.Thread(target=self._serve, daemon=True, name="metric-writer")
        self._thread.start()

    def _serve(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                work()
            except Exception as error:  # one bad value must not end the thread
                self._report(error)
            finally:
                self._queue.task_done()

    def _report(self, error: Exception) -> None:
        """Tells of a value that is dropped."""
        _log.warning("A metric could not be encoded: %r.", error)

    def dropped(self) -> int:
        """Returns how many values were dropped so far."""
        return self._overflow

    def finish(self) -> None:
        """Closes the destination, once its thread is done."""

    def queue(self, work: Callable[[], object]) -> None:
        """Leaves work to the thread.

        Raises:
          ValueError: if the sink is closed.
        """
        if self._closed:
            raise ValueError("This metric writer is closed.")
        try:
            self._queue.put_nowait(work)
        except queue.Full:
            self._overflow += 1

    def flush(self) -> None:
        """Waits, for a limited time, until everything is written."""
        tasks = self._queue
        with tasks.all_tasks_done:
            tasks.all_tasks_done.wait_for(lambda: not tasks.unfinished_tasks, _CLOSE_SECONDS)

    def close(self) -> None:
        """Writes what remains for a limited time and logs how much is lost; never raises."""
        if self._closed:
            return
        self._closed = True
        self.flush()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join(1.0)
        if self._thread.is_alive():
            _log.warning(
                "%s does not accept writes: %d values are dropped.",
                self._place,
                self._queue.unfinished_tasks + self.dropped(),
            )
            return  # the thread still owns the destination
        self.finish()
        if missing := self.dropped():
            _log.warning("%s lacks %d values.", self._place, missing)


class RecordSink(QueuedSink):
    """A sink whose records are encoded and appended to a file by its thread."""

    def __init__(self, file: RecordFile):
        """Starts the thread, which owns the file."""
        self._records = file
        super().__init__(file.path)

    def add(self, encode: Callable[[], bytes]) -> None:
        """Queues the record that `encode` returns."""
        self.queue(lambda: self._records.write(encode()))

    def dropped(self) -> int:
        """Returns how many records were dropped so far."""
        return super().dropped() + self._records.dropped

    def finish(self) -> None:
        """Closes the file."""
        self._records.close()
