"""Norms of states, and the chi distribution, against SciPy."""

import numpy as np
import pytest
from scipy import stats

from hjepa_jax.evaluation.distribution.norms import chi_density, norm_histogram, norm_histograms

RNG = np.random.default_rng(2)


@pytest.mark.parametrize("dim", [1, 3, 64, 4096])
def test_the_density_is_that_of_the_chi_distribution(dim):
    x = np.linspace(0.8, 1.2, 9)
    expected = np.sqrt(dim) * stats.chi.pdf(np.sqrt(dim) * x, dim)
    np.testing.assert_allclose(chi_density(x, dim), expected, rtol=1e-8)


def test_gaussian_states_have_the_norms_of_the_chi_distribution():
    found = norm_histogram(1.5 * RNG.standard_normal((20000, 16)))
    mean = 1.5 * stats.chi.mean(16) / 4
    np.testing.assert_allclose(found.mean, mean, rtol=5e-3)
    np.testing.assert_allclose(found.deviation, 1.5 * stats.chi.std(16) / 4, rtol=3e-2)
    centers = (found.edges[1:] + found.edges[:-1]) / 2
    expected = 4 / 1.5 * stats.chi.pdf(4 / 1.5 * centers, 16)
    np.testing.assert_allclose(found.density, expected, atol=0.06 * expected.max())
    np.testing.assert_allclose(np.sum(found.density * np.diff(found.edges)), 1)
    np.testing.assert_allclose(np.trapezoid(found.chi, found.x), 1, atol=1e-3)


def test_parts_are_halves_and_their_norms_add_up():
    states = RNG.standard_normal((50, 6)) * [1, 1, 1, 9, 9, 9]
    found = norm_histograms(states, True)
    assert {name: one.dim for name, one in found.items()} == {"q": 3, "p": 3, "z": 6}
    np.testing.assert_allclose(
        found["p"].mean, np.linalg.norm(states[:, 3:], axis=1).mean() / np.sqrt(3)
    )
    assert list(norm_histograms(states, False)) == ["z"]


def test_equal_norms_and_wrong_ones():
    one = norm_histogram(np.ones((5, 4)))
    assert (one.mean, one.deviation) == (1, 0)
    assert one.density.max() > 0
    for wrong in (np.zeros((0, 3)), np.full((2, 3), np.nan)):
        with pytest.raises(ValueError, match="all of them finite"):
            norm_histogram(wrong)
