"""Reading TensorBoard event files, whose records are length, checksum, payload, and checksum."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from hjepa_jax.runtime.writers.events import event_pb2


def read_events(path: pathlib.Path) -> Iterator[Any]:
    """Yields the events of a file."""
    data, position = path.read_bytes(), 0
    while position < len(data):
        length = int.from_bytes(data[position : position + 8], "little")
        event = event_pb2.Event()
        event.ParseFromString(data[position + 12 : position + 12 + length])
        yield event
        position += 12 + length + 4


def only_events(folder: pathlib.Path) -> Iterator[Any]:
    """Yields the events of the only event file of a folder."""
    (path,) = folder.glob("events.out.tfevents.*")
    return read_events(path)
