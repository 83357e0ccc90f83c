"""An optimizer whose moments are sharded: each device keeps and updates its part (ZeRO stage 1).

Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"
(arXiv 1910.02054).
"""

from __future__ import annotations

from typing import Any

import jax
import optax
from jax.sharding import Mesh

from hjepa_jax.runtime.sharding import replicated, split_sharding


def sharded_optimizer(
    optimizer: optax.GradientTransformation, mesh: Mesh
) -> optax.GradientTransformation:
    """Returns `optimizer`, computed under `jit` on shards of gradients and parameters.

    It takes and returns replicated arrays, with the same values up to rounding. Its state is placed
    by `sharding.state_shardings`. XLA inserts the communication: the sum of the gradients, and the
    gathering of the updates.
    """

    def everywhere(tree: Any) -> Any:
        return jax.lax.with_sharding_constraint(tree, replicated(mesh))

    def share(tree: Any) -> Any:
        # First replicated: else XLA would split the backward pass along the parameters' axes.
        return jax.tree.map(
            lambda x: jax.lax.with_sharding_constraint(x, split_sharding(mesh, x.shape)),
            everywhere(tree),
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        part, new_state = optimizer.update(share(updates), state, share(params))
        return everywhere(part), new_state

    return optax.GradientTransformation(optimizer.init, update)
