"""Batch normalization in training: the choice of implementation, the native kernels and XLA's form.

Own code because this is the hot path: on one CPU device up to twice as fast as XLA
(benchmarks/RESULTS.md), since each array is read from memory once for the statistics and once for
the result. Lowered for another platform, this is plain jax.numpy.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hjepa_jax.kernels.build import call_native, use_native
from hjepa_jax.objectives import shares
from hjepa_jax.objectives.shares import AxisName
from hjepa_jax.runtime.devices import varying_alike

# Below this many values a call costs more than it saves.
_MIN_VALUES = 2**18

# x, y, mean, variance, scale, and x again if there is a residual.
_Saved = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None]


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

    The native form, which large float32 arrays of one device get on a CPU host, supports reverse
    mode only, first order.

    Args:
      x: [N, ..., C], float32 or float64.
      scale: [C].
      bias: [C].
      residual: array like x, or None.
      relu: whether to apply a ReLU last.
      epsilon: added to the variance.
      groups: number of equal groups of consecutive rows with separate statistics; must divide N.
      axis_name: mesh axis that the rows are split over, inside `jax.shard_map`; None = x is whole.
      shift: [C], near the means, such as the running ones: it keeps the variance between shares
        from canceling. Needed with `axis_name`.

    Returns:
      (y like x, means [groups, C], biased variances [groups, C]). No gradient flows through the
      means and variances.
    """
    if axis_name is not None and shares.count(axis_name) > 1:
        assert shift is not None
        assert groups == 1, "groups are shares already"
        y, mean, var = _normalize_shares(x, scale, bias, shift, epsilon, axis_name)
        return finish(y, residual, relu), mean[None], var[None]
    parameters = (scale, bias) if residual is None else (scale, bias, residual)
    if groups == 1 and use_native(x.size, _MIN_VALUES, x, *parameters):
        y, mean, var = batch_norm_native(x, scale, bias, residual, relu, epsilon)
        # Of one share, which only marks them as the same on all devices.
        mean, var = shares.mean_shares((mean, var), axis_name)
        return y, mean[None], var[None]
    y, *statistics = normalize_batch_plain(x, scale, bias, residual, relu, epsilon, groups)
    means, variances = shares.mean_shares(statistics, axis_name)
    return y, means, variances


