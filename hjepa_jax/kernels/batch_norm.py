"""Batch normalization in training: the choice of implementation, the native kernels and XLA's form.

Own code because this is the hot path. On the CPU the native kernels are up to twice as fast as XLA
(benchmarks/RESULTS.md). On accelerators the time is that of memory traffic, so x is read once for
its statistics and once for the result, and the backward pass reads x, in its own dtype, instead of
the wide intermediate values that JAX's own derivative would keep.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hjepa_jax.kernels.build import call_native, use_native
from hjepa_jax.objectives import shares
from hjepa_jax.objectives.shares import AxisName
from hjepa_jax.runtime.devices import varying_alike

# Below this many values a call costs more than it saves.
_MIN_VALUES = 2**18

# x, y, means, variances, scale and bias.
_Saved = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


class _Kind(NamedTuple):
    """What is static in a normalization.

    Attributes:
      relu: whether a ReLU comes last.
      added: whether there is a residual.
      epsilon: added to the variance.
      groups: number of groups of rows with separate statistics.
      axis_name: mesh axis that the rows are split over; None if there is one share.
      native: whether to use the native kernels where the program is lowered for the CPU.
    """

    relu: bool
    added: bool
    epsilon: float
    groups: int
    axis_name: AxisName
    native: bool


def normalize_batch(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    residual: jax.Array | None = None,
    *,
    relu: bool = False,
    epsilon: float = 1e-5,
    groups: int = 1,
    axis_name: AxisName = None,
    shift: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalizes x over all axes but the last, adds `residual`, then applies a ReLU if `relu`.

    Everything is computed in the dtype of `scale` and rounded to that of x once. Reverse mode only;
    where the native kernels serve, of first order: for large arrays of one device on a CPU host,
    float32 or narrower.

    Args:
      x: [N, ..., C], of any floating-point dtype.
      scale: [C], float32, or float64 if x is.
      bias: like scale.
      residual: array like x, or None.
      relu: whether to apply a ReLU last.
      epsilon: added to the variance.
      groups: number of equal groups of consecutive rows with separate statistics; must divide N.
      axis_name: mesh axis that the rows are split over, inside `jax.shard_map`; None = x is whole.
      shift: [C], near the means, such as the running ones: it keeps the variance between shares
        from canceling. Needed with `axis_name`.

    Returns:
      (y like x, means [groups, C] and biased variances [groups, C] like scale). No gradient flows
      through the means and variances.
    """
    split = shares.count(axis_name) > 1
    assert not split or shift is not None
    assert not split or groups == 1, "groups are shares already"
    # The statistics of one share or group alone are those that the native kernels compute.
    native = not split and groups == 1 and use_native(x.size, _MIN_VALUES, scale, bias)
    kind = _Kind(relu, residual is not None, epsilon, groups, axis_name if split else None, native)
    given = (x, scale, bias) if residual is None else (x, scale, bias, residual)
    near = shift if split else None
    y, means, variances = _batch_norm(kind, near, *varying_alike(*given))
    if axis_name is not None and not split:
        # Of one share, which only marks them as the same on all devices.
        means, variances = shares.mean_shares((means, variances), axis_name)
    return y, means, variances


def finish(y: jax.Array, residual: jax.Array | None, relu: bool) -> jax.Array:
    """Returns y plus `residual`, if there is one, with a ReLU if `relu`."""
    if residual is not None:
        y = y + residual
    return jax.nn.relu(y) if relu else y


