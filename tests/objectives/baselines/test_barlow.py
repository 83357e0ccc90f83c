"""Barlow Twins' terms against NumPy and finite differences, and what leaves them unchanged."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import assert_gradient, quick_jit

from hjepa_jax.objectives.baselines.barlow import cross_correlation_terms

terms = quick_jit(cross_correlation_terms, static_argnames="eps")


def views(count: int) -> np.ndarray:
    random = np.random.default_rng(count)
    shared = random.standard_normal((12, 5))
    return 0.7 * shared + random.standard_normal((count, 12, 5)) + 0.3


@pytest.mark.parametrize("count", [2, 3])
def test_it_is_the_mean_of_the_published_loss_over_pairs(count: int) -> None:
    z, pairs = views(count), []
    for one, two in itertools.combinations(z, 2):
        both = np.corrcoef(one.T, two.T)[:5, 5:]
        same = np.eye(5, dtype=bool)
        pairs.append(((1 - both[same]) ** 2).sum().item())
        pairs.append((both[~same] ** 2).sum().item())
    expected = np.reshape(pairs, (-1, 2)).mean(0)
    assert np.all(expected > 0.1)
    with jax.enable_x64(True):
        np.testing.assert_allclose(terms(jnp.asarray(z), eps=1e-14), expected, rtol=1e-10)


def test_epsilon_is_added_to_the_biased_variance() -> None:
    z = views(2)
    with jax.enable_x64(True):
        found = terms(jnp.asarray(z), eps=0.3)[0]
        x, y = ((view - view.mean(0)) / np.sqrt(view.var(0) + 0.3) for view in z)
        np.testing.assert_allclose(found, ((1 - (x * y).mean(0)) ** 2).sum(), rtol=1e-12)


def test_gradients_match_differences() -> None:
    with jax.enable_x64(True):
        for index in (0, 1):
            assert_gradient(lambda z, i=index: cross_correlation_terms(z, eps=1e-5)[i], views(3))


def test_order_shift_and_scale_do_not_matter() -> None:
    z, random = views(2), np.random.default_rng(0)
    scale = np.exp(random.standard_normal((2, 1, 5)))
    moved = z[:, random.permutation(12)] * scale + random.standard_normal((2, 1, 5))
    with jax.enable_x64(True):
        found = [terms(jnp.asarray(x), eps=1e-14) for x in (z, moved)]
        np.testing.assert_allclose(found[0], found[1], rtol=1e-9)


def test_equal_uncorrelated_views_have_no_loss_and_collapse_has_the_largest() -> None:
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 5)) - 0.0)[0]
    basis = np.linalg.qr(basis - basis.mean(0))[0] * np.sqrt(8)
    z = jnp.asarray(np.stack([basis, basis]), jnp.float32)
    np.testing.assert_allclose(terms(z, eps=1e-5), [0, 0], atol=1e-3)
    both = quick_jit(jax.value_and_grad(lambda z: cross_correlation_terms(z, eps=1e-5)[0]))(
        jnp.ones((2, 6, 4))
    )
    np.testing.assert_allclose(both[0], 4)
    assert np.all(np.isfinite(both[1]))


@pytest.mark.usefixtures("unchecked")
def test_too_few_views_or_images() -> None:
    with pytest.raises(ValueError, match="needs at least two"):
        cross_correlation_terms(jnp.zeros((1, 4, 3)), eps=1e-5)
    with pytest.raises(ValueError, match="at least 2 images"):
        cross_correlation_terms(jnp.zeros((2, 1, 3)), eps=1e-5)
