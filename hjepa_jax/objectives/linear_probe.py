"""The linear probe: LayerNorm and Linear on features, its cross-entropy and its accuracy.

The protocol's classifier of frozen features (arXiv 2605.20107), used by the evaluation and beside
the training step.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_LAYER_NORM_EPS = 1e-5


class ProbeParams(NamedTuple):
    """LayerNorm `scale` [D] and `offset` [D], then Linear `kernel` [D, C] and `bias` [C]."""

    scale: jax.Array
    offset: jax.Array
    kernel: jax.Array
    bias: jax.Array


def standardise(features: jax.Array) -> jax.Array:
    """Returns features [..., D] of mean 0 and variance 1: LayerNorm without its affine part."""
    centred = features - features.mean(axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return centred * lax.rsqrt(variance + _LAYER_NORM_EPS)


def logits_of_standardised(params: ProbeParams, x: jax.Array) -> jax.Array:
    """Returns the logits [..., C] of standardised features [..., D].

    LayerNorm's affine part is folded into the linear layer. Its gradients come from those of the
    folded kernel, so that a training step multiplies by the features twice, not three times.
    """
    product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    kernel = params.scale[..., None] * params.kernel
    return product(x, kernel) + (product(params.offset, params.kernel) + params.bias)


def probe_logits(params: ProbeParams, features: jax.Array) -> jax.Array:
    """Returns the logits [..., C] of features [..., D]."""
    return logits_of_standardised(params, standardise(features))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the cross-entropy [...] of logits [..., C] at labels int [...]."""
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def topk_accuracy(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Returns the share of labels [...] among the k largest logits [..., C] (at most C)."""
    _, classes = lax.top_k(logits, min(k, logits.shape[-1]))
    return jnp.mean(jnp.any(classes == labels[..., None], axis=-1))
