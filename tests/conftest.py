"""Settings shared by all tests: the CPU backend, signals, and absl flags that grain needs."""

import atexit
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# No test reaches the network, and neither do the processes that it starts: the proxy of every other
# host is a port that nothing listens on. A recipe that may download its data is refused at once.
os.environ.update(dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9"))
os.environ.update(dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"))
os.environ.update(dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1,localhost"))

# As `import hjepa_jax` does, but before any test file imports jax: two workers share the cores.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "10")
# One compilation cache for this run: what one process compiles, its workers and children do not.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = tempfile.mkdtemp(prefix="hjepa_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
    atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jaxtyping
import pytest
from absl import flags

from hjepa_jax.runtime.devices import UNOPTIMIZED

# What was downloaded on this machine is not what a test reads.
os.environ["HJEPA_DATA"] = tempfile.mkdtemp(prefix="hjepa_jax_tests_data_")
atexit.register(shutil.rmtree, os.environ["HJEPA_DATA"], ignore_errors=True)

# Nearly all of the tests' time is compilation, which XLA:CPU does in a third unoptimized. The flags
# are read at the first compilation.
os.environ.setdefault(
    "XLA_FLAGS", " ".join(f"--{name}={value}".lower() for name, value in UNOPTIMIZED.items())
)

# Before any test imports them: every call into the numerics is checked against its annotations.
jaxtyping.install_import_hook(
    ["hjepa_jax.dynamics", "hjepa_jax.objectives"],
    # The numeric tower: an int may stand where a float is expected.
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

# A run ignores SIGHUP where it was told to, as all that nohup starts is; the tests send one.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def parsed_flags() -> None:
    """Grain's worker processes refuse to start on unparsed absl flags."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch) -> Iterator[None]:
    """Undoes `console.set_up`, which every command does, so that later tests see all messages."""
    loggers = [logging.getLogger(name) for name in ("", "absl", "hjepa_jax", "asyncio")]
    before = [(one.level, list(one.handlers), list(one.filters)) for one in loggers]
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    yield
    for one, (level, handlers, filters) in zip(loggers, before):
        one.setLevel(level)
        one.handlers[:], one.filters[:] = handlers, filters


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Numerics without run-time type checks, as outside the tests: their own errors appear."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# The longest files, first: each file runs in one worker, and a long one at the end would run alone.
_LONGEST = (
    "test_distributed.py",
    "test_shares.py",
    "test_golden.py",
    "test_kills.py",
    "test_train.py",
    "test_main.py",
    "test_sharding.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)


# Registered here, before any test module imports one of them.
pytest.register_assert_rewrite("golden_checks")
