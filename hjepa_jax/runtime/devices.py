"""Devices of a traced computation, and the order of its parts."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp

T = TypeVar("T")


def on_cpu() -> bool:
    """Returns whether computations traced now will run on the CPU."""
    return jax.default_backend() == "cpu"


def is_single_cpu() -> bool:
    """Returns whether computations traced now will run on a single CPU device, unsharded."""
    return on_cpu() and jax.device_count() == 1


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
    if not on_cpu():
        return jax.lax.optimization_barrier((values, done))[0]
    total = sum(
        (jnp.sum(leaf[..., 0] if leaf.ndim else leaf).astype(jnp.float32))
        for leaf in jax.tree.leaves(done)
    )
    bits = jax.lax.bitcast_convert_type(jnp.asarray(total, jnp.float32), jnp.uint32)
    # The product of two consecutive integers is even, but no compiler rule knows that.
    always = (bits * (bits + 1)) & 1 == 0
    return jax.tree.map(lambda x: jnp.where(always, x, jnp.zeros_like(x)), values)