def normalize_batch_plain(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    residual: jax.Array | None,
    relu: bool,
    epsilon: float,
    groups: int = 1,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`normalize_batch` by XLA's operations; differentiable in both modes, any number of times."""
    grouped = x.reshape(groups, -1, *x.shape[1:]) if groups > 1 else x
    axes = tuple(range(grouped.ndim - x.ndim, grouped.ndim - 1))
    mean = jnp.mean(grouped, axes, keepdims=True)
    # E[(x - mean)^2], not E[x^2] - mean^2, which cancels when the mean is large.
    var = jnp.mean(jnp.square(grouped - mean), axes, keepdims=True)
    y = (grouped - mean) * (scale * jax.lax.rsqrt(var + epsilon)) + bias
    y = finish(y.reshape(x.shape), residual, relu)
    means, variances = (jax.lax.stop_gradient(s.reshape(groups, -1)) for s in (mean, var))
    return y, means, variances


def _share_value(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shift: jax.Array,
    epsilon: float,
    axis_name: str,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (y, mean, biased variance) of a share of the rows, by the statistics of all shares.

    Each share's own variance takes two passes. The variance between the means of the shares comes
    from their shifted squares, so that one collective is enough.
    """
    axes = tuple(range(x.ndim - 1))
    own_mean = jnp.mean(x, axes)
    own_var = jnp.mean(jnp.square(x - own_mean), axes)
    moved = own_mean - shift
    first, second = shares.mean_shares((moved, own_var + jnp.square(moved)), axis_name)
    mean, var = shift + first, jnp.maximum(second - jnp.square(first), 0)
    return (x - mean) * (scale * jax.lax.rsqrt(var + epsilon)) + bias, mean, var


def _share_forward(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shift: jax.Array,
    epsilon: float,
    axis_name: str,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    y, mean, var = _share_value(x, scale, bias, shift, epsilon, axis_name)
    return (y, mean, var), (x, mean, jax.lax.rsqrt(var + epsilon), scale)


def _share_backward(
    epsilon: float,
    axis_name: str,
    saved: tuple[jax.Array, ...],
    cotangents: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns the gradients by one collective; those of scale and bias are the share's own."""
    del epsilon
    x, mean, inverse, scale = saved
    bar_y, axes = cotangents[0], tuple(range(x.ndim - 1))
    normal = (x - mean) * inverse
    own = jnp.sum(bar_y * normal, axes), jnp.sum(bar_y, axes)
    bar_scale, bar_bias = shares.mean_shares(own, axis_name)
    rows = x.size // x.shape[-1]
    bar_x = (scale * inverse) * (bar_y - (bar_bias + normal * bar_scale) / rows)
    return bar_x, *own, jnp.zeros_like(mean)


_normalize_shares = jax.custom_vjp(_share_value, nondiff_argnums=(4, 5))
_normalize_shares.defvjp(_share_forward, _share_backward)


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

    All arrays are float32 and lie on one device, and the kernels must be available
    (`build.kernels()`). Reverse mode only, first order.

    Returns:
      (y like x, mean [C], biased variance [C]). No gradient flows through the mean and variance.
    """
    given = (x, scale, bias) if residual is None else (x, scale, bias, residual)
    x, scale, bias, *added = varying_alike(*given)
    return _batch_norm(x, scale, bias, added[0] if added else None, relu, epsilon)


def _value(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    residual: jax.Array | None,
    relu: bool,
    epsilon: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    def plain(
        x: jax.Array, scale: jax.Array, bias: jax.Array, residual: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        y, means, variances = normalize_batch_plain(x, scale, bias, residual, relu, epsilon)
        return y, means[0], variances[0]

    native = functools.partial(_native_value, relu=relu, epsilon=epsilon)
    return jax.lax.platform_dependent(x, scale, bias, residual, cpu=native, default=plain)


def _native_value(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    residual: jax.Array | None,
    relu: bool,
    epsilon: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    moment = jax.ShapeDtypeStruct(scale.shape, jnp.float32)
    results = [jax.ShapeDtypeStruct(x.shape, jnp.float32), moment, moment]
    added = jnp.zeros(0, jnp.float32) if residual is None else residual
    y, mean, variance = call_native(
        "batch_norm", (x, scale, bias, added), results, epsilon=np.float32(epsilon), relu=relu
    )
    return y, mean, variance


def _forward(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    residual: jax.Array | None,
    relu: bool,
    epsilon: float,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], _Saved]:
    y, mean, variance = _value(x, scale, bias, residual, relu, epsilon)
    # The gradient needs only to know whether there is a residual, not its values.
    like_residual = None if residual is None else x
    return (y, mean, variance), (x, y, mean, variance, scale, like_residual)


def _backward(
    relu: bool,
    epsilon: float,
    saved: _Saved,
    cotangents: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    *operands, like_residual = saved
    has_residual = like_residual is not None
    bar_x, bar_scale, bar_bias, *bar_residual = jax.lax.platform_dependent(
        *operands,
        cotangents[0],
        cpu=functools.partial(_native_gradients, has_residual, relu, epsilon),
        default=functools.partial(_plain_gradients, has_residual, relu, epsilon),
    )
    return bar_x, bar_scale, bar_bias, bar_residual[0] if has_residual else None


def _native_gradients(
    has_residual: bool,
    relu: bool,
    epsilon: float,
    x: jax.Array,
    y: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    scale: jax.Array,
    bar: jax.Array,
) -> tuple[jax.Array, ...]:
    like_x = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    like_scale = jax.ShapeDtypeStruct(scale.shape, jnp.float32)
    to_residual = like_x if has_residual else jax.ShapeDtypeStruct((0,), jnp.float32)
    gradients = call_native(
        "batch_norm_gradient",
        (x, y, bar, mean, variance, scale),
        [like_x, like_scale, like_scale, to_residual],
        epsilon=np.float32(epsilon),
        relu=relu,
    )
    return gradients if has_residual else gradients[:3]


def _plain_gradients(
    has_residual: bool,
    relu: bool,
    epsilon: float,
    x: jax.Array,
    y: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    scale: jax.Array,
    bar: jax.Array,
) -> tuple[jax.Array, ...]:
    del mean, variance  # XLA finds that they are computed already
    if relu:
        bar = jnp.where(y > 0, bar, 0)

    def normalized(x: jax.Array, scale: jax.Array) -> jax.Array:
        # No gradient depends on the bias.
        return normalize_batch_plain(x, scale, jnp.zeros_like(scale), None, False, epsilon)[0]

    bar_x, bar_scale = jax.vjp(normalized, x, scale)[1](bar)
    gradients = bar_x, bar_scale, jnp.sum(bar, tuple(range(bar.ndim - 1)))
    return (*gradients, bar) if has_residual else gradients


_batch_norm = jax.custom_vjp(_value, nondiff_argnums=(4, 5))
_batch_norm.defvjp(_forward, _backward)
