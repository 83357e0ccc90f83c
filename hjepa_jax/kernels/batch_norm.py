"""Batch normalization in training: the choice of implementation, the native kernels and XLA's form.

Own code because this is the hot path. On the CPU the native kernels are up to twice as fast as XLA
(benchmarks/RESULTS.md). On accelerators the time is that of memory traffic, so x is read once for
its statistics and once for the result, and the backward pass reads x, in its own dtype, instead of
the wide intermediate values that JAX's own derivative would keep.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from hjepa_jax.kernels.build import call_native, use_native
from hjepa_jax.objectives import shares
from hjepa_jax.objectives.shares import AxisName
from hjepa_jax.runtime.devices import varying_alike

# Below this many values a call costs more than it saves.
_MIN_VALUES = 2**18

_Result = TypeVar("_Result")
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
    where the native kernels serve, of first order: for large arrays on a CPU host, float32 or
    narrower, each device's own.

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
    # The native kernels know no groups.
    native = groups == 1 and use_native(x.size, _MIN_VALUES, scale, bias)
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


def _by_platform(
    kind: _Kind, native: Callable[..., _Result], plain: Callable[..., _Result], *operands: jax.Array
) -> _Result:
    """Returns what the form for the platform makes of the operands."""
    plain = functools.partial(plain, kind)
    if not kind.native:
        return plain(*operands)
    native = functools.partial(native, kind)
    return jax.lax.platform_dependent(*operands, cpu=native, default=plain)


def _value(
    kind: _Kind,
    shift: jax.Array | None,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *residual: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    moments = _by_platform(kind, _native_moments, _plain_moments, x, scale)
    moments = _of_all_shares(kind, shift, *moments)
    y = _by_platform(kind, _native_value, _plain_value, x, *moments, scale, bias, *residual)
    return y, *moments


def _of_all_shares(
    kind: _Kind, shift: jax.Array | None, mean: jax.Array, variance: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns mean and variance of the rows of all shares, from those of each.

    The variance between the means of shares comes from their shifted squares, so that one
    collective is enough.
    """
    if kind.axis_name is None:
        return mean, variance
    assert shift is not None
    moved = mean - shift
    first, second = shares.mean_shares((moved, variance + jnp.square(moved)), kind.axis_name)
    return shift + first, jnp.maximum(second - jnp.square(first), 0)


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
    """Returns the gradients, by one collective if there are shares.

    Those of scale and bias are the share's own.
    """
    given = (*saved, cotangents[0])
    sums = _by_platform(kind, _native_sums, _plain_sums, *given)
    x, means = saved[0], saved[2]
    rows = x.size // means.size
    averages = [total / rows for total in shares.mean_shares(sums, kind.axis_name)]
    to_x = _by_platform(kind, _native_gradient, _plain_gradient, *given, *averages)
    bar_scale, bar_bias = (jnp.sum(total, 0) for total in sums)
    return None, to_x[0], bar_scale, bar_bias, *to_x[1:]


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


