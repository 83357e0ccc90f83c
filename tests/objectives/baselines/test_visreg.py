"""VISReg's terms against NumPy, SciPy and finite differences, and what leaves them unchanged."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from finite_differences import assert_gradient, quick_jit

from hjepa_jax.objectives.baselines.visreg import visreg_terms
from hjepa_jax.objectives.sigreg import random_slices

terms = quick_jit(visreg_terms)
DIM, IMAGES = 5, 14


def views(count: int = 2) -> np.ndarray:
    random = np.random.default_rng(count)
    return random.standard_t(3, (count, IMAGES, DIM)) * np.linspace(0.5, 2, DIM) + 0.4


def directions(count: int = 7) -> np.ndarray:
    found = np.random.default_rng(9).standard_normal((DIM, count))
    return found / np.linalg.norm(found, axis=0)


def numpy_terms(z: np.ndarray, slices: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The terms of views z, which the shape divides by `scale` [V, D]."""
    found = []
    for view, divisor in zip(z, scale):
        mean, std = view.mean(0), np.maximum(view.std(0), 1e-6)
        ordered = np.sort((view - mean) / divisor @ slices, axis=0)
        ranks = np.arange(1, len(view) + 1) / (len(view) + 1)
        shape = np.mean((ordered - scipy.stats.norm.ppf(ranks)[:, None]) ** 2)
        found.append([np.mean(mean**2), np.mean((std - 1) ** 2), shape])
    return np.mean(found, axis=0)


def test_terms_match_numpy() -> None:
    z, slices = views(3), directions()
    expected = numpy_terms(z, slices, z.std(1))
    assert np.all(expected > 0.01)
    with jax.enable_x64(True):
        found = terms(jnp.asarray(z), jnp.asarray(slices))
        np.testing.assert_allclose(found, expected, rtol=1e-10)
    single = terms(jnp.asarray(z, jnp.bfloat16), jnp.asarray(slices, jnp.float32))
    assert {value.dtype for value in single} == {jnp.dtype("float32")}
    np.testing.assert_allclose(single, expected, rtol=0.05)


def test_gradients_match_differences_with_the_scale_of_the_shape_held() -> None:
    z, slices = views(), directions()
    with jax.enable_x64(True):
        for index in (0, 1):
            assert_gradient(lambda z, i=index: visreg_terms(z, jnp.asarray(slices))[i], z)
        gradient = quick_jit(jax.grad(lambda z: visreg_terms(z, jnp.asarray(slices))[2]))(
            jnp.asarray(z)
        )
    random, held, step = np.random.default_rng(0), z.std(1), 1e-6
    for _ in range(3):
        direction = random.standard_normal(z.shape)
        ends = [numpy_terms(z + s * step * direction, slices, held)[2] for s in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(
            np.sum(np.asarray(gradient) * direction), slope, rtol=1e-6, atol=1e-8
        )


def test_order_does_not_matter_and_shape_has_no_shift_or_scale() -> None:
    z, random = views(), np.random.default_rng(0)
    with jax.enable_x64(True):
        slices = jnp.asarray(directions())
        first = terms(jnp.asarray(z), slices)
        again = terms(jnp.asarray(z[:, random.permutation(IMAGES)]), slices)
        np.testing.assert_allclose(again, first, rtol=1e-10)
        moved = z * np.exp(random.standard_normal(DIM)) + random.standard_normal(DIM)
        np.testing.assert_allclose(terms(jnp.asarray(moved), slices)[2], first[2], rtol=1e-10)


def test_a_gaussian_sample_has_small_terms_and_a_collapsed_one_finite_gradients() -> None:
    z = jax.random.normal(jax.random.key(0), (2, 2000, DIM))
    slices = random_slices(jax.random.key(1), DIM, 16)
    np.testing.assert_allclose(terms(z, slices), [0, 0, 0], atol=0.01)
    collapsed = jnp.full((2, 8, DIM), 0.5)
    np.testing.assert_allclose(terms(collapsed, slices)[:2], [0.25, 1], rtol=1e-4)
    gradient = quick_jit(jax.grad(lambda z: jnp.sum(jnp.stack(visreg_terms(z, slices)))))(collapsed)
    assert np.all(np.isfinite(gradient))


@pytest.mark.usefixtures("unchecked")
def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"slices must be \[5, K\]"):
        visreg_terms(jnp.zeros((2, 6, 5)), jnp.zeros((4, 3)))
    with pytest.raises(ValueError, match="at least 2 images"):
        visreg_terms(jnp.zeros((2, 1, 5)), jnp.zeros((5, 3)))
