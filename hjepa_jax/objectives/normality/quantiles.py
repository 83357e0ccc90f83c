"""Quantiles of N(0, 1) at the plotting positions of a sample."""

import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float


def normal_quantiles(
    count: int, offset: float, dtype: jnp.dtype | type = jnp.float32
) -> Float[Array, " {count}"]:
    """Returns the quantiles of N(0, 1) at (i - offset) / (count + 1 - 2 offset), i = 1..count.

    Args:
        count: number of samples.
        offset: 0 for i / (count + 1), 3/8 for Blom's approximation of the expected order statistics
            (G. Blom, 1958).
        dtype: of the result.
    """
    rank = jnp.arange(1, count // 2 + 1, dtype=dtype)
    # The lower half alone: in the upper one 1 - p would lose digits.
    low = ndtri((rank - offset) / (count + 1 - 2 * offset))
    middle = jnp.zeros(count % 2, dtype)
    return jnp.concatenate([low, middle, -low[::-1]])
