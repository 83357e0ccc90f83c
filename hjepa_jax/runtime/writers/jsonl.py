"""The writer of `metrics.jsonl`."""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from hjepa_jax.runtime.writers.records import RecordFile, RecordSink
from hjepa_jax.storage.metrics_file import METRICS_FILE, cut_metrics, is_cut_short, line_of


class MetricsFileWriter(RecordSink):
    """Writes a line for each call of `write_scalars`; see `storage.metrics_file`."""

    def __init__(
        self, folder: pathlib.Path, purge_step: int | None = None, epoch_steps: int | None = None
    ) -> None:
        """Opens the file.

        Args:
          folder: the run's folder.
          purge_step: removes the lines of this and later steps, which a resumed run writes again,
            and damaged ones. None = all remain, also those that a run writes meanwhile.
          epoch_steps: steps of an epoch; None = lines have no epoch.

        Raises:
          UserError: if something else is in the place of the file.
          OSError: if it cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if purge_step is not None:
            cut_metrics(folder, purge_step)
        self._epoch_steps = epoch_steps
        cut = is_cut_short(folder)
        super().__init__(RecordFile(folder / METRICS_FILE, exclusive=False))
        if cut:
            self.add(lambda: b"\n")

    def write_scalars(self, step: int, scalars: Mapping[str, npt.ArrayLike]) -> None:
        """Queues the line of a step."""
        values = {tag: float(np.asarray(value)) for tag, value in scalars.items()}
        epoch = None if self._epoch_steps is None else step / self._epoch_steps
        self.add(functools.partial(line_of, int(step), epoch, time.time(), values))
