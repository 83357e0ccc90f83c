"""Multivariate statistics against the integral that they have a closed form of, and differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import assert_gradient, quick_jit

from hjepa_jax.objectives.normality.multivariate import bhep, henze_zirkler, henze_zirkler_width


def samples(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_t(4, shape) * 1.2 + 0.3


def integral(x: np.ndarray, beta: float) -> float:
    """N times the integral over t ~ N(0, beta^2 I) in 2 dimensions, by Gauss and Hermite's rule."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    t = beta * np.stack(np.meshgrid(nodes, nodes), -1)
    weight = np.outer(weights, weights) / (2 * np.pi)
    error = np.abs(np.exp(1j * (t @ x.T)).mean(-1) - np.exp(-(t**2).sum(-1) / 2)) ** 2
    return float(len(x) * (weight * error).sum())


def whitened(x: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    values = values + 1e-6 * values.mean() + 1e-12
    return (x - x.mean(0)) @ vectors / np.sqrt(values) @ vectors.T


@pytest.mark.parametrize("beta", [0.4, 1.3, None])
def test_bhep_is_the_integral(beta: float | None) -> None:
    x = samples(3, 9, 2)
    expected = [integral(one, beta or 2**-0.5) for one in x]
    with jax.enable_x64(True):
        found = quick_jit(bhep, static_argnums=1)(jnp.asarray(x), beta)
        np.testing.assert_allclose(found, expected, rtol=1e-8)
    single = quick_jit(bhep, static_argnums=1)(jnp.asarray(x, jnp.float32), beta)
    np.testing.assert_allclose(single, expected, rtol=1e-4)


def test_henze_zirkler_is_the_integral_of_standardized_samples() -> None:
    x = samples(3, 9, 2)
    width = (5 * 9 / 4) ** (1 / 6) / np.sqrt(2)
    np.testing.assert_allclose(henze_zirkler_width(9, 2), width)
    expected = [integral(whitened(one), width) for one in x]
    with jax.enable_x64(True):
        np.testing.assert_allclose(quick_jit(henze_zirkler)(jnp.asarray(x)), expected, rtol=1e-8)


def test_gradients_match_differences() -> None:
    with jax.enable_x64(True):
        for statistic in (bhep, henze_zirkler):
            assert_gradient(lambda x, s=statistic: jnp.sum(s(x)), samples(2, 12, 3))


def test_rotations_and_for_henze_zirkler_every_affine_map_change_nothing() -> None:
    x, random = samples(20, 4), np.random.default_rng(1)
    matrix, shift = random.standard_normal((4, 4)), random.standard_normal(4)
    rotation = np.linalg.qr(matrix)[0]
    with jax.enable_x64(True):
        for statistic, moved in ((bhep, x @ rotation), (henze_zirkler, x @ matrix + shift)):
            one = statistic(jnp.asarray(x))
            # The ridge of the covariance is not mapped along.
            tolerance = 1e-9 if statistic is bhep else 1e-4
            np.testing.assert_allclose(statistic(jnp.asarray(moved)), one, rtol=tolerance)
            np.testing.assert_allclose(statistic(jnp.asarray(x[::-1])), one, rtol=1e-10)
        assert bhep(jnp.asarray(2 * x)) > 1.5 * bhep(jnp.asarray(x))


@pytest.mark.usefixtures("unchecked")
def test_a_singular_covariance_is_refused() -> None:
    with pytest.raises(ValueError, match="of 4 samples in 4 dimensions is singular"):
        henze_zirkler(jnp.zeros((4, 4)))


def test_lost_dimensions_and_equal_samples_have_finite_values_and_gradients() -> None:
    x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    twice, lost = x.copy(), x.copy()
    twice[:, 2:], lost[:, 3] = twice[:, :2], 0.7
    both = quick_jit(jax.value_and_grad(henze_zirkler))
    whole = both(jnp.asarray(x))[0]
    for samples in (twice, lost, np.ones_like(x)):
        value, gradient = both(jnp.asarray(samples))
        assert np.all(np.isfinite(gradient))
        assert value > 2 * whole
