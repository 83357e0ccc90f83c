"""VICReg's terms against NumPy and finite differences, and what leaves them unchanged."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import assert_gradient, quick_jit

from hjepa_jax.objectives.baselines.vicreg import variance_covariance, view_distance

terms = quick_jit(variance_covariance, static_argnames=("gamma", "eps"))


def views(count: int, images: int = 12, dim: int = 5) -> np.ndarray:
    random = np.random.default_rng(count)
    return random.standard_normal((count, images, dim)) @ random.standard_normal((dim, dim)) * 0.5


def numpy_pair(one: np.ndarray, two: np.ndarray, gamma: float, eps: float) -> tuple[float, ...]:
    """Algorithm 1 of the paper for two views."""
    hinge = covariance = 0.0
    for x in (one, two):
        hinge += np.maximum(0, gamma - np.sqrt(x.var(0, ddof=1) + eps)).mean()
        matrix = np.cov(x.T)
        covariance += (matrix[~np.eye(len(matrix), dtype=bool)] ** 2).sum() / len(matrix)
    return float(np.mean((one - two) ** 2)), hinge, covariance


@pytest.mark.parametrize("count", [2, 4])
def test_it_is_the_mean_of_the_published_loss_over_pairs(count: int) -> None:
    z = views(count)
    expected = np.mean([numpy_pair(*p, 1.2, 1e-4) for p in itertools.combinations(z, 2)], axis=0)
    assert np.all(expected > 0.01)
    with jax.enable_x64(True):
        x = jnp.asarray(z)
        found = [quick_jit(view_distance)(x), *terms(x, gamma=1.2, eps=1e-4)]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_gradients_match_differences() -> None:
    with jax.enable_x64(True):
        assert_gradient(view_distance, views(3))
        for index in (0, 1):
            assert_gradient(
                lambda z, i=index: variance_covariance(z, gamma=1.2, eps=1e-4)[i], views(3)
            )


def test_order_and_mean_of_the_images_do_not_matter() -> None:
    z, random = views(2), np.random.default_rng(0)
    moved = z[:, random.permutation(z.shape[1])] + random.standard_normal(5)
    with jax.enable_x64(True):
        found = [terms(jnp.asarray(x), gamma=1.2, eps=1e-4) for x in (z, moved)]
        np.testing.assert_allclose(found[0], found[1], rtol=1e-10)


def test_a_collapsed_state_is_penalized_with_a_finite_gradient() -> None:
    z = jnp.ones((2, 6, 4))
    value, gradient = quick_jit(
        jax.value_and_grad(lambda z: variance_covariance(z, gamma=1.0, eps=1e-4)[0])
    )(z)
    np.testing.assert_allclose(value, 2 * (1 - 0.01), rtol=1e-5)
    assert np.all(np.isfinite(gradient))
    apart = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4000, 4)), jnp.bfloat16)
    hinge, covariance = terms(2 * apart, gamma=1.0, eps=1e-4)
    assert hinge == 0
    assert covariance.dtype == jnp.float32
    assert covariance < 0.1


@pytest.mark.usefixtures("unchecked")
def test_too_few_views_or_images() -> None:
    with pytest.raises(ValueError, match="at least two views"):
        view_distance(jnp.zeros((1, 4, 3)))
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        variance_covariance(jnp.zeros((2, 1, 3)), gamma=1.0, eps=1e-4)
    with pytest.raises(ValueError, match=r"must be \[V, B, D\]"):
        variance_covariance(jnp.zeros((4, 3)), gamma=1.0, eps=1e-4)
