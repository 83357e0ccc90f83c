"""Statistics of shape against SciPy, the formula, and differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from finite_differences import assert_gradient, quick_jit

from hjepa_jax.objectives.normality.shape import (
    extended_jarque_bera,
    jarque_bera,
    shapiro_wilk,
)

COMPOSITE = (shapiro_wilk, jarque_bera)
ALL = (*COMPOSITE, extended_jarque_bera)


def samples(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, 1.0, shape)


def numpy_extended(x: np.ndarray) -> float:
    own = len(x) * x.mean() ** 2 + (len(x) - 1) / 2 * (x.var(ddof=1) - 1) ** 2
    return float(scipy.stats.jarque_bera(x).statistic + own)


REFERENCES = {
    shapiro_wilk: lambda x: len(x) * (1 - scipy.stats.shapiro(x).statistic),
    jarque_bera: lambda x: scipy.stats.jarque_bera(x).statistic,
    extended_jarque_bera: numpy_extended,
}


@pytest.mark.parametrize("statistic", ALL)
@pytest.mark.parametrize("count", [6, 13, 200])
def test_values_match_scipy(statistic, count: int) -> None:
    x = samples(2, count, 3)
    expected = np.apply_along_axis(REFERENCES[statistic], 1, x)
    with jax.enable_x64(True):
        np.testing.assert_allclose(quick_jit(statistic)(jnp.asarray(x)), expected, rtol=1e-6)
    single = quick_jit(statistic)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(single, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("statistic", ALL)
def test_gradients_match_differences(statistic) -> None:
    with jax.enable_x64(True):
        weights = jnp.asarray(samples(2, 3, seed=1))
        assert_gradient(lambda x: jnp.sum(weights * statistic(x)), samples(2, 12, 3))


def test_order_shift_and_scale_do_not_matter_to_a_composite_hypothesis() -> None:
    x = samples(25, 2)
    with jax.enable_x64(True):
        for statistic in COMPOSITE:
            one = statistic(jnp.asarray(x))
            np.testing.assert_allclose(statistic(jnp.asarray(x[::-1])), one, rtol=1e-10)
            np.testing.assert_allclose(statistic(jnp.asarray(3 * x - 7)), one, rtol=1e-8)
        moved = extended_jarque_bera(jnp.asarray(3 * x - 7))
        assert np.all(moved > 2 * extended_jarque_bera(jnp.asarray(x)))


@pytest.mark.parametrize("statistic", ALL)
def test_equal_samples_have_a_finite_gradient(statistic) -> None:
    gradient = quick_jit(jax.grad(lambda x: jnp.sum(statistic(x))))(jnp.ones((8, 2)))
    assert np.all(np.isfinite(gradient))


@pytest.mark.usefixtures("unchecked")
def test_the_weights_need_six_samples() -> None:
    with pytest.raises(ValueError, match="need 6 samples, got 5"):
        shapiro_wilk(jnp.zeros((5, 1)))
