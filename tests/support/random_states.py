"""Training states of random numbers, for tests that need a state but no training."""

import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from hjepa_jax.config import files
from hjepa_jax.config.checks import typed
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.training.prepare import PreparedRun, prepare
from hjepa_jax.training.state import TrainState


def random_state(run: PreparedRun, step: int, seed: int = 0) -> TrainState:
    """Returns a state of `run` with random parameters and (positive) batch statistics."""
    rng = np.random.default_rng((seed, step))

    def draw(leaf):
        if leaf.dtype != np.float32:
            return np.zeros(leaf.shape, leaf.dtype)
        return 0.02 + 0.1 * rng.random(leaf.shape, np.float32)

    state = jax.tree.map(draw, run.abstract_state)
    return state.replace(
        step=np.int32(step),
        failed_step=np.int32(-1),
        params=jax.tree.map(lambda x: x - np.float32(0.07), state.params),
    )


def save_initial_run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Writes a run of no steps: the encoder at its initialization, whose features differ well."""
    run = prepare(typed(config), config.data.batch_size, sharding.data_mesh())
    checkpointer = Checkpointer(workdir / "checkpoints")
    checkpointer.save(0, run.init(), {"data": {"step": 0}})
    checkpointer.close()
    files.save(typed(config), workdir)
