"""Running top-k of rows that arrive in blocks: the choice of implementation, and both forms.

Own code because this is the hot path of kNN: on one CPU device the search takes 11 s, with XLA's
`top_k` 14 s (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from hjepa_jax.kernels.build import call_native, use_native

# Below this many values it is not worth compiling the kernels.
_MIN_VALUES = 2**18


def merge_top_k(
    best: tuple[jax.Array, jax.Array], x: jax.Array, columns: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Merges a block of columns into the k largest values of every row. Not differentiable.

    Args:
      best: values [N, k] in descending order and their indices int32 [N, k]; -inf and -1 where
        there are none yet.
      x: [N, M], of the dtype of the values.
      columns: int32 [M], the indices of the block's columns, ascending and above those in `best`;
        -1 on padding, which comes last and is ignored.

    Returns:
      The merged `best`. Of equal values the lower index comes first; -inf keeps the index -1.
    """
    if use_native(x.size, _MIN_VALUES, x):
        return merge_top_k_native(best, x, columns)
    return _plain(best, x, columns)


def _plain(
    best: tuple[jax.Array, jax.Array], x: jax.Array, columns: jax.Array
) -> tuple[jax.Array, jax.Array]:
    k = best[0].shape[1]
    x = jnp.where(columns >= 0, x, -jnp.inf)
    # The block is first reduced to its own top k, so that at most 2k candidates are merged.
    new, position = lax.top_k(x, min(k, len(columns)))
    values, chosen = lax.top_k(jnp.concatenate([best[0], new], axis=1), k)
    candidates = jnp.concatenate([best[1], columns[position]], axis=1)
    return values, jnp.take_along_axis(candidates, chosen, axis=1)


def merge_top_k_native(
    best: tuple[jax.Array, jax.Array], x: jax.Array, columns: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`merge_top_k` by the native kernel where it is lowered for the CPU, else by XLA.

    The values are float32 and lie on one device, and the kernels must be available
    (`build.kernels()`).
    """
    return lax.platform_dependent(best, x, columns, cpu=_native, default=_plain)


def _native(
    best: tuple[jax.Array, jax.Array], x: jax.Array, columns: jax.Array
) -> tuple[jax.Array, jax.Array]:
    shape = best[0].shape
    results = [jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape, jnp.int32)]
    values, indices = call_native("merge_top_k", (*best, x, columns), results)
    return values, indices
