"""Spectra: against NumPy's covariance, known spectra, and invariances."""

import numpy as np
import pytest

from hjepa_jax.evaluation import spectrum


def _with_spectrum(values, count, seed=0):
    """Features whose sample covariance has exactly the given eigenvalues."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(count, len(values)))
    left = np.linalg.qr(raw - raw.mean(axis=0))[0]
    right = np.linalg.qr(rng.normal(size=(len(values), len(values))))[0]
    return left * np.sqrt((count - 1) * np.asarray(values)) @ right.T + rng.normal(size=len(values))


@pytest.mark.parametrize(("count", "dim"), [(50, 8), (8, 50), (20, 20), (2, 3)])
def test_eigenvalues_agree_with_numpy(count: int, dim: int) -> None:
    x = np.random.default_rng(count).normal(size=(count, dim)) * np.arange(1, dim + 1) + 7.0
    expected = np.linalg.eigvalsh(np.cov(x, rowvar=False))[::-1][: min(count, dim)]
    found = spectrum.covariance_eigenvalues(x)
    np.testing.assert_allclose(found, expected, atol=1e-9 * expected[0])
    assert np.all(found >= 0)
    assert np.all(np.diff(found) <= 0)


def test_a_known_spectrum_is_recovered_and_summarized() -> None:
    values = [4.0, 2.0, 1.0, 1.0]
    found = spectrum.covariance_spectrum(_with_spectrum(values, 40), top=3)
    np.testing.assert_allclose(found.eigenvalues, values[:3], rtol=1e-10)
    share = np.array([4, 2, 1, 1]) / 8
    np.testing.assert_allclose(found.effective_rank_full, np.exp(-np.sum(share * np.log(share))))
    np.testing.assert_allclose(found.participation_ratio_full, 64 / 22)
    np.testing.assert_allclose(found.participation_ratio, 49 / 21)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_equal_eigenvalues_count_themselves(rank: int) -> None:
    values = [2.5] * rank + [0.0] * (6 - rank)
    found = spectrum.covariance_spectrum(_with_spectrum(values, 30))
    assert found.effective_rank_full == pytest.approx(rank, abs=1e-6)
    assert found.participation_ratio_full == pytest.approx(rank, abs=1e-6)


def test_a_state_collapsed_to_a_point_has_no_dimensions() -> None:
    zero = spectrum.covariance_spectrum(np.zeros((10, 4), np.float32))
    assert zero.effective_rank == zero.participation_ratio == zero.rankme == 0.0
    constant = spectrum.covariance_spectrum(np.full((10, 4), 0.5, np.float32))
    assert constant.effective_rank == 0.0
    assert constant.rankme == pytest.approx(1.0, abs=1e-4)


def test_rotation_shift_and_scale_do_not_change_the_ranks() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(60, 7)) * np.arange(1, 8)
    rotation = np.linalg.qr(rng.normal(size=(7, 7)))[0]
    first = spectrum.covariance_spectrum(x)
    second = spectrum.covariance_spectrum(3.0 * x @ rotation + 11.0)
    assert second.effective_rank == pytest.approx(first.effective_rank, rel=1e-9)
    assert second.participation_ratio == pytest.approx(first.participation_ratio, rel=1e-9)
    np.testing.assert_allclose(second.eigenvalues, 9.0 * first.eigenvalues, rtol=1e-8)


def test_rankme_is_the_entropy_of_singular_values() -> None:
    x = np.random.default_rng(5).normal(size=(30, 9)) + 1.0
    sigma = np.linalg.svd(x, compute_uv=False)
    share = sigma / sigma.sum() + 1e-7
    expected = np.exp(-np.sum(share * np.log(share)))
    assert spectrum.rankme(x) == pytest.approx(expected, rel=1e-6)
    assert spectrum.rankme(x.T) == pytest.approx(expected, rel=1e-6)


def test_subsample_is_seeded_sorted_and_without_repeats() -> None:
    rows = spectrum.subsample_rows(1000, 64, seed=3)
    assert len(set(rows.tolist())) == 64
    assert np.all(np.diff(rows) > 0)
    np.testing.assert_array_equal(rows, spectrum.subsample_rows(1000, 64, seed=3))
    assert not np.array_equal(rows, spectrum.subsample_rows(1000, 64, seed=4))
    np.testing.assert_array_equal(spectrum.subsample_rows(5, 64, seed=3), np.arange(5))
    x = np.random.default_rng(6).normal(size=(1000, 4))
    assert spectrum.covariance_spectrum(x, max_samples=64, seed=3).num_samples == 64


def test_impossible_input_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least two images"):
        spectrum.covariance_spectrum(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="spectrum_top must be at least 1"):
        spectrum.covariance_spectrum(np.zeros((5, 4)), top=0)
