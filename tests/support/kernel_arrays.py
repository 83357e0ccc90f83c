"""Random arrays for the kernel tests, and the comparison with float64."""

import numpy as np
import numpy.typing as npt


def draw(seed: int, *shape: int) -> npt.NDArray[np.float32]:
    """Returns standard normal float32 values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_close(
    got: npt.ArrayLike, expected: npt.ArrayLike, tolerance: float, name: str = ""
) -> None:
    """Asserts that no entry is off by more than `tolerance` times the largest expected entry."""
    expected = np.asarray(expected, np.float64)
    limit = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=limit, err_msg=name)
