"""Convolution by the native CPU kernels (hjepa_jax/native/convolution.cc), with its gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hjepa_jax.native.build import call


def _call(
    name: str, shape: tuple[int, ...], operands: tuple[jax.Array, ...], stride: int, padding: int
) -> jax.Array:
    """Calls a handler on float32 operands; the result has the given shape."""
    handler = call(f"convolution{name}", jax.ShapeDtypeStruct(shape, jnp.float32))
    return handler(*operands, stride=np.int64(stride), padding=np.int64(padding))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv2d_native(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Convolves x [N,H,W,C] with kernel [kh,kw,C,F], both float32; stride 1 or 2.

    The native kernels must be available (`hjepa_jax.native.build.kernels()`), and the arrays lie on
    one CPU device. Reverse mode only, once.
    """
    rows, columns = ((x.shape[1 + i] + 2 * padding - kernel.shape[i]) // stride + 1 for i in (0, 1))
    shape = (x.shape[0], rows, columns, kernel.shape[3])
    return _call("", shape, (x, kernel), stride, padding)


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return conv2d_native(x, kernel, stride, padding), (x, kernel)


def _backward(
    stride: int, padding: int, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    bar_x = _call("_input_gradient", x.shape, (cotangent, kernel), stride, padding)
    bar_kernel = _call("_kernel_gradient", kernel.shape, (x, cotangent), stride, padding)
    return bar_x, bar_kernel


conv2d_native.defvjp(_forward, _backward)
