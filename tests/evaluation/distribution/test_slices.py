"""Projections against the Gaussian, with exact order statistics from SciPy."""

import numpy as np
import pytest
from scipy import stats

from hjepa_jax.evaluation.distribution.slices import (
    gaussian_levels,
    slice_discrepancy,
    unit_vectors,
)

RNG = np.random.default_rng(1)


def test_levels_are_those_of_the_normal_distribution():
    levels, quantiles = gaussian_levels(20)
    np.testing.assert_allclose(quantiles, stats.norm.ppf(levels), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(levels[[0, -1]], [0.5 / 20, 1 - 0.5 / 20], rtol=1e-9)
    assert gaussian_levels(10**6)[1][-1] == 3.0


def test_scaled_and_shifted_states_differ_by_scale_and_shift():
    """Along a direction u, states m + s g have quantiles u m + s x."""
    states = np.array([3.0, -1.0, 0.5]) + 2 * RNG.standard_normal((4096, 3))
    found = slice_discrepancy(states, standardized=False, num_slices=64, seed=5)
    slices = unit_vectors(3, 64, 5)
    np.testing.assert_allclose(np.linalg.norm(slices, axis=0), 1)
    exact = slices.T @ [3.0, -1.0, 0.5] + found.gaussian[:, None]
    middle = np.abs(found.gaussian) < 2  # farther out, 4096 states do not determine quantiles
    for part, summary in (("lowest", np.min), ("median", np.median), ("highest", np.max)):
        expected = summary(exact[middle], axis=1)
        np.testing.assert_allclose(getattr(found.states, part)[middle], expected, atol=0.2)
    own, sample = found.statistics()
    assert own > 50 * sample
    shape = slice_discrepancy(states, standardized=True, num_slices=64)
    assert np.abs(shape.states.median[middle]).max() < 0.1
    own, sample = shape.statistics()
    assert own < 2 * sample


def test_two_points_have_the_quantiles_of_a_coin():
    """States -a and a alternate: standardized, every projection is -1 or 1."""
    states = np.tile([[1.0, 2.0], [-1.0, -2.0]], (50, 1))
    found = slice_discrepancy(states, standardized=True, num_slices=8)
    x = found.gaussian
    for part in (found.states.lowest, found.states.median, found.states.highest):
        np.testing.assert_allclose(part[x < -0.1], -1 - x[x < -0.1], atol=1e-6)
        np.testing.assert_allclose(part[x > 0.1], 1 - x[x > 0.1], atol=1e-6)


def test_the_band_of_samples_is_that_of_order_statistics():
    """The i-th of N uniform numbers has the distribution Beta(i, N + 1 - i)."""
    rows = 101
    found = slice_discrepancy(np.zeros((rows, 2)), standardized=False, num_slices=8000)
    levels, gaussian = gaussian_levels(rows)
    i = rows * levels + 0.5
    inside = slice(5, -5)  # between ranks, where both are smooth
    for part, share in ((found.sample.low, 0.1), (found.sample.high, 0.9)):
        exact = stats.norm.ppf(stats.beta.ppf(share, i, rows + 1 - i)) - gaussian
        np.testing.assert_allclose(part[inside], exact[inside], atol=0.03)


def test_one_state_has_no_quantiles():
    with pytest.raises(ValueError, match="at least two states, got 1"):
        slice_discrepancy(np.zeros((1, 4)), standardized=False)
