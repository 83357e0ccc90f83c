"""The one place where batches are normalised by their own statistics.

On a lone CPU device large arrays go to the native kernels, which read each array from memory once
for the statistics and once for the result; everywhere else this is plain jax.numpy.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hjepa_jax.models.placement import native_serves
from hjepa_jax.native.batch_norm import batch_norm_native

# Below this many values a call costs more than it saves.
_MIN_VALUES = 2**18


def normalise_batch(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    residual: jax.Array | None = None,
    *,
    relu: bool = False,
    epsilon: float = 1e-5,
    groups: int = 1,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises x [N, ..., C] over all axes but the last; adds `residual`; rectifies if `relu`.

    Args:
      x: float32 or float64.
      scale: [C].
      bias: [C].
      residual: None, or like x.
      relu: whether max(., 0) comes last.
      epsilon: added to the variance.
      groups: equal runs of rows with statistics of their own; must divide N.

    Returns:
      (y like x, means, biased variances), the latter [groups, C] and outside the gradient. The
      native form (large float32 arrays on a single CPU device) has reverse mode only, once.
    """
    if groups == 1 and native_serves(x.size, _MIN_VALUES, x, scale):
        y, mean, var = batch_norm_native(x, scale, bias, residual, relu, epsilon)
        return y, mean[None], var[None]
    grouped = x.reshape(groups, -1, *x.shape[1:]) if groups > 1 else x
    axes = tuple(range(grouped.ndim - x.ndim, grouped.ndim - 1))
    mean = jnp.mean(grouped, axes, keepdims=True)
    # E[(x - mean)^2], not E[x^2] - mean^2, which cancels when the mean is large.
    var = jnp.mean(jnp.square(grouped - mean), axes, keepdims=True)
    y = (grouped - mean) * (scale * jax.lax.rsqrt(var + epsilon)) + bias
    y = finish(y.reshape(x.shape), residual, relu)
    means, variances = (jax.lax.stop_gradient(s.reshape(groups, -1)) for s in (mean, var))
    return y, means, variances


def finish(y: jax.Array, residual: jax.Array | None, relu: bool) -> jax.Array:
    """Returns y, plus `residual` where there is one, rectified if `relu`."""
    if residual is not None:
        y = y + residual
    return jax.nn.relu(y) if relu else y
