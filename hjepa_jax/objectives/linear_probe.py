"""The linear probe: LayerNorm and Linear on features, its cross-entropy and its accuracy.

Used by the evaluation and beside the training step.

Source: the evaluation protocol of arXiv 2605.20107, its classifier of frozen features.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

_LAYER_NORM_EPS = 1e-5


class ProbeParams(NamedTuple):
    """Parameters of the probe, D features to C classes; more leading axes are separate probes.

    Attributes:
        scale: LayerNorm's scale, [D].
        offset: LayerNorm's offset, [D].
        kernel: Linear's kernel, [D, C].
        bias: Linear's bias, [C].
    """

    scale: Float[Array, "*probes d"]
    offset: Float[Array, "*probes d"]
    kernel: Float[Array, "*probes d classes"]
    bias: Float[Array, "*probes classes"]


def standardize(features: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Returns features [..., D] of mean 0 and variance 1: LayerNorm without its affine part."""
    centered = features - features.mean(axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
    return centered * lax.rsqrt(variance + _LAYER_NORM_EPS)


def logits_of_standardized(
    params: ProbeParams, x: Float[Array, "*batch d"]
) -> Float[Array, "*batch classes"]:
    """Returns the logits of standardized features.

    LayerNorm's affine part is folded into the linear layer. Its gradients come from those of the
    folded kernel, so that a training step multiplies by the features twice, not three times.

    Args:
        params: the probe's parameters.
        x: features [..., D], from `standardize`.

    Returns:
        Logits [..., C].
    """
    product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    kernel = params.scale[..., None] * params.kernel
    return product(x, kernel) + (product(params.offset, params.kernel) + params.bias)


def probe_logits(
    params: ProbeParams, features: Float[Array, "*batch d"]
) -> Float[Array, "*batch classes"]:
    """Returns the logits [..., C] of features [..., D]."""
    return logits_of_standardized(params, standardize(features))


def cross_entropy(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Returns the cross-entropy [...], in nats, of logits [..., C] at integer labels [...]."""
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def topk_accuracy(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"], k: int
) -> Float[Array, ""]:
    """Returns the share of labels [...] among the k largest logits [..., C] (at most C)."""
    _, classes = lax.top_k(logits, min(k, logits.shape[-1]))
    return jnp.mean(jnp.any(classes == labels[..., None], axis=-1))
