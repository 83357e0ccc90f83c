"""Gradient clipping by global norm, as in the published recipe, and norms of split arrays."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from hjepa_jax.objectives import shares
from hjepa_jax.objectives.shares import AxisName


def clip_by_global_norm(
    max_norm: float, *, skip: Collection[str] = ()
) -> optax.GradientTransformationExtraArgs:
    """Scales gradients by min(1, max_norm / (norm + 1e-6)).

    Its `update` takes `norms`, the norms of the parts by `part_norms`, which it needs of slices.

    Args:
      max_norm: largest norm.
      skip: parts that are neither scaled nor counted in the norm.
    """

    def init(params: optax.Params) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: PyTree[jax.Array],
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        norms: Mapping[str, jax.Array] | None = None,
        **others: object,
    ) -> tuple[PyTree[jax.Array], optax.OptState]:
        del params, others
        norms = part_norms(updates) if norms is None else norms
        skipped = {part: tree for part, tree in updates.items() if part in skip}
        counted = {part: tree for part, tree in updates.items() if part not in skip}
        norm = optax.tree.norm([norms[part] for part in counted])
        factor = jnp.minimum(1.0, max_norm / (norm + 1e-6))
        clipped = jax.tree.map(lambda g: g * factor.astype(g.dtype), counted)
        return {part: (clipped | skipped)[part] for part in updates}, state

    return optax.GradientTransformationExtraArgs(init, update)


def part_norms(
    gradient: Mapping[str, PyTree[jax.Array]], axis_name: AxisName = None
) -> dict[str, jax.Array]:
    """Returns the norm of each part of a gradient.

    Args:
      gradient: arrays by part; with `axis_name`, those that vary over it are slices of whole ones.
      axis_name: see `hjepa_jax.objectives.shares`; all norms together take one collective.
    """
    squares = {
        part: sum(_square(x, axis_name) for x in jax.tree.leaves(tree))
        for part, tree in gradient.items()
    }
    return jax.tree.map(jnp.sqrt, shares.sum_shares(squares, axis_name))


def array_norms(tree: PyTree[jax.Array], axis_name: AxisName = None) -> PyTree[jax.Array]:
    """Returns the norm of each array of a tree; arguments as in `part_norms`."""
    leaves, structure = jax.tree.flatten(tree)
    squares = jnp.stack([_square(x, axis_name) for x in leaves])
    return jax.tree.unflatten(structure, jnp.sqrt(shares.sum_shares(squares, axis_name)))


def _square(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """Returns this device's share of the squared norm of an array."""
    total = jnp.sum(jnp.square(x))
    # What all devices hold alike counts once.
    alike = axis_name not in jax.typeof(x).manual_axis_type.varying
    return total / shares.count(axis_name) if alike else total
