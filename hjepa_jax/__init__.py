"""hjepa_jax: Hamiltonian JEPA and its SIGReg baselines in JAX and Flax.

`dir(hjepa_jax)` lists the public names; they are imported when they are first used, so that
`import hjepa_jax` does not start JAX.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hjepa_jax.errors import UserError
    from hjepa_jax.loading import LoadedRun
    from hjepa_jax.loading import load_run as load
    from hjepa_jax.pretrained.encoder import TrainedEncoder, from_pretrained

__version__ = "0.1.0"

__all__ = ["LoadedRun", "TrainedEncoder", "UserError", "__version__", "from_pretrained", "load"]

# Module and name of each public name.
_PUBLIC = {
    "LoadedRun": ("hjepa_jax.loading", "LoadedRun"),
    "TrainedEncoder": ("hjepa_jax.pretrained.encoder", "TrainedEncoder"),
    "UserError": ("hjepa_jax.errors", "UserError"),
    "from_pretrained": ("hjepa_jax.pretrained.encoder", "from_pretrained"),
    "load": ("hjepa_jax.loading", "load_run"),
}

# OpenBLAS's threads spin for 2^26 cycles, 25 ms, after each factorization, on the cores that XLA's
# threads need: a third of a small model's step. Read when the library is loaded, so set here.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "10")
# XLA warns of what a user cannot change; its errors remain. Read when jaxlib is loaded.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def __getattr__(name: str) -> object:
    """Imports a public name."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hjepa_jax' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    """Returns the public names."""
    return sorted(__all__)
