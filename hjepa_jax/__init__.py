"""hjepa_jax: Hamiltonian JEPA and its SIGReg baselines in JAX and Flax."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hjepa_jax.loading import LoadedRun

__version__ = "0.1.0"

# OpenBLAS's threads spin for 2^26 cycles, 25 ms, after each factorization, on the cores that XLA's
# threads need: a third of a small model's step. Read when the library is loaded, so set here.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "10")


def load(
    workdir: str | os.PathLike[str], *, step: int | None = None, batch_size: int = 64
) -> LoadedRun:
    """Loads a trained run: `hjepa_jax.load('runs/x').encode(images)`.

    See `hjepa_jax.loading.load_run` for arguments and errors.
    """
    # Imported here: the package itself is importable without starting JAX.
    from hjepa_jax.loading import load_run

    return load_run(workdir, step=step, batch_size=batch_size)
