"""The devices that the computation being traced will run on, to choose implementations."""

from __future__ import annotations

import jax


def on_cpu() -> bool:
    """Returns whether computations traced now will run on the CPU."""
    return jax.default_backend() == "cpu"


def is_single_cpu() -> bool:
    """Returns whether computations traced now will run on a single CPU device, unsharded."""
    return on_cpu() and jax.device_count() == 1
