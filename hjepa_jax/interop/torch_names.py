"""Torch state dicts of the published code to our parameter trees, in NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Layers = tuple[dict[str, np.ndarray], ...]


def mlp_from_torch(state: Mapping[str, np.ndarray], prefix: str) -> Layers:
    """Collects `prefix{0,2,4,..}.{weight,bias}` into (kernel [in, out], bias [out]) layers."""
    indices = sorted(
        int(key[len(prefix) :].split(".")[0])
        for key in state
        if key.startswith(prefix) and key.endswith(".weight")
    )
    return tuple(
        {
            "kernel": np.ascontiguousarray(np.asarray(state[f"{prefix}{i}.weight"]).T),
            "bias": np.asarray(state[f"{prefix}{i}.bias"]),
        }
        for i in indices
    )