def batch_norm_native(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    residual: jax.Array | None,
    relu: bool,
    epsilon: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`normalize_batch` of one group, by the native kernels where it is lowered for the CPU.

    `scale` and `bias` are float32 and all arrays lie on one device, and the kernels must be
    available (`build.kernels()`).

    Returns:
      (y like x, mean [C], biased variance [C]).
    """
    given = (x, scale, bias) if residual is None else (x, scale, bias, residual)
    kind = _Kind(relu, residual is not None, epsilon, 1, None, native=True)
    y, means, variances = _batch_norm(kind, None, *varying_alike(*given))
    return y, means[0], variances[0]


def _value(
    kind: _Kind,
    shift: jax.Array | None,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *residual: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    plain = functools.partial(_plain_value, kind, shift)
    if not kind.native:
        return plain(x, scale, bias, *residual)
    native = functools.partial(_native_value, kind)
    return jax.lax.platform_dependent(x, scale, bias, *residual, cpu=native, default=plain)


def _forward(
    kind: _Kind,
    shift: jax.Array | None,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *residual: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], _Saved]:
    y, means, variances = _value(kind, shift, x, scale, bias, *residual)
    return (y, means, variances), (x, y, means, variances, scale, bias)


def _backward(
    kind: _Kind, saved: _Saved, cotangents: tuple[jax.Array, jax.Array, jax.Array]
) -> tuple[jax.Array | None, ...]:
    plain = functools.partial(_plain_gradients, kind)
    if not kind.native:
        return None, *plain(*saved, cotangents[0])
    native = functools.partial(_native_gradients, kind)
    gradients = jax.lax.platform_dependent(*saved, cotangents[0], cpu=native, default=plain)
    return None, *gradients


_batch_norm = jax.custom_vjp(_value, nondiff_argnums=(0,))
_batch_norm.defvjp(_forward, _backward)


def _grouped(x: jax.Array, groups: int) -> tuple[jax.Array, tuple[int, ...]]:
    """Returns x [groups, N / groups, ..., C], or x itself for one group, and its axes of rows."""
    if groups > 1:
        x = x.reshape(groups, -1, *x.shape[1:])
    return x, tuple(range(groups > 1, x.ndim - 1))


def _along(statistics: jax.Array, x: jax.Array) -> jax.Array:
    """Returns statistics [groups, C] in the shape that broadcasts with `_grouped` x."""
    return statistics.reshape(-1, *[1] * (x.ndim - 2), statistics.shape[-1])


def _moments(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns mean and biased variance over `axes`, with one pass over x.

    The variance is E[(x - s)^2] - E[x - s]^2 with s one of the values. It loses no more digits for
    a large mean: the two terms are 1 + (s - mean)^2 / variance times the variance, which is near 2
    and at most the number of values.
    """
    first = tuple(slice(1) if axis in axes else slice(None) for axis in range(x.ndim))
    value = jax.lax.stop_gradient(x[first])
    moved = x - value
    mean, square = jnp.mean(moved, axes), jnp.mean(jnp.square(moved), axes)
    variance = jnp.maximum(square - jnp.square(mean), 0)
    return jnp.squeeze(value, axes) + mean, variance


def _plain_value(
    kind: _Kind,
    shift: jax.Array | None,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *residual: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`normalize_batch` by XLA's operations.

    The variance between the means of shares comes from their shifted squares, so that one
    collective is enough.
    """
    wide, axes = _grouped(x.astype(scale.dtype), kind.groups)
    mean, variance = _moments(wide, axes)
    if kind.axis_name is not None:
        assert shift is not None
        moved = mean - shift
        first, second = shares.mean_shares((moved, variance + jnp.square(moved)), kind.axis_name)
        mean, variance = shift + first, jnp.maximum(second - jnp.square(first), 0)
    means, variances = (s.reshape(kind.groups, -1) for s in (mean, variance))
    factor = _along(scale * jax.lax.rsqrt(variances + kind.epsilon), wide)
    y = ((wide - _along(means, wide)) * factor + bias).reshape(x.shape)
    added = residual[0].astype(scale.dtype) if residual else None
    return finish(y, added, kind.relu).astype(x.dtype), means, variances


def _plain_gradients(
    kind: _Kind,
    x: jax.Array,
    y: jax.Array,
    means: jax.Array,
    variances: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    bar: jax.Array,
) -> tuple[jax.Array, ...]:
    """Returns the gradients, by one collective if there are shares, as `_native_gradients` does.

    Those of scale and bias are the share's own.
    """
    wide, axes = _grouped(x.astype(scale.dtype), kind.groups)
    inverse = jax.lax.rsqrt(variances + kind.epsilon)
    centered, factor = wide - _along(means, wide), _along(scale * inverse, wide)
    bar_y = bar.astype(scale.dtype).reshape(wide.shape)
    if kind.relu:
        # Without a residual, x alone decides: y need not be read.
        value = y.reshape(wide.shape) if kind.added else centered * factor + bias
        bar_y = jnp.where(value > 0, bar_y, 0)
    normal = centered * _along(inverse, wide)
    own = (jnp.sum(bar_y * normal, axes), jnp.sum(bar_y, axes))
    rows = wide.size // means.size
    to_scale, to_bias = (
        _along(s.reshape(means.shape) / rows, wide) for s in shares.mean_shares(own, kind.axis_name)
    )
    bar_x = factor * (bar_y - (to_bias + normal * to_scale))
    bar_scale, bar_bias = (jnp.sum(s.reshape(means.shape), 0) for s in own)
    gradients = bar_x.reshape(x.shape).astype(x.dtype), bar_scale, bar_bias
    return (*gradients, bar_y.reshape(x.shape).astype(x.dtype)) if kind.added else gradients


def _native_value(
    kind: _Kind, x: jax.Array, scale: jax.Array, bias: jax.Array, *residual: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    moment = jax.ShapeDtypeStruct(scale.shape, jnp.float32)
    results = [jax.ShapeDtypeStruct(x.shape, jnp.float32), moment, moment]
    added = residual[0].astype(jnp.float32) if residual else jnp.zeros(0, jnp.float32)
    y, mean, variance = call_native(
        "batch_norm",
        (x.astype(jnp.float32), scale, bias, added),
        results,
        epsilon=np.float32(kind.epsilon),
        relu=kind.relu,
    )
    return y.astype(x.dtype), mean[None], variance[None]


def _native_gradients(
    kind: _Kind,
    x: jax.Array,
    y: jax.Array,
    means: jax.Array,
    variances: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    bar: jax.Array,
) -> tuple[jax.Array, ...]:
    """Returns the gradients of x, scale, bias, and of the residual if there is one."""
    del bias
    like_x = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    like_scale = jax.ShapeDtypeStruct(scale.shape, jnp.float32)
    to_residual = like_x if kind.added else jax.ShapeDtypeStruct((0,), jnp.float32)
    bar_x, bar_scale, bar_bias, bar_residual = call_native(
        "batch_norm_gradient",
        (*(a.astype(jnp.float32) for a in (x, y, bar)), means[0], variances[0], scale),
        [like_x, like_scale, like_scale, to_residual],
        epsilon=np.float32(kind.epsilon),
        relu=kind.relu,
    )
    gradients = bar_x.astype(x.dtype), bar_scale, bar_bias
    return (*gradients, bar_residual.astype(x.dtype)) if kind.added else gradients
