"""Where what is traced now will run, for the choice between implementations."""

from __future__ import annotations

import jax


def on_cpu() -> bool:
    """Returns whether computations traced now are for the CPU."""
    return jax.default_backend() == "cpu"


def is_single_cpu() -> bool:
    """Returns whether they are for a single CPU device, so that no array is split over devices."""
    return on_cpu() and jax.device_count() == 1
