"""Quantiles at plotting positions against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from hjepa_jax.objectives.normality.quantiles import normal_quantiles


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
@pytest.mark.parametrize("offset", [0.0, 0.375])
def test_quantiles_are_those_of_scipy_and_symmetric(count: int, offset: float) -> None:
    ranks = (np.arange(1, count + 1) - offset) / (count + 1 - 2 * offset)
    expected = scipy.stats.norm.ppf(ranks)
    single = np.asarray(normal_quantiles(count, offset))
    np.testing.assert_allclose(single, expected, rtol=2e-6, atol=1e-7)
    np.testing.assert_array_equal(single, -single[::-1])
    with jax.enable_x64(True):
        double = normal_quantiles(count, offset, jnp.float64)
        np.testing.assert_allclose(double, expected, rtol=1e-12, atol=1e-14)
