"""OpenBLAS's threads, which XLA's factorizations use on the CPU, leave the cores to XLA's."""

import os
import subprocess
import sys

PROGRAM = """
import time
import jax, jax.numpy as jnp
import hjepa_jax
factor = jax.jit(lambda a: jnp.linalg.qr(a)[0])
a = jax.random.normal(jax.random.key(0), (1024, 127))
spun = []
for _ in range(4):
    factor(a).block_until_ready()
    start = time.process_time()
    time.sleep(0.2)
    spun.append(time.process_time() - start)
print(min(spun))
"""


def test_no_thread_spins_after_a_factorization() -> None:
    """Asleep, the process takes no processor time; spinning threads take 25 ms each time."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={k: v for k, v in os.environ.items() if k != "OPENBLAS_THREAD_TIMEOUT"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 0.005


def test_the_users_own_setting_is_kept() -> None:
    program = "import hjepa_jax, os; print(os.environ['OPENBLAS_THREAD_TIMEOUT'])"
    environment = os.environ | {"OPENBLAS_THREAD_TIMEOUT": "27"}
    told = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
    assert told.strip() == "27"
