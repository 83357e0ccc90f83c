"""The one place where batches are normalised by their own statistics.

On a lone CPU device large arrays go to the native kernels, which read each array from memory once
for the statistics and once for the result; everywhere else this is plain jax.numpy.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hjepa_jax.kernels.build import call, use_native

# Below this many values a call costs more than it saves.
_MIN_VALUES = 2**18


def normalize_batch(
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
    if groups == 1 and use_native(x.size, _MIN_VALUES, x, scale):
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


def _call(name: str, results: list[Any], relu: bool, epsilon: float) -> Any:
    return functools.partial(call(name, results), epsilon=np.float32(epsilon), relu=relu)


def batch_norm_native(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    residual: jax.Array | None,
    relu: bool,
    epsilon: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises x [..., C] over all axes but the last, adds `residual`, rectifies if `relu`.

    All float32, on one CPU device; scale and bias [C], residual None or like x. Reverse mode only,
    once. The native kernels must be available (`hjepa_jax.kernels.build.kernels()`).

    Returns:
      (y like x, mean [C], biased variance [C]). Mean and variance are outside the gradient.
    """
    return _batch_norm(x, scale, bias, residual, relu, epsilon)


def _value(x, scale, bias, residual, relu, epsilon):
    moment = jax.ShapeDtypeStruct(scale.shape, jnp.float32)
    results = [jax.ShapeDtypeStruct(x.shape, jnp.float32), moment, moment]
    added = jnp.zeros(0, jnp.float32) if residual is None else residual
    return tuple(_call("batch_norm", results, relu, epsilon)(x, scale, bias, added))


def _forward(x, scale, bias, residual, relu, epsilon):
    y, mean, variance = _value(x, scale, bias, residual, relu, epsilon)
    # The gradient needs no residual, only whether there is one.
    like_residual = None if residual is None else x
    return (y, mean, variance), (x, y, mean, variance, scale, like_residual)


def _backward(relu, epsilon, residuals, cotangents):
    x, y, mean, variance, scale, like_residual = residuals
    has_residual = like_residual is not None
    like_x = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    like_scale = jax.ShapeDtypeStruct(scale.shape, jnp.float32)
    to_residual = like_x if has_residual else jax.ShapeDtypeStruct((0,), jnp.float32)
    results = [like_x, like_scale, like_scale, to_residual]
    handler = _call("batch_norm_gradient", results, relu, epsilon)
    bar_x, bar_scale, bar_bias, bar_residual = handler(x, y, cotangents[0], mean, variance, scale)
    return bar_x, bar_scale, bar_bias, bar_residual if has_residual else None


_batch_norm: Any = jax.custom_vjp(_value, nondiff_argnums=(4, 5))
_batch_norm.defvjp(_forward, _backward)
