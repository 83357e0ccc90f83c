"""TensorBoard events, encoded by tensorboardX."""

from __future__ import annotations

import functools
import itertools
import os
import pathlib
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorboardX.proto.event_pb2
from google.protobuf.message import Message
from tensorboardX import summary
from tensorboardX.record_writer import masked_crc32c

from hjepa_jax.runtime.writers.records import RecordFile, RecordSink

event_pb2: Any = tensorboardX.proto.event_pb2  # its classes are created at run time
_FILES = itertools.count()
_BUCKETS = 64
# Columns of TensorBoard's table of runs, beside the kNN of the evaluation.
_SCORES = ("loss/total", "online/knn_top1", "eval/probe_top1")


def _record(event: Message) -> bytes:
    """Returns length, checksum, payload, and checksum."""
    payload = event.SerializeToString()
    length = struct.pack("<Q", len(payload))
    record = length + struct.pack("<I", masked_crc32c(length))
    return record + payload + struct.pack("<I", masked_crc32c(payload))


def _new_file(folder: pathlib.Path, purge_step: int | None) -> RecordFile:
    """Creates an event file with its first records."""
    # Process id and number keep two writers of the same second from sharing a file.
    # Readers sort files by name, so the number has leading zeros.
    name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_FILES):06d}"
    file = RecordFile(folder / f"events.out.tfevents.{name}", exclusive=True)
    version = {"wall_time": time.time(), "file_version": "brain.Event:2"}
    try:
        file.append(_record(event_pb2.Event(**version)))
        if purge_step is not None:
            # TensorBoard then ignores values in earlier files from this step on.
            log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            file.append(_record(event_pb2.Event(**version, step=purge_step)))
            start = event_pb2.Event(wall_time=time.time(), step=purge_step, session_log=log)
            file.append(_record(start))
    except OSError:
        file.close()
        raise
    return file


class TensorboardXWriter(RecordSink):
    """clu's SummaryWriter; tensorboardX encodes the events."""

    def __init__(self, logdir: str, purge_step: int | None = None) -> None:
        """Creates an event file.

        Args:
          logdir: folder of the file.
          purge_step: voids the values of this and later steps in earlier files of the folder,
            which a resumed run writes again.

        Raises:
          OSError: if the file cannot be created.
        """
        super().__init__(_new_file(pathlib.Path(logdir), purge_step))

    def _add(self, step: int, encode: Callable[[], Message]) -> None:
        """Queues the event of a summary that `encode` returns."""
        now = time.time()

        def event() -> bytes:
            return _record(event_pb2.Event(wall_time=now, step=int(step), summary=encode()))

        self.add(event)

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

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Queues Markdown texts, by tag."""
        for name, text in texts.items():
            self._add(step, functools.partial(summary.text, name, text))

    def write_histograms(
        self,
        step: int,
        arrays: Mapping[str, npt.ArrayLike],
        num_buckets: Mapping[str, int] | None = None,
    ) -> None:
        """Queues histograms of arrays of finite numbers, by tag."""
        for name, array in arrays.items():
            bins = (num_buckets or {}).get(name, _BUCKETS)
            self._add(step, functools.partial(summary.histogram, name, np.asarray(array), bins))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Queues the fields of the configuration, for TensorBoard's table of runs and scores."""
        plain = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in hparams.items()
        }
        scores = [*_SCORES, f"eval/knn{hparams.get('evaluation.headline_k', 20)}"]
        for part in summary.hparams(plain, dict.fromkeys(scores, 0)):
            self._add(0, functools.partial(_same, part))


def _same(message: Message) -> Message:
    return message
