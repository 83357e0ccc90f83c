"""`metrics.jsonl` in a run's folder: one JSON object a line, with a step and values by tag.

    {"step": 40, "epoch": 1.25, "time": 1767225600.123, "loss/total": 0.71, "optim/lr": 0.0005}

Values that are NaN or infinite are null. A later line replaces what an earlier one has of the same
step. A line that a crash has cut short counts as absent.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from hjepa_jax.errors import UserError
from hjepa_jax.storage.files import check_regular, read_regular, write_atomically
from hjepa_jax.storage.schema import Maybe, Number, Table, parse_json

METRICS_FILE = "metrics.jsonl"
_MOST_BYTES = 2**31
_LINE = Table(Maybe(Number()))
# A logged metric: ascending steps, and its values.
Curve = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
_log = logging.getLogger(__name__)


def line_of(step: int, epoch: float | None, time: float, values: Mapping[str, float]) -> bytes:
    """Returns the line of a step.

    Args:
      step: the step that was just done.
      epoch: epochs done; None = unknown.
      time: seconds since 1970.
      values: scalars by tag, with the nine digits that a float32 needs.
    """
    found: dict[str, float | None] = {"step": step}
    if epoch is not None:
        found["epoch"] = float(f"{epoch:.9g}")
    found["time"] = round(time, 3)
    for tag, value in values.items():
        found[tag] = float(f"{value:.9g}") if math.isfinite(value) else None
    return json.dumps(found, allow_nan=False).encode() + b"\n"


def _lines(data: bytes, path: pathlib.Path) -> Iterator[tuple[bytes, dict[str, float | None]]]:
    """Yields the lines of a file and what they say; damaged ones are left out and counted."""
    damaged = 0
    # What follows the last end of a line was cut short.
    for line in filter(None, data.split(b"\n")[:-1]):
        try:
            found = parse_json(line, _LINE, path)
        except ValueError:
            found = {}
        step = found.get("step")
        if isinstance(step, int) and step >= 0:
            yield line, found
        else:
            damaged += 1
    if damaged:
        _log.warning("%s has %d damaged lines, which are left out.", path, damaged)


def _read(path: pathlib.Path) -> bytes:
    if not os.path.lexists(path):
        return b""
    try:
        return read_regular(path, _MOST_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def read_metrics(run: pathlib.Path) -> dict[str, Curve]:
    """Returns the metrics of a run: tag -> (ascending steps, values), 'epoch' and 'time' included.

    Args:
      run: its folder. A run without the file has no metrics.

    Raises:
      UserError: if the file cannot be read.
    """
    path, found = run / METRICS_FILE, dict[str, dict[int, float]]()
    for _, values in _lines(_read(path), path):
        step = int(values.pop("step") or 0)
        for tag, value in values.items():
            found.setdefault(tag, {})[step] = math.nan if value is None else float(value)
    return {
        tag: (np.array(sorted(points)), np.array([points[step] for step in sorted(points)]))
        for tag, points in found.items()
    }


def is_cut_short(run: pathlib.Path) -> bool:
    """Returns whether the file of a run ends within a line.

    Raises:
      OSError: if it cannot be read.
    """
    path = run / METRICS_FILE
    if not os.path.lexists(path) or not check_regular(path, _MOST_BYTES).st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def cut_metrics(run: pathlib.Path, first: int) -> None:
    """Removes damaged lines, and those from step `first` on, which a resumed run writes again.

    Raises:
      UserError: if the file cannot be read.
      OSError: if it cannot be written.
    """
    path = run / METRICS_FILE
    data = _read(path)
    kept = [line for line, values in _lines(data, path) if (values["step"] or 0) < first]
    text = b"".join(line + b"\n" for line in kept)
    if text != data:
        write_atomically(path, text)
