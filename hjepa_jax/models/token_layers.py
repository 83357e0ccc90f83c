"""Layers that encoders share: tokens of a feature map, and those of transformers and ConvNeXt.

The latter are initialized as by timm.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hjepa_jax.models.layers import Conv, default_uniform, wide_dtype
from hjepa_jax.models.pooling import adaptive_average_pool

# timm truncates at 2, a hundred standard deviations away.
weight_normal = nn.initializers.normal(0.02)


def token_map(x: jax.Array, channels: int, grid: int | None) -> jax.Array:
    """Projects a feature map to the channels of tokens, in a compact method of an encoder.

    Args:
      x: [N, h, w, C].
      channels: of a token.
      grid: side to pool to; None = no pooling.

    Returns:
      [N, h, w, channels], or [N, grid, grid, channels]; float32 or wider.
    """
    if grid is not None:
        x = adaptive_average_pool(x, grid)
    x = Conv(channels, 1, initializer=default_uniform, name="token_projection")(x)
    return x.astype(wide_dtype(x.dtype))


def flatten_tokens(tokens: jax.Array, split_qp: bool) -> jax.Array:
    """Flattens tokens in (h, w, c) order.

    Args:
      tokens: [N, h, w, c].
      split_qp: the first half of each token's channels is q, the second half p.

    Returns:
      [N, h * w * c]; with split_qp [q | p], each half flattened separately.
    """
    if not split_qp:
        return tokens.reshape(tokens.shape[0], -1)
    halves = jnp.split(tokens, 2, axis=-1)
    return jnp.concatenate([half.reshape(half.shape[0], -1) for half in halves], axis=-1)


def patches(x: jax.Array, size: int) -> jax.Array:
    """Cuts images into patches, whose pixels are in order; what is left at the end is dropped.

    A Linear of them is a convolution whose stride is its size.

    Args:
      x: [N, H, W, C].
      size: side of a patch.

    Returns:
      [N, H // size, W // size, size * size * C].
    """
    number, height, width, channels = x.shape
    rows, columns = height // size, width // size
    x = x[:, : rows * size, : columns * size]
    x = x.reshape(number, rows, size, columns, size, channels).swapaxes(2, 3)
    return x.reshape(number, rows, columns, size * size * channels)


def layer_norm(dtype: DTypeLike, name: str) -> nn.LayerNorm:
    """Returns a layer normalization with statistics in float32 or wider."""
    # The fast variance is a difference of large numbers where the mean dwarfs the spread.
    return nn.LayerNorm(
        epsilon=1e-6,
        dtype=dtype,
        param_dtype=wide_dtype(dtype),
        use_fast_variance=False,
        name=name,
    )


def dense(features: int, dtype: DTypeLike, name: str) -> nn.Dense:
    """Returns a linear layer whose weights begin with a standard deviation of 0.02."""
    return nn.Dense(
        features,
        dtype=dtype,
        param_dtype=wide_dtype(dtype),
        kernel_init=weight_normal,
        name=name,
    )


class LayerScale(nn.Module):
    """A factor for each channel of a residual branch (Touvron et al., arXiv 2103.17239).

    Attributes:
      initial: its initial value.
    """

    initial: float

    @nn.compact
    def __call__(self, branch: jax.Array) -> jax.Array:
        """Multiplies the last axis of a branch [..., C]."""
        initial = nn.initializers.constant(self.initial)
        factor = self.param("scale", initial, branch.shape[-1:], wide_dtype(branch.dtype))
        return branch * factor.astype(branch.dtype)
