"""Quick compilation for tests, and a gradient check by central finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def quick_jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """jit without optimization: one quick compilation instead of one for every operation."""
    flags = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=flags, **options)


def assert_gradient(
    function: Callable[[jax.Array], Any],
    x: np.ndarray,
    *,
    directions: int = 3,
    step: float = 1e-6,
    tolerance: float = 1e-6,
) -> np.ndarray:
    """Asserts that the float64 gradient of a scalar function agrees with differences; returns it.

    Must be called with x64 enabled.
    """
    point = jnp.asarray(x, jnp.float64)
    both = quick_jit(jax.value_and_grad(function))
    gradient = np.asarray(both(point)[1])
    assert gradient.dtype == np.float64
    random = np.random.default_rng(0)
    for _ in range(directions):
        direction = random.standard_normal(point.shape)
        upper, lower = (float(both(point + s * step * direction)[0]) for s in (1, -1))
        slope = float(np.sum(gradient * direction))
        error = abs((upper - lower) / (2 * step) - slope)
        assert error <= tolerance * max(1.0, abs(slope)), (error, slope)
    return gradient
