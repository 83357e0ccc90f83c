"""Fixtures of the kernel tests."""

import jax
import pytest

from hjepa_jax.kernels import build


@pytest.fixture
def native_kernels() -> None:
    """Skips without native kernels. A compiler that fails is an error, not a reason to skip.

    A fixture, because at import every pytest worker would compile.
    """
    if jax.device_count() > 1:
        pytest.skip("the kernels are for a single CPU device")
    if not build.kernels():
        assert " fails: " not in build.kernels().description
        pytest.skip(build.kernels().description)
