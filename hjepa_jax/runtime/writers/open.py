"""Opening the writers of a run, behind clu's MetricWriter interface.

`clu.metric_writers` imports TensorFlow through one module, `summary_writer`. Without TensorFlow,
that module is replaced by one whose SummaryWriter uses tensorboardX.
"""

from __future__ import annotations

import importlib.util
import pathlib
import sys
import types
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from hjepa_jax.errors import TrainingError
from hjepa_jax.runtime.writers.events import TensorboardXWriter
from hjepa_jax.runtime.writers.jsonl import MetricsFileWriter
from hjepa_jax.runtime.writers.records import Sink
from hjepa_jax.runtime.writers.trackers import MLflowWriter, WandbWriter
from hjepa_jax.storage.files import is_disk_full

if TYPE_CHECKING:
    from clu import metric_writers


_TRACKERS = {"wandb": WandbWriter, "mlflow": MLflowWriter}


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
    workdir: pathlib.Path,
    *,
    active: bool = True,
    purge_step: int | None = None,
    epoch_steps: int | None = None,
    writers: Collection[str] = ("tensorboard",),
) -> metric_writers.MetricWriter:
    """Returns a clu MetricWriter of `metrics.jsonl` in the workdir, and of what else is chosen.

    Args:
      workdir: folder of the files.
      active: whether to write anything; only one of several processes does.
      purge_step: the step at which the run starts or resumes; values logged before for this and
        later steps are removed.
      epoch_steps: steps of an epoch, for `metrics.jsonl`; None = unknown.
      writers: config.log.writers.

    Raises:
      TrainingError: if a file cannot be created, or a tracker cannot start.
      OSError: if the disk is full.
    """
    metric_writers = import_metric_writers()
    if not active:
        return metric_writers.MultiWriter([])
    opened: list[Sink] = []
    try:
        opened.append(MetricsFileWriter(workdir, purge_step, epoch_steps))
        if "tensorboard" in writers:
            opened.append(TensorboardXWriter(str(workdir), purge_step))
        opened += [_TRACKERS[name](workdir) for name in writers if name in _TRACKERS]
        return metric_writers.MultiWriter(opened)
    except TrainingError:
        _close(opened)
        raise
    except OSError as error:
        _close(opened)
        if is_disk_full(error):
            raise
        raise TrainingError(
            f"metrics cannot be written to {workdir}: {error.strerror or error}. Choose a writable "
            "--workdir."
        ) from error


def _close(sinks: Iterable[Sink]) -> None:
    for sink in sinks:
        sink.close()