def _plain_moments(kind: _Kind, x: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns means and biased variances [groups, C] of the share."""
    wide, axes = _grouped(x.astype(scale.dtype), kind.groups)
    mean, variance = _moments(wide, axes)
    return mean.reshape(kind.groups, -1), variance.reshape(kind.groups, -1)


def _plain_value(
    kind: _Kind,
    x: jax.Array,
    means: jax.Array,
    variances: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *residual: jax.Array,
) -> jax.Array:
    """Returns y, like x."""
    wide, _ = _grouped(x.astype(scale.dtype), kind.groups)
    factor = _along(scale * jax.lax.rsqrt(variances + kind.epsilon), wide)
    y = ((wide - _along(means, wide)) * factor + bias).reshape(x.shape)
    added = residual[0].astype(scale.dtype) if residual else None
    return finish(y, added, kind.relu).astype(x.dtype)


class _Normalized(NamedTuple):
    """What both parts of the gradient need; XLA computes it once.

    Attributes:
      factor: of x - mean in the value.
      normal: x with mean 0 and variance 1, `_grouped`.
      bar: cotangent at the ReLU's input, like `normal`.
    """

    factor: jax.Array
    normal: jax.Array
    bar: jax.Array


def _normalized(
    kind: _Kind,
    x: jax.Array,
    y: jax.Array,
    means: jax.Array,
    variances: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    bar: jax.Array,
) -> _Normalized:
    wide, _ = _grouped(x.astype(scale.dtype), kind.groups)
    inverse = jax.lax.rsqrt(variances + kind.epsilon)
    centered, factor = wide - _along(means, wide), _along(scale * inverse, wide)
    bar_y = bar.astype(scale.dtype).reshape(wide.shape)
    if kind.relu:
        # Without a residual, x alone decides: y need not be read.
        value = y.reshape(wide.shape) if kind.added else centered * factor + bias
        bar_y = jnp.where(value > 0, bar_y, 0)
    return _Normalized(factor, centered * _along(inverse, wide), bar_y)


def _plain_sums(kind: _Kind, *given: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the share's gradients [groups, C] of scale and bias, from saved values and bar."""
    _, normal, bar_y = _normalized(kind, *given)
    axes = tuple(range(kind.groups > 1, normal.ndim - 1))
    shape = given[2].shape
    return jnp.sum(bar_y * normal, axes).reshape(shape), jnp.sum(bar_y, axes).reshape(shape)


def _plain_gradient(kind: _Kind, *operands: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the gradients of x and of the residual if there is one.

    Args:
      kind: the normalization.
      *operands: saved values, bar, and the sums of `_plain_sums` as means over all rows.
    """
    *given, to_scale, to_bias = operands
    factor, normal, bar_y = _normalized(kind, *given)
    bar_x = factor * (bar_y - (_along(to_bias, normal) + normal * _along(to_scale, normal)))
    x = given[0]
    results = (bar_x, bar_y) if kind.added else (bar_x,)
    return tuple(bar.reshape(x.shape).astype(x.dtype) for bar in results)


def _float32(*arrays: jax.Array) -> list[jax.Array]:
    return [array.astype(jnp.float32) for array in arrays]


def _native_moments(kind: _Kind, x: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`_plain_moments` by the native kernel."""
    del kind
    moment = jax.ShapeDtypeStruct(scale.shape, jnp.float32)
    mean, variance = call_native("batch_norm_moments", _float32(x), [moment, moment])
    return mean[None], variance[None]


def _native_value(
    kind: _Kind,
    x: jax.Array,
    means: jax.Array,
    variances: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *residual: jax.Array,
) -> jax.Array:
    """`_plain_value` by the native kernel."""
    wide, added = _float32(x, *residual or (jnp.zeros(0),))
    (y,) = call_native(
        "batch_norm",
        (wide, means[0], variances[0], scale, bias, added),
        [jax.ShapeDtypeStruct(x.shape, jnp.float32)],
        epsilon=np.float32(kind.epsilon),
        relu=kind.relu,
    )
    return y.astype(x.dtype)


def _native_sums(
    kind: _Kind,
    x: jax.Array,
    y: jax.Array,
    means: jax.Array,
    variances: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    bar: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """`_plain_sums` by the native kernel."""
    del bias
    like_scale = jax.ShapeDtypeStruct(scale.shape, jnp.float32)
    to_scale, to_bias = call_native(
        "batch_norm_sums",
        (*_float32(x, y, bar), means[0], variances[0]),
        [like_scale, like_scale],
        epsilon=np.float32(kind.epsilon),
        relu=kind.relu,
    )
    return to_scale[None], to_bias[None]


def _native_gradient(
    kind: _Kind,
    x: jax.Array,
    y: jax.Array,
    means: jax.Array,
    variances: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    bar: jax.Array,
    to_scale: jax.Array,
    to_bias: jax.Array,
) -> tuple[jax.Array, ...]:
    """`_plain_gradient` by the native kernel."""
    del bias
    like_x = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    to_residual = like_x if kind.added else jax.ShapeDtypeStruct((0,), jnp.float32)
    bar_x, bar_residual = call_native(
        "batch_norm_gradient",
        (*_float32(x, y, bar), means[0], variances[0], scale, to_scale[0], to_bias[0]),
        [like_x, to_residual],
        epsilon=np.float32(kind.epsilon),
        relu=kind.relu,
    )
    results = (bar_x, bar_residual) if kind.added else (bar_x,)
    return tuple(bar.astype(x.dtype) for bar in results)
