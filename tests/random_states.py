"""Training states of random numbers, for tests that need a state but no training."""

import jax
import numpy as np

from hjepa_jax.run import Run
from hjepa_jax.train_state import TrainState


def random_state(run: Run, step: int, seed: int = 0) -> TrainState:
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
