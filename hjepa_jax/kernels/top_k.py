"""The largest values of rows by the native CPU kernel (csrc/top_k.cc)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from hjepa_jax.kernels.build import call, use_native

# Below this many values it is not worth compiling the kernels for.
_MIN_VALUES = 2**18


def merge_top_k(
    best: tuple[jax.Array, jax.Array], similarity: jax.Array, indices: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Merges similarities [T, B] to the training rows `indices` [B] into the k best [T, k].

    Of equals the earlier is preferred: what was found before, then the lower training index.
    """
    if use_native(similarity.size, _MIN_VALUES, similarity):
        return merge_top_k_native(best, similarity, indices)
    k = best[0].shape[1]
    similarity = jnp.where(indices >= 0, similarity, -jnp.inf)
    # The block is cut to its own best first, so that only 2k candidates are copied and merged.
    new, position = lax.top_k(similarity, min(k, len(indices)))
    values, chosen = lax.top_k(jnp.concatenate([best[0], new], axis=1), k)
    candidates = jnp.concatenate([best[1], indices[position]], axis=1)
    return values, jnp.take_along_axis(candidates, chosen, axis=1)


def merge_top_k_native(
    best: tuple[jax.Array, jax.Array], x: jax.Array, columns: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Merges the columns of a block into the k largest values of every row, on one CPU device.

    The native kernels must be available (`hjepa_jax.kernels.build.kernels()`). Not differentiable.

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
