"""What a report says about a run beside its metrics: settings, curves, and how to reproduce it."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import shlex
from collections.abc import Mapping, Sequence

from hjepa_jax.config import Settings
from hjepa_jax.errors import UserError
from hjepa_jax.evaluation.checkpoint_curves.stored import (
    Evaluations,
    by_common_protocol,
    evaluations_of,
)
from hjepa_jax.storage.metrics_file import Curve, read_metrics

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Record:
    """What a report says about a run beside its metrics.

    Attributes:
      changed: (field, value, default) of the settings that differ from the defaults.
      config: content of `config.json`.
      curves: logged metrics by tag.
      checkpoints: the evaluations of its checkpoints, by the protocol with most of them.
      commands: lines that train the run again and evaluate it as here.
    """

    changed: Sequence[tuple[str, object, object]]
    config: str
    curves: Mapping[str, Curve]
    checkpoints: Evaluations | None
    commands: Sequence[str]


def record_of(
    workdir: pathlib.Path, saved: Settings, settings: Settings, which: str = "latest"
) -> Record:
    """Returns the record of a run, without curves if these cannot be read.

    Args:
      workdir: the run.
      saved: its settings.
      settings: those of the evaluation.
      which: the checkpoint: 'latest', 'best' or a step.
    """
    changed = [(path, *values) for path, values in saved.changed().items()]
    try:
        curves = read_metrics(workdir)
    except UserError as error:
        _log.warning("the report has no training curves: %s", error)
        curves = {}
    (checkpoints,) = by_common_protocol([evaluations_of(workdir)])
    commands = _commands(workdir, saved, settings, which)
    return Record(changed, saved.to_json(), curves, checkpoints, commands)


def _commands(workdir: pathlib.Path, saved: Settings, settings: Settings, which: str) -> list[str]:
    of_run = saved.values()
    own = [
        f"--config.{path}={value}"
        for path, value in settings.values().items()
        if value != of_run.get(path)
    ]
    checkpoint = [f"--checkpoint={which}"] if which != "latest" else []
    train = ["hjepa", "train", f"--config={workdir}/config.json", "--workdir=NEW_FOLDER"]
    return [shlex.join(train), shlex.join(["hjepa", "eval", str(workdir), *checkpoint, *own])]
