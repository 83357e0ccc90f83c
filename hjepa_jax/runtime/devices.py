"""Devices of this process, options of their compiler, and the order of a computation's parts.

A program may be compiled for another platform than the host's. What differs between platforms
therefore goes through `jax.lax.platform_dependent`, which chooses when the program is lowered.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib.metadata
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from packaging.version import Version

T = TypeVar("T")

# For functions that run once: optimization takes longer than running unoptimized code.
UNOPTIMIZED: dict[str, Any] = {"xla_backend_optimization_level": 0}  # jax declares no numbers
# jaxlib 0.11.1 dropped this option along with the older code generator, and refuses its name.
if Version(importlib.metadata.version("jaxlib")) < Version("0.11.1"):
    UNOPTIMIZED["xla_cpu_use_fusion_emitters"] = False

_OFFERED: contextvars.ContextVar[bool] = contextvars.ContextVar("offered", default=True)


def on_cpu() -> bool:
    """Returns whether this process computes on the CPU unless told otherwise."""
    return jax.default_backend() == "cpu"


@contextlib.contextmanager
def without_cpu_forms() -> Iterator[None]:
    """Traces XLA's operations alone, whose number XLA knows."""
    token = _OFFERED.set(False)
    try:
        yield
    finally:
        _OFFERED.reset(token)


def offer_cpu_forms() -> bool:
    """Returns whether `jax.lax.platform_dependent` should get forms made for one CPU device.

    These need whole arrays: either the process has one device, or the code is inside
    `jax.shard_map`, where each device has arrays of its own. A host that computes on accelerators
    needs no such form, and inside `without_cpu_forms` there are none.
    """
    if not _OFFERED.get():
        return False
    mesh = jax.sharding.get_abstract_mesh()
    inside = bool(mesh.manual_axes) and set(mesh.manual_axes) == set(mesh.axis_names)
    return on_cpu() and (inside or jax.device_count() == 1)


def varying_alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Marks arrays as varying over every axis of a mesh that one of them varies over.

    JAX's own operations do so inside `jax.shard_map`; foreign calls and custom derivatives need
    operands that are marked already. Elsewhere the arrays are returned as they are.
    """
    varying = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    axes = frozenset().union(*varying)
    return tuple(
        jax.lax.pcast(array, tuple(sorted(axes - own)), to="varying")
        for array, own in zip(arrays, varying, strict=True)
    )


def with_dependency(values: T, done: object) -> T:
    """Returns the pytree `values`, bit-exact, as results that depend on `done`.

    One computation then waits for another, whose memory has been freed by that time. XLA schedules
    independent computations in any order, even all at once, and merges equal ones; both defeat the
    memory savings of rematerialization. An optimization barrier prevents this on accelerators.
    XLA's CPU compiler drops barriers before it merges and schedules, so there the dependency is
    arithmetic that the compiler cannot simplify.

    Args:
      values: pytree of arrays of any dtype.
      done: pytree of arrays; on the CPU the entries [..., 0] are read, so keep them few.
    """
    return jax.lax.platform_dependent(
        values, done, cpu=_depend, default=lambda *both: jax.lax.optimization_barrier(both)[0]
    )


def _depend(values: T, done: object) -> T:
    """`with_dependency` by arithmetic."""
    total = sum(
        (jnp.sum(leaf[..., 0] if leaf.ndim else leaf).astype(jnp.float32))
        for leaf in jax.tree.leaves(done)
    )
    bits = jax.lax.bitcast_convert_type(jnp.asarray(total, jnp.float32), jnp.uint32)
    # The product of two consecutive integers is even, but no compiler rule knows that.
    always = (bits * (bits + 1)) & 1 == 0
    return jax.tree.map(lambda x: jnp.where(always, x, jnp.zeros_like(x)), values)
