"""Statistics of the empirical distribution function against SciPy, the formula, and differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from finite_differences import assert_gradient, quick_jit

from hjepa_jax.objectives.normality.distribution import anderson_darling, cramer_von_mises, watson

ALL = (anderson_darling, cramer_von_mises, watson)


def samples(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, shape) * 1.4 + 0.3


def numpy_anderson(x: np.ndarray) -> float:
    x, count = np.sort(x), len(x)
    odd = 2 * np.arange(1, count + 1) - 1
    tails = scipy.stats.norm.logcdf(x) + scipy.stats.norm.logsf(x[::-1])
    return float(-count - (odd * tails).sum() / count)


def numpy_cramer(x: np.ndarray) -> float:
    return scipy.stats.cramervonmises(x, "norm").statistic


def numpy_watson(x: np.ndarray) -> float:
    return float(numpy_cramer(x) - len(x) * (scipy.stats.norm.cdf(x).mean() - 0.5) ** 2)


REFERENCES = {
    anderson_darling: numpy_anderson,
    cramer_von_mises: numpy_cramer,
    watson: numpy_watson,
}


@pytest.mark.parametrize("statistic", ALL)
@pytest.mark.parametrize("count", [2, 9, 40])
def test_values_match_the_reference(statistic, count: int) -> None:
    x = samples(2, count, 3)
    expected = np.apply_along_axis(REFERENCES[statistic], 1, x)
    with jax.enable_x64(True):
        np.testing.assert_allclose(quick_jit(statistic)(jnp.asarray(x)), expected, rtol=1e-10)
    single = quick_jit(statistic)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(single, expected, rtol=1e-4)


@pytest.mark.parametrize("statistic", ALL)
def test_gradients_match_differences(statistic) -> None:
    with jax.enable_x64(True):
        weights = jnp.asarray(samples(2, 3, seed=1))
        assert_gradient(lambda x: jnp.sum(weights * statistic(x)), samples(2, 12, 3))


@pytest.mark.parametrize("statistic", ALL)
def test_order_does_not_matter_and_a_mirror_image_is_equal(statistic) -> None:
    x = samples(17, 2)
    with jax.enable_x64(True):
        one, other, mirrored = (statistic(jnp.asarray(a)) for a in (x, x[::-1], -x))
        np.testing.assert_allclose(other, one, rtol=1e-12)
        np.testing.assert_allclose(mirrored, one, rtol=1e-10)


@pytest.mark.parametrize("statistic", ALL)
def test_far_and_equal_samples_have_finite_values_and_gradients(statistic) -> None:
    for x in (jnp.array([[-200.0], [0.0], [300.0]]), jnp.zeros((5, 1))):
        value, gradient = quick_jit(jax.value_and_grad(lambda x: jnp.sum(statistic(x))))(x)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))
    # log F(-200) = -20006.2: the tail is not cut off where F itself underflows.
    if statistic is anderson_darling:
        far = np.asarray([-200.0, 0.0, 300.0])
        value = anderson_darling(jnp.asarray(far, jnp.float32)[:, None])[0]
        np.testing.assert_allclose(value, numpy_anderson(far), rtol=1e-5)


def test_many_samples_keep_their_digits_in_float32() -> None:
    x = np.random.default_rng(5).standard_normal(20_000)
    for statistic, reference in REFERENCES.items():
        found = jax.jit(statistic)(jnp.asarray(x, jnp.float32)[:, None])[0]
        np.testing.assert_allclose(found, reference(x), rtol=0.03)
