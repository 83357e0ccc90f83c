"""2-D convolution: the choice of implementation, the native kernels and the fallbacks.

Own code because this is the hot path: on one CPU device up to 7.5 times as fast as XLA
(benchmarks/RESULTS.md).

Accelerators, sharded arrays and small work use `lax.conv_general_dilated`. Lowered for one CPU
device, float32 goes to the native kernels. Without them, and for other dtypes, only the kernel
gradient is replaced: XLA's CPU code computes it on a transposed copy of the whole batch, 1.3 to 20
times slower than the same sum over small groups of images, each one matrix product of unfolded
patches that fit the cache.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from hjepa_jax.kernels.build import call_native, use_native
from hjepa_jax.runtime.devices import offer_cpu_forms, varying_alike

# Below these operation counts the plain convolution and its gradient are as fast.
_MIN_NATIVE = 1e7
_MIN_GROUPED = 5e7
# The patches of a group should fit one core's share of the last-level cache.
_PATCH_BYTES = 5 * 2**19


def conv2d(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Convolves images with a kernel (cross-correlation), padded symmetrically with zeros.

    For large work on one device, traced on a CPU host, this is `conv2d_native` or
    `conv2d_grouped_gradient`, which are `conv2d_plain` where they are lowered for another platform,
    but have no forward-mode differentiation (`jax.jvp` raises TypeError) and no second derivatives.
    Otherwise it is `conv2d_plain`, which has both.

    Args:
      x: [N, H, W, C].
      kernel: [kh, kw, C, F], of the same dtype as x.
      stride: along both axes.
      padding: zeros on each side of both axes.

    Returns:
      [N, H', W', F] with H' = floor((H + 2 * padding - kh) / stride) + 1, and W' likewise.
    """
    if not isinstance(x.shape[0], int):
        return conv2d_plain(x, kernel, stride, padding)  # exported for any number of images
    output_shape = jax.eval_shape(
        functools.partial(conv2d_plain, stride=stride, padding=padding), x, kernel
    ).shape
    taps = math.prod(kernel.shape[:3])
    operations = 2 * math.prod(output_shape) * taps
    if stride in (1, 2) and use_native(operations, _MIN_NATIVE, x, kernel):
        return conv2d_native(x, kernel, stride, padding)
    # Grouping a sharded batch would gather it.
    if operations >= _MIN_GROUPED and offer_cpu_forms():
        group = _group_size(x.shape[0], 4 * taps * math.prod(output_shape[1:3]))
        return conv2d_grouped_gradient(x, kernel, stride, padding, group)
    return conv2d_plain(x, kernel, stride, padding)


