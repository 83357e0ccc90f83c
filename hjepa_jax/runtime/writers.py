"""Metric writers: clu's interface, with TensorBoard events written through tensorboardX.

`clu.metric_writers` imports TensorFlow through one module, `summary_writer`. Without TensorFlow,
that module is replaced by one whose SummaryWriter uses tensorboardX.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.util
import itertools
import logging
import os
import pathlib
import queue
import socket
import struct
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tensorboardX.proto.event_pb2
from google.protobuf.message import Message
from tensorboardX import summary
from tensorboardX.record_writer import masked_crc32c

from hjepa_jax.errors import TrainingError

if TYPE_CHECKING:
    from clu import metric_writers

_log = logging.getLogger(__name__)
event_pb2: Any = tensorboardX.proto.event_pb2  # its classes are created at run time
_FILES = itertools.count()
_QUEUE_EVENTS = 1000
_CLOSE_SECONDS = 10.0


class _EventFile:
    """A TensorBoard event file; each record is either passed to the kernel complete, or dropped.

    A record that does not fit on the disk is removed and counted; later ones are tried again.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int | None):
        """Creates the file.

        Raises:
          OSError: if it cannot be created or written to.
        """
        folder.mkdir(parents=True, exist_ok=True)
        # Process id and number keep two writers of the same second from sharing a file.
        # Readers sort files by name, so the number has leading zeros.
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_FILES):06d}"
        self.path = folder / f"events.out.tfevents.{name}"
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._good = 0  # bytes of whole records
        self.dropped = 0
        self._failing = False
        version = {"wall_time": time.time(), "file_version": "brain.Event:2"}
        try:
            self._append(event_pb2.Event(**version))
            if purge_step is not None:
                # TensorBoard then ignores values in earlier files from this step on.
                log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                self._append(event_pb2.Event(**version, step=purge_step))
                self._append(
                    event_pb2.Event(wall_time=time.time(), step=purge_step, session_log=log)
                )
        except OSError:
            self.close()
            raise

    def _append(self, event: Message) -> None:
        payload = event.SerializeToString()
        length = struct.pack("<Q", len(payload))
        record = length + struct.pack("<I", masked_crc32c(length))
        record += payload + struct.pack("<I", masked_crc32c(payload))
        try:
            written = 0
            while written < len(record):
                written += os.write(self._file, record[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._good)
                os.lseek(self._file, self._good, os.SEEK_SET)
            raise
        self._good += len(record)

    def write(self, event: Message) -> None:
        """Appends an event, or drops it, warning about the first of several in a row."""
        try:
            self._append(event)
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
        os.close(self._file)


class TensorboardXWriter:
    """The part of clu's SummaryWriter interface that is used; tensorboardX encodes the events.

    Events are encoded and written by a thread, in order. Calls neither fail nor block for long if
    the disk does: events that do not fit, or arrive while the disk hangs, are dropped.
    """

    def __init__(self, logdir: str, purge_step: int | None = None) -> None:
        """Creates an event file.

        Args:
          logdir: folder of the file.
          purge_step: voids the values of this and later steps in earlier files of the folder,
            which a resumed run writes again.

        Raises:
          OSError: if the file cannot be created.
        """
        self._events = _EventFile(pathlib.Path(logdir), purge_step)
        self._queue: queue.Queue[Callable[[], Message] | None] = queue.Queue(_QUEUE_EVENTS)
        self._overflow = 0
        self._closed = False
        self._thread = threading.Thread(target=self._serve, daemon=True, name="event-writer")
        self._thread.start()

    def _serve(self) -> None:
        while (encode := self._queue.get()) is not None:
            try:
                self._events.write(encode())
            except Exception as error:  # one bad value must not end the thread
                _log.warning("A metric could not be encoded: %r.", error)
            finally:
                self._queue.task_done()

    def _add(self, step: int, encode: Callable[[], Message]) -> None:
        """Queues the event of a summary that `encode` returns."""
        if self._closed:
            raise ValueError("This metric writer is closed.")
        now = time.time()

        def event() -> Message:
            return event_pb2.Event(wall_time=now, step=int(step), summary=encode())

        try:
            self._queue.put_nowait(event)
        except queue.Full:
            self._overflow += 1

    def write_scalars(self, step: int, scalars: Mapping[str, npt.ArrayLike]) -> None:
        """Queues scalars or one-element arrays, by tag."""
        for name, value in scalars.items():
            number = float(np.asarray(value))
            self._add(step, functools.partial(summary.scalar, name, number))

    def write_images(self, step: int, images: Mapping[str, npt.ArrayLike]) -> None:
        """Queues images [H, W, C] or [N, H, W, C], uint8 or floats in 0..1, by tag."""
        for name, value in images.items():
            array = np.asarray(value)
            layout = "NHWC" if array.ndim == 4 else "HWC"
            self._add(step, functools.partial(summary.image, name, array, dataformats=layout))

    def flush(self) -> None:
        """Waits, for a limited time, until all events are written."""
        tasks = self._queue
        with tasks.all_tasks_done:
            tasks.all_tasks_done.wait_for(lambda: not tasks.unfinished_tasks, _CLOSE_SECONDS)

    def close(self) -> None:
        """Writes remaining events for a limited time and logs how many are lost; never raises."""
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
                self._events.path,
                self._queue.unfinished_tasks + self._overflow + self._events.dropped,
            )
            return  # the thread still owns the file
        self._events.close()
        missing = self._overflow + self._events.dropped
        if missing:
            _log.warning("%s lacks %d values.", self._events.path, missing)


def import_metric_writers() -> types.ModuleType:
    """Imports and returns `clu.metric_writers`, backed by tensorboardX without TensorFlow."""
    name = "clu.metric_writers.summary_writer"
    if name not in sys.modules and importlib.util.find_spec("tensorflow") is None:
        module = types.ModuleType(name)
        module.SummaryWriter = TensorboardXWriter  # type: ignore[attr-defined]
        sys.modules[name] = module
    from clu import metric_writers

    return metric_writers


def create_writer(
    workdir: pathlib.Path, *, active: bool = True, purge_step: int | None = None
) -> metric_writers.MetricWriter:
    """Returns an asynchronous clu MetricWriter that writes TensorBoard events to the workdir.

    Args:
      workdir: folder of the event file.
      active: whether to write anything; only one of several processes does.
      purge_step: the step at which the run starts or resumes; values logged before for this and
        later steps are ignored.

    Raises:
      TrainingError: if the file cannot be created.
      OSError: if the disk is full.
    """
    metric_writers = import_metric_writers()
    if not active:
        return metric_writers.MultiWriter([])
    try:
        writer = TensorboardXWriter(str(workdir), purge_step)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise TrainingError(
            f"TensorBoard events cannot be written to {workdir}: {error.strerror}. Choose a "
            f"writable --workdir."
        ) from error
    return metric_writers.MultiWriter([writer])
