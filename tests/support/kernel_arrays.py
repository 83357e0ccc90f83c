"""Random arrays for the kernel tests, and references in float64."""

import numpy as np
import numpy.typing as npt

EPSILON = 1e-5


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


def numpy_batch_norm(x, scale, bias, residual, bar, relu):
    """Value, moments and gradients in float64, as in Ioffe and Szegedy (arXiv 1502.03167)."""
    x, scale, bias, bar = (np.asarray(a, np.float64) for a in (x, scale, bias, bar))
    axes = tuple(range(x.ndim - 1))
    count = x.size / x.shape[-1]
    mean, var = x.mean(axes), x.var(axes)
    normal = (x - mean) / np.sqrt(var + EPSILON)
    y = normal * scale + bias + (0 if residual is None else residual)
    if relu:
        bar = np.where(y > 0, bar, 0)
        y = np.maximum(y, 0)
    to_bias, to_scale = bar.sum(axes), (bar * normal).sum(axes)
    inner = bar - to_bias / count - normal * to_scale / count
    gradients = [scale / np.sqrt(var + EPSILON) * inner, to_scale, to_bias]
    return (y, mean, var), gradients if residual is None else [*gradients, bar]
