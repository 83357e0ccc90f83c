"""Batch normalisation by the native CPU kernels (hjepa_jax/native/batch_norm.cc)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hjepa_jax.native.build import call

Normalised = tuple[jax.Array, jax.Array, jax.Array]


def _call(name: str, results: list[Any], relu: bool, epsilon: float) -> Any:
    return functools.partial(call(name, results), epsilon=np.float32(epsilon), relu=relu)


def batch_norm_native(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    residual: jax.Array | None,
    relu: bool,
    epsilon: float,
) -> Normalised:
    """Normalises x [..., C] over all axes but the last, adds `residual`, rectifies if `relu`.

    All float32, on one CPU device; scale and bias [C], residual None or like x. Reverse mode only,
    once. The native kernels must be available (`hjepa_jax.native.build.kernels()`).

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
