"""The spectral floors of q and p together, many times at once, on a pool of two threads.

jaxlib's batched LAPACK kernels wait inside XLA's thread pool for their own parts: a batched
Cholesky beside a batched eigendecomposition hung two-core machines for good.
"""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

PROGRAM = """
import os

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import jax, jax.numpy as jnp
from hjepa_jax.objectives.regularizers import logdet_statistics

a = jax.random.normal(jax.random.key(0), (2, 128, 128))
covariance = a @ a.swapaxes(-1, -2) / 128 + jnp.eye(128)


@jax.jit
def gradient(c):
    return jax.grad(lambda c: sum(jnp.sum(s) for s in logdet_statistics(c)))(c)


for _ in range(300):
    result = gradient(covariance)
print(bool(jnp.all(jnp.isfinite(result))))
"""


def test_floors_of_q_and_p_do_not_hang_two_threads() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"
