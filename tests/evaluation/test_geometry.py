"""Spectra and similarities: against NumPy, scikit-learn and closed forms, and invariances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from hjepa_jax.errors import DataError
from hjepa_jax.evaluation import geometry


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
    found = geometry.covariance_eigenvalues(x)
    np.testing.assert_allclose(found, expected, atol=1e-9 * expected[0])
    assert np.all(found >= 0)
    assert np.all(np.diff(found) <= 0)


def test_a_known_spectrum_is_recovered_and_summarized() -> None:
    values = [4.0, 2.0, 1.0, 1.0]
    found = geometry.covariance_spectrum(_with_spectrum(values, 40), top=3)
    np.testing.assert_allclose(found.eigenvalues, values[:3], rtol=1e-10)
    share = np.array([4, 2, 1, 1]) / 8
    np.testing.assert_allclose(found.effective_rank_full, np.exp(-np.sum(share * np.log(share))))
    np.testing.assert_allclose(found.participation_ratio_full, 64 / 22)
    np.testing.assert_allclose(found.participation_ratio, 49 / 21)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_equal_eigenvalues_count_themselves(rank: int) -> None:
    values = [2.5] * rank + [0.0] * (6 - rank)
    found = geometry.covariance_spectrum(_with_spectrum(values, 30))
    assert found.effective_rank_full == pytest.approx(rank, abs=1e-6)
    assert found.participation_ratio_full == pytest.approx(rank, abs=1e-6)


def test_a_state_collapsed_to_a_point_has_no_dimensions() -> None:
    zero = geometry.covariance_spectrum(np.zeros((10, 4), np.float32))
    assert zero.effective_rank == zero.participation_ratio == zero.rankme == 0.0
    constant = geometry.covariance_spectrum(np.full((10, 4), 0.5, np.float32))
    assert constant.effective_rank == 0.0
    assert constant.rankme == pytest.approx(1.0, abs=1e-4)


def test_rotation_shift_and_scale_do_not_change_the_ranks() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(60, 7)) * np.arange(1, 8)
    rotation = np.linalg.qr(rng.normal(size=(7, 7)))[0]
    first = geometry.covariance_spectrum(x)
    second = geometry.covariance_spectrum(3.0 * x @ rotation + 11.0)
    assert second.effective_rank == pytest.approx(first.effective_rank, rel=1e-9)
    assert second.participation_ratio == pytest.approx(first.participation_ratio, rel=1e-9)
    np.testing.assert_allclose(second.eigenvalues, 9.0 * first.eigenvalues, rtol=1e-8)


def test_rankme_is_the_entropy_of_singular_values() -> None:
    x = np.random.default_rng(5).normal(size=(30, 9)) + 1.0
    sigma = np.linalg.svd(x, compute_uv=False)
    share = sigma / sigma.sum() + 1e-7
    expected = np.exp(-np.sum(share * np.log(share)))
    assert geometry.rankme(x) == pytest.approx(expected, rel=1e-6)
    assert geometry.rankme(x.T) == pytest.approx(expected, rel=1e-6)


def test_subsample_is_seeded_sorted_and_without_repeats() -> None:
    rows = geometry.subsample_rows(1000, 64, seed=3)
    assert len(set(rows.tolist())) == 64
    assert np.all(np.diff(rows) > 0)
    np.testing.assert_array_equal(rows, geometry.subsample_rows(1000, 64, seed=3))
    assert not np.array_equal(rows, geometry.subsample_rows(1000, 64, seed=4))
    np.testing.assert_array_equal(geometry.subsample_rows(5, 64, seed=3), np.arange(5))
    x = np.random.default_rng(6).normal(size=(1000, 4))
    assert geometry.covariance_spectrum(x, max_samples=64, seed=3).num_samples == 64


def test_impossible_input_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least two images"):
        geometry.covariance_spectrum(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="spectrum_top must be at least 1"):
        geometry.covariance_spectrum(np.zeros((5, 4)), top=0)


def test_cosines_agree_with_scikit_learn_over_several_chunks() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(70, 9)).astype(np.float32)
    first, second = geometry.reference_pairs(70, 9000, seed=1)
    expected = cosine_similarity(x)[first, second]
    found = geometry.cosine_similarities(x, first, second)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_pairs_are_seeded_distinct_and_uniform() -> None:
    first, second = geometry.random_pairs(60, 500, seed=2)
    again = geometry.random_pairs(60, 500, seed=2)
    np.testing.assert_array_equal(first, again[0])
    np.testing.assert_array_equal(second, again[1])
    assert not np.array_equal(first, geometry.random_pairs(60, 500, seed=3)[0])
    # Every pair of six rows at a rate near 1/15 over many draws of five pairs each.
    counts = np.zeros((6, 6))
    for seed in range(900):
        pairs = np.sort(np.stack(geometry.random_pairs(6, 5, seed)), axis=0)
        counts[pairs[0], pairs[1]] += 1
    rates = counts[np.triu_indices(6, 1)] / 900
    assert counts.sum() == 900 * 5
    assert rates.min() > 0.25
    assert rates.max() < 0.42


@given(count=st.integers(2, 40), wanted=st.integers(1, 900), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_pairs_are_distinct_without_self_pairs(count: int, wanted: int, seed: int) -> None:
    first, second = geometry.random_pairs(count, wanted, seed)
    pairs = {frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)}
    assert all(len(pair) == 2 and max(pair) < count for pair in pairs)
    assert min(first.min(), second.min()) >= 0
    assert len(pairs) == len(first) == min(wanted, count * (count - 1) // 2)


def test_pairs_of_many_rows_need_no_quadratic_memory() -> None:
    first, second = geometry.random_pairs(1_300_000, 20_000, seed=0)
    assert len({*zip(first.tolist(), second.tolist(), strict=True)}) == 20_000
    assert (first != second).all()
    assert 600_000 < first.mean() < 700_000


def test_one_row_has_no_pairs() -> None:
    with pytest.raises(DataError, match="at least two images, not 1"):
        geometry.random_pairs(1, 5, seed=0)


def test_published_pairs_may_repeat_and_include_self_pairs() -> None:
    first, second = geometry.reference_pairs(6, 5000, seed=2)
    # Every ordered pair of six rows, self-pairs too, at a rate near 1/36.
    counts = np.bincount(first * 6 + second, minlength=36) / 5000
    assert counts.min() > 0.5 / 36
    assert counts.max() < 1.5 / 36


def test_uniformity_is_over_pairs_of_different_rows() -> None:
    z = np.random.default_rng(0).normal(size=(50, 16))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    squares = [np.sum((unit[i] - unit[j]) ** 2) for i in range(50) for j in range(i)]
    expected = np.log(np.mean(np.exp(-2.0 * np.array(squares))))
    found = geometry.alignment_uniformity(z, z, *geometry.random_pairs(50, 10**6, seed=0))
    assert found["uniformity"] == pytest.approx(expected, abs=1e-12)
    published = geometry.reference_pairs(50, 10**5, seed=0)
    biased = geometry.alignment_uniformity(z, z, *published)["uniformity"]
    # One pair in 50 has distance 0 and counts e^0.
    assert biased == pytest.approx(np.log(0.98 * np.exp(expected) + 0.02), abs=0.05)
    assert biased > expected + 0.3


def test_summary_of_known_values() -> None:
    summary = geometry.summarize(np.arange(11, dtype=np.float32)[::-1])
    assert summary == {
        "mean": 5.0,
        "std": pytest.approx(np.sqrt(10.0)),
        "p10": 1.0,
        "p50": 5.0,
        "p90": 9.0,
        "min": 0.0,
        "max": 10.0,
    }
    assert geometry.summarize([1.0, 2.0])["p10"] == pytest.approx(1.1)


def test_alignment_and_uniformity_in_closed_form() -> None:
    z1 = np.array([[2.0, 0.0], [0.0, 3.0]])
    z2 = np.array([[5.0, 0.0], [-1.0, 0.0]])
    found = geometry.alignment_uniformity(z1, z2, [0, 0, 1], [0, 1, 1], t=1.5)
    # Squared distances of views 0 and 2; of pairs 0, 2 and 0.
    assert found["alignment"] == pytest.approx(1.0)
    assert found["uniformity"] == pytest.approx(np.log((2 + np.exp(-3.0)) / 3))


def test_equal_views_align_and_one_point_is_not_uniform() -> None:
    z = np.random.default_rng(3).normal(size=(20, 5))
    first, second = geometry.random_pairs(20, 40, seed=0)
    found = geometry.alignment_uniformity(z, 7.0 * z, first, second)
    assert found["alignment"] == pytest.approx(0.0, abs=1e-12)
    point = geometry.alignment_uniformity(np.ones((20, 5)), z, first, second)
    assert point["uniformity"] == pytest.approx(0.0, abs=1e-12)
    assert found["uniformity"] < -1.0


def test_views_of_different_images_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"shapes \(3, 2\) and \(4, 2\)"):
        geometry.alignment_uniformity(np.ones((3, 2)), np.ones((4, 2)), [0], [1])


@pytest.mark.parametrize("count", [5, 60])
def test_cka_is_invariant_to_rotation_scale_and_shift(count: int) -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(count, 8))
    y = np.concatenate([x[:, :4], rng.normal(size=(count, 5))], axis=1)
    rotation = np.linalg.qr(rng.normal(size=(9, 9)))[0]
    value = geometry.linear_cka(x, y)
    assert 0.1 < value < 0.999
    assert geometry.linear_cka(x, -2.0 * y @ rotation + 3.0) == pytest.approx(value)
    assert geometry.linear_cka(y, x) == pytest.approx(value)
    assert geometry.linear_cka(x, 5.0 * x + 1.0) == pytest.approx(1.0)


@pytest.mark.parametrize("count", [6, 40])
def test_cka_agrees_with_its_definition_by_gram_matrices(count: int) -> None:
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(count, 10)), rng.normal(size=(count, 7))
    center = np.eye(count) - 1.0 / count
    k, m = center @ x @ x.T @ center, center @ y @ y.T @ center
    expected = np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))
    assert geometry.linear_cka(x, y) == pytest.approx(expected)


def test_cka_of_a_constant_is_zero_and_of_other_images_an_error() -> None:
    x = np.random.default_rng(6).normal(size=(9, 3))
    assert geometry.linear_cka(x, np.ones((9, 4))) == 0.0
    with pytest.raises(ValueError, match="not 9 and 8"):
        geometry.linear_cka(x, x[:8])


def test_spreads_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    for count in (40, 6):  # more and fewer states than dimensions
        states = (rng.normal(size=(count, 10)) * np.arange(1, 11)).astype(np.float32)
        found = geometry.spreads(states)
        np.testing.assert_allclose(found["std"], states.std(axis=0), rtol=1e-5)
        known = np.linalg.eigvalsh(np.cov(states.T))[-min(10, count - 1) :][::-1]
        np.testing.assert_allclose(found["spectrum_log10"], np.log10(known), rtol=1e-4)
    assert set(geometry.spreads(np.ones((5, 3), np.float32))) == {"std"}
