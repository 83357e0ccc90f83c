"""Where what is traced now will run, for the choice between implementations."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hjepa_jax.native.build import kernels


def on_cpu() -> bool:
    """Returns whether computations traced now are for the CPU."""
    return jax.default_backend() == "cpu"


def lone_cpu() -> bool:
    """Returns whether they are for a single CPU device, so that no array is split over devices."""
    return on_cpu() and jax.device_count() == 1


def native_serves(work: float, least: float, *arrays: jax.Array) -> bool:
    """Returns whether the native kernels compute what is traced now.

    They do for float32 arrays, `work` of at least `least` (compiling and calling them must pay)
    and a single CPU device, where they can be had; they are compiled only if all else holds.
    """
    single = all(array.dtype == jnp.float32 for array in arrays)
    return single and work >= least and lone_cpu() and bool(kernels())
