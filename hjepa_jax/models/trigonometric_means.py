"""The one place that chooses how SIGReg's means of cosines and sines are computed.

On a lone CPU device large arrays go to the native kernel, which reads the projections once;
everywhere else this is the plain form of `hjepa_jax.objectives.sigreg`.
"""

from __future__ import annotations

import jax

from hjepa_jax.models.placement import native_serves
from hjepa_jax.native.characteristic_function import means_native
from hjepa_jax.objectives.sigreg import trigonometric_means

# Below this many values a call costs more than it saves.
_MIN_VALUES = 2**12


def fastest_means(
    y: jax.Array, start: float, step: float, count: int
) -> tuple[jax.Array, jax.Array]:
    """The `means` argument of `sigreg`: float32 [..., N, K] to two arrays [count, ..., K].

    float64 and what is not on a single CPU device take the plain form.
    """
    if native_serves(y.size, _MIN_VALUES, y):
        return means_native(y, start, step, count)
    return trigonometric_means(y, start, step, count)
