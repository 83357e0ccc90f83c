"""The one place where convolutions are computed.

On accelerators, and for small work, this is `lax.conv_general_dilated` and nothing else. On a lone
CPU device the kernel's gradient is summed over small groups of images: XLA's CPU code computes it
on a transposed copy of the whole batch, which leaves the cache (3 to 5 times slower there).
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

# Below this many operations the plain gradient takes less than its longer compilation is worth.
_MIN_OPERATIONS = 5e8
# The input of a group should fit a core's cache and its neighbours' share of the last level.
_GROUP_BYTES = 2**20
_MIN_GROUP, _MAX_GROUP = 4, 32


def conv2d(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Convolves x [N,H,W,C] with kernel [kh,kw,C,F] (cross-correlation), padded symmetrically.

    Returns [N,H',W',F] with H' = floor((H + 2*padding - kh)/stride) + 1, in the dtype of both.

    The implementation is chosen when traced. For large work on a single CPU device it is
    `conv2d_grouped_gradient`, which has no forward-mode differentiation (`jax.jvp` raises
    TypeError) and no second derivatives; everywhere else it is `conv2d_plain`, which has both.
    """
    output_shape = jax.eval_shape(
        functools.partial(conv2d_plain, stride=stride, padding=padding), x, kernel
    ).shape
    if not isinstance(x.shape[0], int):
        return conv2d_plain(x, kernel, stride, padding)  # exported for any number of images
    operations = 2 * math.prod(output_shape) * math.prod(kernel.shape[:3])
    # On a mesh, groups of images would cut across the devices' shares of the batch.
    lone_cpu = jax.default_backend() == "cpu" and jax.device_count() == 1
    if lone_cpu and operations >= _MIN_OPERATIONS and x.shape[0] > _group_size(x):
        return conv2d_grouped_gradient(x, kernel, stride, padding, _group_size(x))
    return conv2d_plain(x, kernel, stride, padding)


def conv2d_plain(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """`conv2d` as XLA does it by itself."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _group_size(x: jax.Array) -> int:
    """Images per group: about `_GROUP_BYTES` of them in float32."""
    fitting = _GROUP_BYTES // (4 * math.prod(x.shape[1:]))
    return min(max(fitting, _MIN_GROUP), _MAX_GROUP)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def conv2d_grouped_gradient(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, group: int
) -> jax.Array:
    """`conv2d_plain` whose kernel gradient is summed over groups of `group` images.

    The groups are unrolled: inside `lax.scan` XLA's CPU convolutions are 30 to 60 times slower.
    Half-precision groups are differentiated and summed in float32. Reverse mode only, once.
    """
    del group
    return conv2d_plain(x, kernel, stride, padding)


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, group: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    del group
    return conv2d_plain(x, kernel, stride, padding), (x, kernel)


def _backward(
    stride: int,
    padding: int,
    group: int,
    residuals: tuple[jax.Array, jax.Array],
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    to_input = jax.linear_transpose(lambda x: conv2d_plain(x, kernel, stride, padding), x)
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    bar_kernel = jnp.zeros(kernel.shape, wide)
    for start in range(0, x.shape[0], group):
        part = x[start : start + group].astype(wide)
        convolve = functools.partial(conv2d_plain, part, stride=stride, padding=padding)
        to_kernel = jax.linear_transpose(convolve, bar_kernel)
        bar_kernel += to_kernel(cotangent[start : start + group].astype(wide))[0]
    return to_input(cotangent)[0], bar_kernel.astype(kernel.dtype)


conv2d_grouped_gradient.defvjp(_forward, _backward)
