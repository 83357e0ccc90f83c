"""The device mesh and the placement of state and batches on it.

Data parallelism: batches are sharded over the axis `data` and the state is replicated, except,
optionally, the optimizer's moments (ZeRO stage 1, Rajbhandari et al., arXiv 1910.02054). The train
step takes each device's share of the batch by `jax.shard_map`; evaluation runs under `jit`, where
every mean over a batch-sharded array is global.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

DATA_AXIS = "data"
# View-major arrays [V, B, ...] are split over their second axis, all others over the first.
VIEW_MAJOR = ("global_views", "local_views", "global_parameters", "local_parameters")
_Tree = TypeVar("_Tree")


class _HasMoments(Protocol):
    """A tree with the state of an optimizer."""

    @property
    def opt_state(self) -> optax.OptState: ...


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a one-axis mesh over `devices` (all devices of all processes by default)."""
    devices = jax.devices() if devices is None else list(devices)
    # Auto axes: under Explicit ones, which are the default, z.T @ z raises ShardingTypeError.
    return jax.make_mesh(
        (len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices
    )


def local_mesh() -> Mesh:
    """Returns a mesh over this process's devices, for work that every process does alone."""
    return data_mesh(jax.local_devices())


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that replicates arrays on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_axis(parts: int, shape: Sequence[int]) -> int | None:
    """Returns the longest axis of `shape` that is divisible by `parts`; None if there is none."""
    fitting = [axis for axis, size in enumerate(shape) if size % parts == 0]
    return max(fitting, key=lambda axis: shape[axis], default=None)


def split_sharding(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """Returns the sharding along `split_axis`; replicated if there is no such axis."""
    axis = split_axis(mesh.size, shape)
    if axis is None:
        return replicated(mesh)
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA_AXIS))


def state_shardings(
    mesh: Mesh, state: _HasMoments, *, shard_optimizer: bool
) -> PyTree[NamedSharding]:
    """Returns the sharding of each leaf of a `TrainState` (arrays or their shapes)."""
    shardings = jax.tree.map(lambda _: replicated(mesh), state)
    if not shard_optimizer:
        return shardings
    moments = jax.tree.map(lambda leaf: split_sharding(mesh, leaf.shape), state.opt_state)
    return shardings.replace(opt_state=moments)


def batch_sharding(mesh: Mesh, name: str) -> NamedSharding:
    """Returns the sharding of the batch entry `name`."""
    spec = PartitionSpec(None, DATA_AXIS) if name in VIEW_MAJOR else PartitionSpec(DATA_AXIS)
    return NamedSharding(mesh, spec)


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Returns a batch as global arrays on the mesh, from this process's part of it."""
    return {
        name: jax.make_array_from_process_local_data(batch_sharding(mesh, name), array)
        for name, array in batch.items()
    }


def put_whole(mesh: Mesh, name: str, array: np.ndarray) -> jax.Array:
    """Returns a batch entry as a global array, from the full array that every process holds."""
    sharding = batch_sharding(mesh, name)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def divisibility_error(
    batch_size: int, mesh: Mesh, field: str, *, accumulation: int = 1
) -> str | None:
    """Returns an error message unless micro-batches divide evenly over the devices, else None.

    Args:
      batch_size: images in a batch.
      mesh: the devices.
      field: name of `batch_size` in the message.
      accumulation: micro-batches per batch.
    """
    parts = mesh.size * accumulation
    where = f"{mesh.size} devices"
    if accumulation > 1:
        where += f" times config.train.accumulation={accumulation}"
    if batch_size % parts == 0:
        return None
    lower, upper = batch_size - batch_size % parts, batch_size - batch_size % parts + parts
    nearest = f"{upper}" if lower == 0 else f"{lower} or {upper}"
    return (
        f"{field} is {batch_size}, which does not split evenly over {where}: "
        f"set it to a multiple of {parts}, for example {nearest}."
    )


def sharded_optimizer(
    optimizer: optax.GradientTransformation, mesh: Mesh
) -> optax.GradientTransformation:
    """Returns `optimizer` with sharded moments: each device keeps and updates its part.

    It is computed under `jit` on shards of gradients and parameters, takes and returns replicated
    arrays, and gives the same values up to rounding. Its state is placed by `state_shardings`. XLA
    inserts the communication: the sum of the gradients, and the gathering of the updates.
    """

    def everywhere(tree: _Tree) -> _Tree:
        return jax.lax.with_sharding_constraint(tree, replicated(mesh))

    def share(tree: _Tree) -> _Tree:
        # Replicated first: otherwise XLA would split the backward pass along the parameters' axes.
        return jax.tree.map(
            lambda x: jax.lax.with_sharding_constraint(x, split_sharding(mesh, x.shape)),
            everywhere(tree),
        )

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        part, new_state = optimizer.update(share(updates), state, share(params))
        return everywhere(part), new_state

    return optax.GradientTransformation(optimizer.init, update)