def conv2d_plain(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """`conv2d` by XLA's own convolution; differentiable in both modes, any number of times."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def conv2d_native(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """`conv2d` by the native kernels where it is lowered for the CPU, else `conv2d_plain`.

    The arrays are float32 and lie on one device, the stride is 1 or 2, and the kernels must be
    available (`build.kernels()`). Reverse mode only, first order.
    """
    return _native(*varying_alike(x, kernel), stride, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _native(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    where = {"stride": stride, "padding": padding}
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_native_value, **where),
        default=functools.partial(conv2d_plain, **where),
    )


def _native_value(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    rows, columns = ((x.shape[1 + i] + 2 * padding - kernel.shape[i]) // stride + 1 for i in (0, 1))
    shape = (x.shape[0], rows, columns, kernel.shape[3])
    return _call("convolution", (x, kernel), shape, stride, padding)


def _call(
    name: str, operands: tuple[jax.Array, ...], shape: tuple[int, ...], stride: int, padding: int
) -> jax.Array:
    """Calls a convolution handler, whose float32 result has the given shape."""
    (result,) = call_native(
        name,
        operands,
        [jax.ShapeDtypeStruct(shape, jnp.float32)],
        stride=np.int64(stride),
        padding=np.int64(padding),
    )
    return result


def _native_forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _native(x, kernel, stride, padding), (x, kernel)


def _native_backward(
    stride: int, padding: int, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    where = {"stride": stride, "padding": padding}
    return jax.lax.platform_dependent(
        *residuals,
        cotangent,
        cpu=functools.partial(_native_gradients, **where),
        default=functools.partial(_plain_gradients, **where),
    )


def _native_gradients(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, stride: int, padding: int
) -> tuple[jax.Array, jax.Array]:
    name = "convolution_input_gradient"
    bar_x = _call(name, (cotangent, kernel), x.shape, stride, padding)
    name = "convolution_kernel_gradient"
    bar_kernel = _call(name, (x, cotangent), kernel.shape, stride, padding)
    return bar_x, bar_kernel


def _plain_gradients(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, stride: int, padding: int
) -> tuple[jax.Array, jax.Array]:
    convolve = functools.partial(conv2d_plain, stride=stride, padding=padding)
    return jax.vjp(convolve, x, kernel)[1](cotangent)


_native.defvjp(_native_forward, _native_backward)


def conv2d_grouped_gradient(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, group: int
) -> jax.Array:
    """`conv2d_plain` whose kernel gradient is summed over groups of images on the CPU.

    `group` is their size and must divide the number of images. The groups are scanned, each a
    matrix product: inside `lax.scan` XLA's CPU convolutions are 30 to 60 times slower, products are
    not. Half-precision groups are multiplied and summed in float32. Reverse mode only, first order.
    """
    return _grouped(*varying_alike(x, kernel), stride, padding, group)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _grouped(x: jax.Array, kernel: jax.Array, stride: int, padding: int, group: int) -> jax.Array:
    del group
    return conv2d_plain(x, kernel, stride, padding)


def _grouped_forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, group: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    del group
    return conv2d_plain(x, kernel, stride, padding), (x, kernel)


def _grouped_backward(
    stride: int,
    padding: int,
    group: int,
    residuals: tuple[jax.Array, jax.Array],
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    where = {"stride": stride, "padding": padding}
    return jax.lax.platform_dependent(
        *residuals,
        cotangent,
        cpu=functools.partial(_grouped_gradients, group=group, **where),
        default=functools.partial(_plain_gradients, **where),
    )


def _grouped_gradients(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, stride: int, padding: int, group: int
) -> tuple[jax.Array, jax.Array]:
    to_input = jax.linear_transpose(lambda x: conv2d_plain(x, kernel, stride, padding), x)
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    features = kernel.shape[-1]

    def add(total: jax.Array, parts: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        part, bar = (array.astype(wide) for array in parts)
        patches = unfold(part, kernel.shape[:2], stride, padding)
        # Transposed: XLA multiplies it up to twice as fast as patches^T bar.
        over_rows = (((0,), (0,)), ((), ()))
        product = jax.lax.dot_general(
            bar.reshape(-1, features), patches, over_rows, precision=jax.lax.Precision.HIGHEST
        )
        return total + product, None

    images, bars = (a.reshape(-1, group, *a.shape[1:]) for a in (x, cotangent))
    shape = (features, math.prod(kernel.shape[:3]))
    start = jnp.zeros_like(cotangent, wide, shape)  # like it also in the axes it varies over
    total, _ = jax.lax.scan(add, start, (images, bars))
    bar_kernel = total.T.reshape(kernel.shape).astype(kernel.dtype)
    return to_input(cotangent)[0], bar_kernel


_grouped.defvjp(_grouped_forward, _grouped_backward)


def _group_size(images: int, patch_bytes: int) -> int:
    """Returns the largest divisor of `images` whose patches fit `_PATCH_BYTES`, at least 1."""
    fitting = max(1, min(images, _PATCH_BYTES // patch_bytes))
    return next(size for size in range(fitting, 0, -1) if images % size == 0)


def unfold(x: jax.Array, size: tuple[int, ...], stride: int, padding: int) -> jax.Array:
    """Unfolds images into the patches that a convolution multiplies.

    Args:
      x: [N, H, W, C].
      size: (kh, kw).
      stride: as in `conv2d`.
      padding: as in `conv2d`.

    Returns:
      [N * H' * W', kh * kw * C], with H' and W' as in `conv2d`.
    """
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = ((padded.shape[1 + i] - size[i]) // stride + 1 for i in (0, 1))
    taps = [
        padded[
            :, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride
        ]
        for i in range(size[0])
        for j in range(size[1])
    ]
    return jnp.concatenate(taps, axis=-1).reshape(-1, len(taps) * x.shape[-1])
