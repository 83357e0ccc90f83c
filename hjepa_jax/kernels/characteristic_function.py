"""The empirical characteristic function of SIGReg: the choice of implementation and the kernel.

Own code because this is the hot path: on one CPU device SIGReg with its gradient takes 1.36 times
as long in XLA (benchmarks/RESULTS.md). Lowered for another platform, this is
`hjepa_jax.objectives.characteristic_function.trigonometric_means`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hjepa_jax.kernels.build import call_native, use_native
from hjepa_jax.objectives.characteristic_function import trigonometric_means

# Below this many values a call costs more than it saves.
_MIN_VALUES = 2**12


def characteristic_means(
    y: jax.Array, start: float, step: float, count: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the means of cos(t y) and sin(t y) over rows; the `means` argument of `sigreg`.

    Args:
      y: projections [..., N, K]; float64 always takes XLA's form.
      start: the first frequency t.
      step: the distance between frequencies.
      count: the number of frequencies.

    Returns:
      Two arrays [count, ..., K].
    """
    if use_native(y.size, _MIN_VALUES, y):
        return means_native(y, start, step, count)
    return trigonometric_means(y, start, step, count)


def means_native(
    y: jax.Array, start: float, step: float, count: int
) -> tuple[jax.Array, jax.Array]:
    """`characteristic_means` by the native kernel where it is lowered for the CPU, else by XLA.

    y is float32 and lies on one device, and the kernels must be available (`build.kernels()`). Not
    differentiable: `sigreg` defines its own gradient.
    """
    where = {"start": start, "step": step, "count": count}
    return jax.lax.platform_dependent(
        y,
        cpu=functools.partial(_native_value, **where),
        default=functools.partial(trigonometric_means, **where),
    )


def _native_value(
    y: jax.Array, start: float, step: float, count: int
) -> tuple[jax.Array, jax.Array]:
    views = y.reshape(-1, *y.shape[-2:])
    result = jax.ShapeDtypeStruct((count, views.shape[0], y.shape[-1]), jnp.float32)
    cosines, sines = call_native(
        "characteristic_function",
        [views],
        [result, result],
        start=np.float32(start),
        step=np.float32(step),
    )
    shape = (count, *y.shape[:-2], y.shape[-1])
    return cosines.reshape(shape), sines.reshape(shape)
