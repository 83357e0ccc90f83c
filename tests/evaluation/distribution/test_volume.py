"""Log-determinant and smallest eigenvalue of states with a known covariance."""

import jax.numpy as jnp
import numpy as np
import pytest

from hjepa_jax.evaluation.distribution.volume import directions, volume
from hjepa_jax.objectives import regularizers

RNG = np.random.default_rng(3)


def test_all_directions_have_the_determinant_of_the_covariance():
    states = 5 + RNG.standard_normal((300, 6)) @ RNG.standard_normal((6, 6))
    found = volume(states, 128, 1e-3)
    covariance = np.cov(states.T) + 1e-3 * np.eye(6)
    assert found.rank == 6
    np.testing.assert_allclose(found.logdet, np.linalg.slogdet(covariance)[1] / 6, rtol=1e-5)
    np.testing.assert_allclose(found.smallest, np.linalg.eigvalsh(covariance)[0], rtol=1e-4)


def test_it_is_what_the_floors_of_the_loss_see():
    states = RNG.standard_normal((40, 12)).astype(np.float32)
    used = directions(12, 4, 7).astype(np.float32)
    np.testing.assert_allclose(used.T @ used, np.eye(4), atol=1e-6)
    seen = regularizers.logdet_statistics(
        regularizers.projected_covariance(jnp.asarray(states), jnp.asarray(used), 1e-2)
    )
    found = volume(states, 4, 1e-2, seed=7)
    np.testing.assert_allclose(found.logdet, seen.logdet_per_dim, rtol=1e-4)
    values = np.linalg.eigvalsh(np.cov((states @ used).T)) + 1e-2
    np.testing.assert_allclose(found.smallest, values[0], rtol=1e-4)


def test_a_collapse_ends_at_the_ridge():
    flat = RNG.standard_normal((50, 1)) * np.ones(8)
    np.testing.assert_allclose(volume(flat, 8, 1e-4).smallest, 1e-4, rtol=1e-6)
    point = volume(np.ones((50, 8)), 8, 1e-4)
    np.testing.assert_allclose(point.logdet, np.log(1e-4), rtol=1e-9)
    assert volume(flat, 100, 1e-4).rank == 8
    assert volume(np.ones((50, 8)), 8, 0.0) == (-np.inf, 0.0, 8)
    with pytest.raises(ValueError, match="at least 2 samples"):
        volume(flat[:1], 8, 1e-4)
