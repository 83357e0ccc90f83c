"""The empirical characteristic function by the native CPU kernel."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hjepa_jax.native.build import call


def means_native(
    y: jax.Array, start: float, step: float, count: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the means of cos(t y) and sin(t y) over axis -2, t = start + step * 0..count-1.

    For float32 [..., N, K] on one CPU device. The native kernels must be available
    (`hjepa_jax.native.build.kernels()`). Not differentiable.

    Returns:
      Two arrays float32 [count, ..., K].
    """
    views = y.reshape(-1, *y.shape[-2:])
    result = jax.ShapeDtypeStruct((count, views.shape[0], y.shape[-1]), jnp.float32)
    handler = functools.partial(
        call("characteristic_function", [result, result]),
        start=np.float32(start),
        step=np.float32(step),
    )
    cosines, sines = handler(views)
    shape = (count, *y.shape[:-2], y.shape[-1])
    return cosines.reshape(shape), sines.reshape(shape)
