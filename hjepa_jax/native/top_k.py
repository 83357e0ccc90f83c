"""The largest values of rows by the native CPU kernel (hjepa_jax/native/top_k.cc)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hjepa_jax.native.build import call


def merge_top_k_native(
    best: tuple[jax.Array, jax.Array], x: jax.Array, columns: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Merges the columns of a block into the k largest values of every row, on one CPU device.

    The native kernels must be available (`hjepa_jax.native.build.kernels()`). Not differentiable.

    Args:
      best: values float32 [N, k] in falling order and their indices int32 [N, k]; -inf and -1
        where there are none yet.
      x: float32 [N, M].
      columns: int32 [M], the indices of the block's columns, rising and above those of `best`;
        -1 on padding, which comes last and is left out.

    Returns:
      The merged `best`; of equal values the lower index comes first, where there is one.
    """
    shape = best[0].shape
    results = [jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape, jnp.int32)]
    values, indices = call("merge_top_k", results)(*best, x, columns)
    return values, indices
