"""Stochastic depth: whole residual branches are left out at random in training.

Source: Huang et al., "Deep Networks with Stochastic Depth" (arXiv 1603.09382), by image as in DeiT
(arXiv 2012.12877).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def drop_rates(largest: float, depth: int) -> np.ndarray:
    """Returns the rate of each of `depth` blocks [depth], from 0 linearly to the largest."""
    return np.linspace(0.0, largest, depth)


def branch_scales(keys: jax.Array, rates: np.ndarray) -> jax.Array:
    """Draws for each image which branches stay.

    An image's draw depends on its key alone, so it does not depend on how a batch is split.

    Args:
      keys: typed PRNG keys [N], one for each image.
      rates: probability that a branch is left out, [K], below 1.

    Returns:
      float32 [N, K], the factor of each branch: 0, or 1 / (1 - rate) so that the mean stays.
    """
    keep = jnp.asarray(1.0 - rates, jnp.float32)

    def one(key: jax.Array) -> jax.Array:
        return jnp.where(jax.random.uniform(key, keep.shape) < keep, 1.0 / keep, 0.0)

    return jax.vmap(one)(keys)


def scaled(branch: jax.Array, scale: jax.Array | None) -> jax.Array:
    """Multiplies the branch [N, ...] of each image by its scale [N]; None leaves it unchanged."""
    if scale is None:
        return branch
    return branch * scale.astype(branch.dtype).reshape(-1, *[1] * (branch.ndim - 1))
