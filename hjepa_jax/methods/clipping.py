"""Gradient clipping by global norm, as in the published recipe."""

from __future__ import annotations

from collections.abc import Collection

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree


def clip_by_global_norm(
    max_norm: float, *, skip: Collection[str] = ()
) -> optax.GradientTransformation:
    """Scales gradients by min(1, max_norm / (norm + 1e-6)).

    Args:
      max_norm: largest norm.
      skip: parts that are neither scaled nor counted in the norm.
    """

    def init(params: optax.Params) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: PyTree[jax.Array], state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[PyTree[jax.Array], optax.OptState]:
        del params
        skipped = {part: tree for part, tree in updates.items() if part in skip}
        counted = {part: tree for part, tree in updates.items() if part not in skip}
        factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(counted) + 1e-6))
        clipped = jax.tree.map(lambda g: g * factor.astype(g.dtype), counted)
        return {part: (clipped | skipped)[part] for part in updates}, state

    return optax.GradientTransformation(init, update)
