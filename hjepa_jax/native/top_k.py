"""The largest values of rows by the native CPU kernel (hjepa_jax/native/top_k.cc)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hjepa_jax.native.build import call


def top_k_native(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Returns what `lax.top_k` does for float32 [N, M] on one CPU device, k in 1..M.

    The native kernels must be available (`hjepa_jax.native.build.kernels()`). Not differentiable.

    Returns:
      (values float32 [N, k] in falling order, their columns int32 [N, k]); of equal values the
      lower column comes first.
    """
    shape = (x.shape[0], k)
    results = [jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape, jnp.int32)]
    values, columns = call("top_k", results)(x)
    return values, columns
