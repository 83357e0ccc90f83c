"""Makes one computation wait for another, so that the memory of the other is free by then.

XLA schedules independent computations in any order, even all at once, and merges equal ones; both
defeat the memory savings of rematerialization. An optimization barrier prevents this on
accelerators. XLA's CPU compiler drops barriers before it merges and schedules, so there the
dependency is arithmetic that the compiler cannot simplify.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp

from hjepa_jax.runtime.devices import on_cpu

T = TypeVar("T")


def with_dependency(values: T, done: object) -> T:
    """Returns the pytree `values`, bit-exact, as results that depend on `done`.

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
    # Of two consecutive integers one is even, but no compiler rule knows that.
    always = (bits * (bits + 1)) & 1 == 0
    return jax.tree.map(lambda x: jnp.where(always, x, jnp.zeros_like(x)), values)
