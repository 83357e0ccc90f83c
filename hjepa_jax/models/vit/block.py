"""A pre-normalized transformer block: attention and an MLP, each a residual branch.

Sources: Vaswani et al. (arXiv 1706.03762); Dosovitskiy et al. (arXiv 2010.11929); LayerScale of
Touvron et al. (arXiv 2103.17239).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hjepa_jax.models.layers import LayerNorm, wide_dtype
from hjepa_jax.models.stochastic_depth import scaled
from hjepa_jax.models.token_layers import LayerScale, dense

MLP_RATIO = 4


@jax.custom_vjp
def _narrow_scores(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """`scores` of bfloat16; so are both products of its derivative."""
    return jnp.einsum("nhtd,nhsd->nhts", queries, keys, preferred_element_type=jnp.float32)


def _scores_forward(
    queries: jax.Array, keys: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _narrow_scores(queries, keys), (queries, keys)


def _scores_backward(
    kept: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    queries, keys = kept
    narrow = cotangent.astype(queries.dtype)
    return (
        jnp.einsum("nhts,nhsd->nhtd", narrow, keys),
        jnp.einsum("nhts,nhtd->nhsd", narrow, queries),
    )


_narrow_scores.defvjp(_scores_forward, _scores_backward)


def attention(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """Returns softmax(queries keys^T / sqrt(d)) values, with the softmax in float32 or wider.

    Not `jax.nn.dot_product_attention`, whose softmax stays float32 for float64.

    Args:
      queries: [N, H, T, d], H heads.
      keys: [N, H, S, d].
      values: [N, H, S, d].

    Returns:
      [N, H, T, d], in the dtype of the values.
    """
    wide = wide_dtype(queries.dtype)
    if queries.dtype == wide:
        scores = jnp.einsum("nhtd,nhsd->nhts", queries, keys)
    else:
        scores = _narrow_scores(queries, keys)
    weights = jax.nn.softmax(scores * queries.shape[-1] ** -0.5, axis=-1)
    return jnp.einsum("nhts,nhsd->nhtd", weights.astype(values.dtype), values)


class Attention(nn.Module):
    """Self-attention of several heads.

    Attributes:
      heads: number of heads, a divisor of the channels.
      dtype: dtype of the arithmetic.
    """

    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens [N, T, C] to [N, T, C]."""
        images, tokens, width = x.shape
        parts = dense(3 * width, self.dtype, "qkv")(x)
        parts = parts.reshape(images, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = jnp.transpose(parts, (2, 0, 3, 1, 4))
        found = jnp.swapaxes(attention(queries, keys, values), 1, 2)
        return dense(width, self.dtype, "projection")(found.reshape(x.shape))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Attributes:
      heads: heads of the attention.
      layer_scale: initial factor of each channel of a branch; None = no factors.
      dtype: dtype of the arithmetic; normalization and softmax are float32 or wider inside.
    """

    heads: int
    layer_scale: float | None
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: jax.Array, scales: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """Maps tokens x [N, T, C] to [N, T, C].

        Args:
          x: the tokens.
          scales: [N, 2], factors of the two branches, see `stochastic_depth`; None = 1.
          train: has no effect.
        """
        del train
        first, second = (None, None) if scales is None else (scales[:, 0], scales[:, 1])
        x, out = LayerNorm(name="norm1")(x)
        out = Attention(self.heads, self.dtype, name="attention")(out)
        branch = scaled(self._by_channel(out, "layer_scale1"), first)
        x, out = LayerNorm(name="norm2")(x, branch)
        out = dense(MLP_RATIO * x.shape[-1], self.dtype, "fc1")(out)
        out = dense(x.shape[-1], self.dtype, "fc2")(jax.nn.gelu(out, approximate=False))
        return x + scaled(self._by_channel(out, "layer_scale2"), second)

    def _by_channel(self, branch: jax.Array, name: str) -> jax.Array:
        if self.layer_scale is None:
            return branch
        return LayerScale(self.layer_scale, name=name)(branch)
