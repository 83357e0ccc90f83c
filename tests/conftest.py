"""Settings shared by all tests: the CPU backend, and absl flags that grain workers need."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest
from absl import flags


@pytest.fixture(scope="session", autouse=True)
def parsed_flags() -> None:
    """Grain's worker processes refuse to start on unparsed absl flags."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
