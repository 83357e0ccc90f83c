"""Stochastic depth: rates, the mean of the factors, and images that do not depend on each other."""

import jax
import numpy as np

from hjepa_jax.models.stochastic_depth import branch_scales, drop_rates, scaled


def test_rates_rise_linearly_from_zero() -> None:
    np.testing.assert_allclose(drop_rates(0.3, 4), [0, 0.1, 0.2, 0.3])
    np.testing.assert_array_equal(drop_rates(0.3, 1), [0])


def test_branches_stay_with_their_probability_and_keep_the_mean() -> None:
    rates = np.array([0, 0.25, 0.5, 0.9])
    scales = np.asarray(branch_scales(jax.random.split(jax.random.key(0), 40_000), rates))
    for scale, rate in zip(scales.T, rates):
        np.testing.assert_allclose(
            np.unique(scale), [0, 1 / (1 - rate)] if rate else [1], rtol=1e-6
        )
        # Five standard deviations of a fraction of 40,000.
        error = 5 * np.sqrt(rate * (1 - rate) / 40_000)
        assert abs(np.mean(scale > 0) - (1 - rate)) <= error
        assert abs(np.mean(scale) - 1) <= error / (1 - rate) + 1e-6
    correlation = np.corrcoef(scales[:, 1:].T)
    assert np.abs(correlation - np.eye(3)).max() < 5 / np.sqrt(40_000)


def test_an_image_depends_on_its_own_key_alone() -> None:
    keys, rates = jax.random.split(jax.random.key(1), 8), np.full(5, 0.5)
    whole = branch_scales(keys, rates)
    np.testing.assert_array_equal(branch_scales(keys[3:5], rates), whole[3:5])


def test_scaling_multiplies_each_image() -> None:
    branch = np.arange(12.0).reshape(2, 3, 2)
    got = scaled(jax.numpy.asarray(branch), jax.numpy.asarray([0.0, 2.0]))
    np.testing.assert_array_equal(got, branch * np.array([0, 2]).reshape(2, 1, 1))
    assert scaled(branch, None) is branch
