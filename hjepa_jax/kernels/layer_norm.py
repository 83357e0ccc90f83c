"""Layer normalization after the sum of a residual branch: the native kernels and XLA's form.

Own code because XLA's CPU fusions recompute the residual stream from all earlier branches wherever
it is normalized, so that the time of a transformer grows with the square of its depth: ViT-S/8 at
64 px takes 3 times as long (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hjepa_jax.kernels.build import call_native, use_native
from hjepa_jax.runtime.devices import varying_alike

# Below this many values a call costs more than it saves.
_MIN_VALUES = 2**16

# Stream, normalization, and mean and inverse deviation of each row.
_Value = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
# The stream, and the mean and inverse deviation of each of its rows.
_Saved = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def add_layer_norm(
    x: jax.Array,
    branch: jax.Array | None,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
) -> tuple[jax.Array, jax.Array]:
    """Adds a residual branch to x and normalizes the sum over its last axis.

    Source: Ba et al., "Layer Normalization" (arXiv 1607.06450). The arithmetic is in the dtype of
    `scale`. Where the native kernels serve (large float32 arrays on a CPU host, each device's own),
    reverse mode only, of first order.

    Args:
      x: [..., C], of any floating-point dtype.
      branch: like x; None adds nothing.
      scale: [C], float32, or float64 if x is.
      bias: like scale.
      epsilon: added to the variance.

    Returns:
      (x + branch, its normalization), both like x.
    """
    # The size is no number where an encoder is exported for any number of images.
    if isinstance(x.size, int) and use_native(x.size, _MIN_VALUES, x, scale, bias):
        return add_layer_norm_native(x, branch, scale, bias, epsilon)
    stream = x if branch is None else x + branch
    return stream, _normalized(stream, scale, bias, epsilon)


def _normalized(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    wide = x.astype(scale.dtype)
    centered = wide - jnp.mean(wide, axis=-1, keepdims=True)
    # Not E[x^2] - E[x]^2, which cancels where the mean dwarfs the spread.
    variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
    return (centered * (jax.lax.rsqrt(variance + epsilon) * scale) + bias).astype(x.dtype)


def add_layer_norm_native(
    x: jax.Array, branch: jax.Array | None, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array]:
    """`add_layer_norm` by the native kernels where it is lowered for the CPU.

    The arrays are float32 and lie on one device, and the kernels must be available
    (`build.kernels()`).
    """
    given = (x, scale, bias) if branch is None else (x, scale, bias, branch)
    stream, y, _, _ = _norm(epsilon, *varying_alike(*given))
    # Without a branch x itself goes on, so that its cotangents need no other pass.
    return (x, y) if branch is None else (stream, y)


def _value(
    epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array, *branch: jax.Array
) -> _Value:
    """Returns stream, normalization, and mean and inverse deviation of each row."""
    return jax.lax.platform_dependent(
        x,
        scale,
        bias,
        *branch,
        cpu=functools.partial(_native_value, epsilon),
        default=functools.partial(_plain_value, epsilon),
    )


def _native_value(
    epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array, *branch: jax.Array
) -> _Value:
    like_x = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    like_rows = jax.ShapeDtypeStruct(x.shape[:-1], jnp.float32)
    added = branch[0] if branch else jnp.zeros(0)
    like_stream = like_x if branch else jax.ShapeDtypeStruct((0,), jnp.float32)
    stream, y, mean, inverse = call_native(
        "layer_norm",
        (x, added, scale, bias),
        [like_stream, like_x, like_rows, like_rows],
        epsilon=np.float32(epsilon),
    )
    return (stream if branch else x), y, mean, inverse


def _plain_value(
    epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array, *branch: jax.Array
) -> _Value:
    stream = sum(branch, x)
    mean = jnp.mean(stream, axis=-1)
    variance = jnp.mean(jnp.square(stream - mean[..., None]), axis=-1)
    y = _normalized(stream, scale, bias, epsilon)
    return stream, y, mean, jax.lax.rsqrt(variance + epsilon)


def _forward(
    epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array, *branch: jax.Array
) -> tuple[_Value, tuple[_Saved, bool]]:
    stream, y, mean, inverse = _value(epsilon, x, scale, bias, *branch)
    return (stream, y, mean, inverse), ((stream, mean, inverse, scale), bool(branch))


def _backward(
    epsilon: float, kept: tuple[_Saved, bool], cotangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    del epsilon
    saved, added = kept
    # Without a branch the stream that is returned is x itself.
    into_stream = cotangents[:1] if added else ()
    bar, bar_scale, bar_bias = jax.lax.platform_dependent(
        *saved, cotangents[1], *into_stream, cpu=_native_gradient, default=_plain_gradient
    )
    gradients = bar, bar_scale, bar_bias
    return (*gradients, bar) if added else gradients


def _native_gradient(
    stream: jax.Array,
    mean: jax.Array,
    inverse: jax.Array,
    scale: jax.Array,
    bar: jax.Array,
    *into_stream: jax.Array,
) -> tuple[jax.Array, ...]:
    like_x = jax.ShapeDtypeStruct(stream.shape, jnp.float32)
    like_scale = jax.ShapeDtypeStruct(scale.shape, jnp.float32)
    more = into_stream[0] if into_stream else jnp.zeros(0)
    return call_native(
        "layer_norm_gradient",
        (stream, bar, more, scale, mean, inverse),
        [like_x, like_scale, like_scale],
    )


def _plain_gradient(
    stream: jax.Array,
    mean: jax.Array,
    inverse: jax.Array,
    scale: jax.Array,
    bar: jax.Array,
    *into_stream: jax.Array,
) -> tuple[jax.Array, ...]:
    normal = (stream - mean[..., None]) * inverse[..., None]
    moved = bar * scale
    offset = jnp.mean(moved, axis=-1, keepdims=True)
    slope = jnp.mean(moved * normal, axis=-1, keepdims=True)
    bar_stream = sum(into_stream, inverse[..., None] * (moved - offset - normal * slope))
    rows = tuple(range(bar.ndim - 1))
    return bar_stream, jnp.sum(bar * normal, rows), jnp.sum(bar, rows)


_norm = jax.custom_vjp(_value, nondiff_argnums=(0,))
_norm.defvjp(_forward, _backward)
