"""The one place that chooses how SIGReg's means of cosines and sines are computed.

On a lone CPU device large arrays go to the native kernel, which reads the projections once;
everywhere else this is the plain form of `hjepa_jax.objectives.sigreg`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hjepa_jax.kernels.build import call, use_native
from hjepa_jax.objectives.sigreg import trigonometric_means

# Below this many values a call costs more than it saves.
_MIN_VALUES = 2**12


def characteristic_means(
    y: jax.Array, start: float, step: float, count: int
) -> tuple[jax.Array, jax.Array]:
    """The `means` argument of `sigreg`: float32 [..., N, K] to two arrays [count, ..., K].

    float64 and what is not on a single CPU device take the plain form.
    """
    if use_native(y.size, _MIN_VALUES, y):
        return means_native(y, start, step, count)
    return trigonometric_means(y, start, step, count)


def means_native(
    y: jax.Array, start: float, step: float, count: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the means of cos(t y) and sin(t y) over axis -2, t = start + step * 0..count-1.

    For float32 [..., N, K] on one CPU device. The native kernels must be available
    (`hjepa_jax.kernels.build.kernels()`). Not differentiable.

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
