"""The device mesh and the placement of state and batches on it.

Data parallelism only: the state is replicated, batches are split over the axis `data`. Under `jit`
every mean over a batch-sharded array is global, so no loss needs an axis name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"
# View-major arrays [V, B, ...] are split over their second axis, all others over the first.
VIEW_MAJOR = ("global_views", "local_views", "global_parameters", "local_parameters")


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a one-axis mesh over `devices` (all devices of all processes by default)."""
    devices = jax.devices() if devices is None else list(devices)
    # Auto axes: under Explicit ones, which are the default, z.T @ z raises ShardingTypeError.
    return jax.make_mesh(
        (len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, name: str) -> NamedSharding:
    """Returns the sharding of the batch entry `name`."""
    spec = PartitionSpec(None, DATA_AXIS) if name in VIEW_MAJOR else PartitionSpec(DATA_AXIS)
    return NamedSharding(mesh, spec)


def batch_shardings(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, NamedSharding]:
    """Returns the sharding of each entry of a batch."""
    return {name: batch_sharding(mesh, name) for name in batch}


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Places this process's part of a batch on the mesh as global arrays."""
    return {
        name: jax.make_array_from_process_local_data(batch_sharding(mesh, name), array)
        for name, array in batch.items()
    }


def divisibility_error(batch_size: int, mesh: Mesh, field: str) -> str | None:
    """Returns a sentence if `batch_size` does not split evenly over the mesh, else None."""
    devices = mesh.devices.size
    if batch_size % devices == 0:
        return None
    lower, upper = batch_size - batch_size % devices, batch_size - batch_size % devices + devices
    nearest = f"{upper}" if lower == 0 else f"{lower} or {upper}"
    return (
        f"{field} is {batch_size}, which does not split evenly over {devices} devices: "
        f"set it to a multiple of {devices}, for example {nearest}."
    )
