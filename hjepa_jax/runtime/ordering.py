"""Makes one computation wait for another, so that the memory of the first is free by then.

XLA schedules independent computations as it likes, all at once if it likes, and merges equal ones;
both undo the saving of recomputation. An optimisation barrier prevents it on accelerators; XLA's
CPU compiler drops barriers before it merges and schedules, so that there the dependency is made
of arithmetic that it cannot see through.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from hjepa_jax.runtime.devices import on_cpu


def with_dependency(values: Any, done: Any) -> Any:
    """Returns the pytree `values`, bit for bit, as results that need those of `done` first.

    Args:
      values: arrays of any dtype.
      done: arrays; on the CPU the entries [..., 0] are read, so let them be few.
    """
    if not on_cpu():
        return jax.lax.optimization_barrier((values, done))[0]
    total = sum(
        (jnp.sum(leaf[..., 0] if leaf.ndim else leaf).astype(jnp.float32))
        for leaf in jax.tree.leaves(done)
    )
    bits = jax.lax.bitcast_convert_type(jnp.asarray(total, jnp.float32), jnp.uint32)
    # One of two neighbours is even, but no rule of the compiler knows.
    always = (bits * (bits + 1)) & 1 == 0
    return jax.tree.map(lambda x: jnp.where(always, x, jnp.zeros_like(x)), values)
