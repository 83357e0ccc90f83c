"""The largest eigenvalue by matrix products, as accelerators compute it."""

import jax.numpy as jnp
import numpy as np
import pytest

from hjepa_jax.objectives.regularizers import _eigenvector_weights, _power_weights

SIZE = 32
SPECTRA = {
    "decaying": 0.8 ** np.arange(SIZE),
    "all equal": np.ones(SIZE),
    "one": np.r_[1, np.full(SIZE - 1, 1e-4)],
    "two equal": np.r_[1, 1, np.full(SIZE - 2, 0.3)],
    "nearly equal": np.r_[1, np.full(SIZE - 1, 1 - 1e-5)],
    "tiny": 1e-10 * 0.5 ** np.arange(SIZE) + 1e-12,
    "huge": 1e10 * 0.5 ** np.arange(SIZE) + 1e6,
}


def covariance(name: str) -> np.ndarray:
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(SIZE, SIZE)))
    found = (basis * SPECTRA[name]) @ basis.T
    return ((found + found.T) / 2).astype(np.float32)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("form", [_power_weights, _eigenvector_weights])
def test_weights_give_the_largest_eigenvalue(form, name) -> None:
    matrix = covariance(name)
    both = form(jnp.stack([jnp.asarray(matrix), jnp.eye(SIZE)]))
    weights = np.asarray(both[0], np.float64)
    wide = matrix.astype(np.float64)
    largest = np.linalg.eigvalsh(wide)[-1]
    np.testing.assert_allclose(np.sum(weights * wide), largest, rtol=1e-6)
    np.testing.assert_allclose(np.trace(weights), 1, rtol=1e-6)
    np.testing.assert_allclose(np.trace(both[1]), 1, rtol=1e-6)


def test_weights_are_the_gradient_of_a_simple_eigenvalue() -> None:
    matrix = jnp.asarray(covariance("decaying"))
    np.testing.assert_allclose(_power_weights(matrix), _eigenvector_weights(matrix), atol=2e-6)
