"""Pooling with PyTorch's window rules."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def _window_means(size: int, out: int) -> np.ndarray:
    """Averaging matrix [out, size]: window i covers floor(i*size/out) .. ceil((i+1)*size/out)-1."""
    matrix = np.zeros((out, size))
    for i in range(out):
        start, stop = i * size // out, -(-(i + 1) * size // out)
        matrix[i, start:stop] = 1.0 / (stop - start)
    return matrix


def adaptive_average_pool(x: jax.Array, out: int) -> jax.Array:
    """Averages x [N,H,W,C] to [N,out,out,C] over windows that overlap if out does not divide H, W.

    Sizes above H or W repeat rows and columns. Sums run in float32 or wider.
    """
    if x.shape[1:3] == (out, out):
        return x
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    rows = jnp.asarray(_window_means(x.shape[1], out), dtype)
    columns = jnp.asarray(_window_means(x.shape[2], out), dtype)
    highest = jax.lax.Precision.HIGHEST
    pooled = jnp.einsum("ih,nhwc->niwc", rows, x.astype(dtype), precision=highest)
    return jnp.einsum("jw,niwc->nijc", columns, pooled, precision=highest).astype(x.dtype)


def max_pool_3x3_padded(x: jax.Array) -> jax.Array:
    """`kernels.max_pool.max_pool_3x3`, padded by an operation of its own for ONNX converters."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    return nn.max_pool(padded, window_shape=(3, 3), strides=(2, 2))
