"""The device mesh and the placement of state and batches on it.

Data parallelism: batches are sharded over the axis `data` and the state is replicated, except,
optionally, the optimizer's moments (ZeRO stage 1, Rajbhandari et al., arXiv 1910.02054), of which
each device holds and updates a slice. The train step takes each device's share of the batch by
`jax.shard_map`; evaluation runs under `jit`, where every mean over a batch-sharded array is global.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

DATA_AXIS = "data"
# View-major arrays [V, B, ...] are split over their second axis, all others over the first.
VIEW_MAJOR = ("global_views", "local_views", "global_parameters", "local_parameters")
# Arrays that every device has as a whole.
WHOLE = ("resident_images",)
# Entries below which an array is summed along with others: copying it costs less than a round trip.
_SMALL = 2**17
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


def batch_sharding(mesh: Mesh, name: str, *, stacked: bool = False) -> NamedSharding:
    """Returns the sharding of the batch entry `name`, with `stacked` of several [K, ...]."""
    if name in WHOLE:
        return replicated(mesh)
    before = [None] * (int(stacked) + int(name in VIEW_MAJOR))
    return NamedSharding(mesh, PartitionSpec(*before, DATA_AXIS))


def put_batch(
    mesh: Mesh, batch: Mapping[str, np.ndarray], *, stacked: bool = False
) -> dict[str, jax.Array]:
    """Returns a batch as global arrays on the mesh, from this process's part of it.

    Args:
      mesh: the devices.
      batch: the entries; with `stacked`, each of several batches [K, ...].
      stacked: whether there are several.
    """
    return {
        name: jax.make_array_from_process_local_data(
            batch_sharding(mesh, name, stacked=stacked), array
        )
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


def slice_specs(mesh: Mesh, tree: PyTree[jax.Array]) -> PyTree[PartitionSpec]:
    """Returns how `jax.shard_map` splits arrays into the slices of `split_sharding`."""
    return jax.tree.map(lambda leaf: split_sharding(mesh, leaf.shape).spec, tree)


def own_slices(tree: _Tree, axis_name: str | None) -> _Tree:
    """Returns this device's slice of each whole array, which all devices hold alike.

    Args:
      tree: whole arrays; those without a `split_axis` stay whole, here and in the next functions.
      axis_name: the mesh axis, inside `jax.shard_map`; None = there is one slice, the array itself.
    """
    if axis_name is None:
        return tree
    parts = jax.lax.axis_size(axis_name)

    def one(x: jax.Array) -> jax.Array:
        axis = split_axis(parts, x.shape)
        if axis is None:
            return x
        size = x.shape[axis] // parts
        start = jax.lax.axis_index(axis_name) * size
        return jax.lax.dynamic_slice_in_dim(x, start, size, axis)

    return jax.tree.map(one, tree)


def sum_packed(tree: _Tree, axis_name: str | None) -> _Tree:
    """Returns the sum over devices of each array, the small ones packed into one array per dtype.

    Between processes, each array of a sum costs a round trip of its own.

    Args:
      tree: arrays, of which each device has its own.
      axis_name: mesh axis of the devices; None = the arrays are whole.
    """
    if axis_name is None:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    small: dict[str, list[int]] = {}
    for i, x in enumerate(leaves):
        if x.size < _SMALL:
            small.setdefault(x.dtype.name, []).append(i)
    packed = {name: [leaves[i].ravel() for i in group] for name, group in small.items()}
    rest = {i: x for i, x in enumerate(leaves) if x.size >= _SMALL}
    joined = {name: jnp.concatenate(group) for name, group in packed.items()}
    sums, joined = jax.lax.psum((rest, joined), axis_name)
    for name, group in small.items():
        ends = np.cumsum([leaves[i].size for i in group])
        for i, piece in zip(group, jnp.split(joined[name], ends[:-1]), strict=True):
            sums[i] = piece.reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, [sums[i] for i in range(len(leaves))])


def sum_slices(tree: _Tree, axis_name: str | None) -> _Tree:
    """Returns this device's slice of the sum over devices of each array.

    Packed into one array, so that one reduce-scatter is enough, with one all-reduce of what stays
    whole. Arguments as in `own_slices`, except that each device has arrays of its own.
    """
    if axis_name is None:
        return tree
    parts = jax.lax.axis_size(axis_name)
    leaves, structure = jax.tree.flatten(tree)
    cut = [i for i, x in enumerate(leaves) if split_axis(parts, x.shape) is not None]
    sums = dict(enumerate(leaves))
    sums |= jax.lax.psum({i: x for i, x in sums.items() if i not in cut}, axis_name)
    if cut:
        rows = [_rows(leaves[i], parts) for i in cut]
        own = jax.lax.psum_scatter(jnp.concatenate(rows, axis=1), axis_name)
        for i, piece in zip(cut, _pieces(own, [row.shape[1] for row in rows])):
            x = leaves[i]
            sums[i] = piece.reshape(_slice_shape(x.shape, parts)).astype(x.dtype)
    return jax.tree.unflatten(structure, [sums[i] for i in range(len(leaves))])


def join_slices(tree: _Tree, like: _Tree, axis_name: str | None) -> _Tree:
    """Returns whole arrays from the devices' slices, by one all-gather; reverses `own_slices`.

    Args:
      tree: slices.
      like: arrays of the whole shapes.
      axis_name: as in `own_slices`.
    """
    if axis_name is None:
        return tree
    parts = jax.lax.axis_size(axis_name)
    leaves, structure = jax.tree.flatten(tree)
    shapes = [x.shape for x in jax.tree.leaves(like)]
    cut = [i for i, shape in enumerate(shapes) if split_axis(parts, shape) is not None]
    if cut:
        own = jnp.concatenate([leaves[i].ravel() for i in cut])
        rows = jax.lax.all_gather(own, axis_name, to="invarying")
        for i, piece in zip(cut, _pieces(rows, [leaves[i].size for i in cut])):
            leaves[i] = _from_rows(piece, shapes[i]).astype(leaves[i].dtype)
    return jax.tree.unflatten(structure, leaves)


def _slice_shape(shape: Sequence[int], parts: int) -> tuple[int, ...]:
    """Returns the shape of each slice of an array."""
    axis = split_axis(parts, shape)
    return tuple(size // parts if i == axis else size for i, size in enumerate(shape))


def _rows(x: jax.Array, parts: int) -> jax.Array:
    """Returns the slices of an array as rows [parts, n]."""
    axis = split_axis(parts, x.shape)
    assert axis is not None
    cut = x.reshape(*x.shape[:axis], parts, x.shape[axis] // parts, *x.shape[axis + 1 :])
    return jnp.moveaxis(cut, axis, 0).reshape(parts, -1)


def _from_rows(rows: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Reverses `_rows`."""
    axis = split_axis(len(rows), shape)
    assert axis is not None
    cut = rows.reshape(len(rows), *_slice_shape(shape, len(rows)))
    return jnp.moveaxis(cut, 0, axis).reshape(shape)


def _pieces(x: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    """Returns consecutive pieces of the last axis, of these sizes."""
    return jnp.split(x, np.cumsum(sizes)[:-1], axis=-1)
