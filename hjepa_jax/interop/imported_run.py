"""The run folder of imported weights: a checkpoint and `config.json`."""

from __future__ import annotations

import pathlib
from typing import Unpack

from hjepa_jax.config import Settings
from hjepa_jax.config.files import save
from hjepa_jax.errors import CheckpointError
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.storage.checkpoint_meta import DataPosition, Meta
from hjepa_jax.training.prepare import prepare
from hjepa_jax.training.state import TrainState


def fresh_run(settings: Settings, workdir: pathlib.Path) -> TrainState:
    """Returns the initial state of a run that a workdir is to hold.

    Raises:
      CheckpointError: if the workdir already has checkpoints.
    """
    folder = workdir / "checkpoints"
    if folder.exists():
        raise CheckpointError(f"{folder} exists already: choose another --workdir.")
    return prepare(settings, settings.data.batch_size, sharding.data_mesh()).init()


def write_run(
    state: TrainState, settings: Settings, workdir: pathlib.Path, **about: Unpack[DataPosition]
) -> None:
    """Writes `config.json` and a checkpoint that evaluation and analysis can open.

    Args:
      state: what is saved.
      settings: the run's settings.
      workdir: the run's folder.
      **about: what the checkpoint records of its data beside the step.
    """
    step = int(state.step)
    checkpointer = Checkpointer(workdir / "checkpoints")
    meta: Meta = {"config": settings.to_json(), "data": {**about, "step": step}}
    checkpointer.save(step, state, meta)
    checkpointer.close()
    save(settings, workdir)
