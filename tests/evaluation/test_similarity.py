"""Similarities: against scikit-learn, closed forms, and invariances of CKA."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from hjepa_jax.errors import DataError
from hjepa_jax.evaluation import similarity


def test_cosines_agree_with_scikit_learn_over_several_chunks() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(70, 9)).astype(np.float32)
    first, second = similarity.reference_pairs(70, 9000, seed=1)
    expected = cosine_similarity(x)[first, second]
    found = similarity.cosine_similarities(x, first, second)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_pairs_are_seeded_distinct_and_uniform() -> None:
    first, second = similarity.random_pairs(60, 500, seed=2)
    again = similarity.random_pairs(60, 500, seed=2)
    np.testing.assert_array_equal(first, again[0])
    np.testing.assert_array_equal(second, again[1])
    assert not np.array_equal(first, similarity.random_pairs(60, 500, seed=3)[0])
    # Every pair of six rows at a rate near 1/15 over many draws of five pairs each.
    counts = np.zeros((6, 6))
    for seed in range(900):
        pairs = np.sort(np.stack(similarity.random_pairs(6, 5, seed)), axis=0)
        counts[pairs[0], pairs[1]] += 1
    rates = counts[np.triu_indices(6, 1)] / 900
    assert counts.sum() == 900 * 5
    assert rates.min() > 0.25
    assert rates.max() < 0.42


@given(count=st.integers(2, 40), wanted=st.integers(1, 900), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_pairs_are_distinct_without_self_pairs(count: int, wanted: int, seed: int) -> None:
    first, second = similarity.random_pairs(count, wanted, seed)
    pairs = {frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)}
    assert all(len(pair) == 2 and max(pair) < count for pair in pairs)
    assert min(first.min(), second.min()) >= 0
    assert len(pairs) == len(first) == min(wanted, count * (count - 1) // 2)


def test_pairs_of_many_rows_need_no_quadratic_memory() -> None:
    first, second = similarity.random_pairs(1_300_000, 20_000, seed=0)
    assert len({*zip(first.tolist(), second.tolist(), strict=True)}) == 20_000
    assert (first != second).all()
    assert 600_000 < first.mean() < 700_000


def test_one_row_has_no_pairs() -> None:
    with pytest.raises(DataError, match="at least two images, not 1"):
        similarity.random_pairs(1, 5, seed=0)


def test_published_pairs_may_repeat_and_include_self_pairs() -> None:
    first, second = similarity.reference_pairs(6, 5000, seed=2)
    # Every ordered pair of six rows, self-pairs too, at a rate near 1/36.
    counts = np.bincount(first * 6 + second, minlength=36) / 5000
    assert counts.min() > 0.5 / 36
    assert counts.max() < 1.5 / 36


def test_uniformity_is_over_pairs_of_different_rows() -> None:
    z = np.random.default_rng(0).normal(size=(50, 16))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    squares = [np.sum((unit[i] - unit[j]) ** 2) for i in range(50) for j in range(i)]
    expected = np.log(np.mean(np.exp(-2.0 * np.array(squares))))
    found = similarity.alignment_uniformity(z, z, *similarity.random_pairs(50, 10**6, seed=0))
    assert found["uniformity"] == pytest.approx(expected, abs=1e-12)
    published = similarity.reference_pairs(50, 10**5, seed=0)
    biased = similarity.alignment_uniformity(z, z, *published)["uniformity"]
    # One pair in 50 has distance 0 and counts e^0.
    assert biased == pytest.approx(np.log(0.98 * np.exp(expected) + 0.02), abs=0.05)
    assert biased > expected + 0.3


def test_summary_of_known_values() -> None:
    summary = similarity.summarize(np.arange(11, dtype=np.float32)[::-1])
    assert summary == {
        "mean": 5.0,
        "std": pytest.approx(np.sqrt(10.0)),
        "p10": 1.0,
        "p50": 5.0,
        "p90": 9.0,
        "min": 0.0,
        "max": 10.0,
    }
    assert similarity.summarize([1.0, 2.0])["p10"] == pytest.approx(1.1)


def test_alignment_and_uniformity_in_closed_form() -> None:
    z1 = np.array([[2.0, 0.0], [0.0, 3.0]])
    z2 = np.array([[5.0, 0.0], [-1.0, 0.0]])
    found = similarity.alignment_uniformity(z1, z2, [0, 0, 1], [0, 1, 1], t=1.5)
    # Squared distances of views 0 and 2; of pairs 0, 2 and 0.
    assert found["alignment"] == pytest.approx(1.0)
    assert found["uniformity"] == pytest.approx(np.log((2 + np.exp(-3.0)) / 3))


def test_equal_views_align_and_one_point_is_not_uniform() -> None:
    z = np.random.default_rng(3).normal(size=(20, 5))
    first, second = similarity.random_pairs(20, 40, seed=0)
    found = similarity.alignment_uniformity(z, 7.0 * z, first, second)
    assert found["alignment"] == pytest.approx(0.0, abs=1e-12)
    point = similarity.alignment_uniformity(np.ones((20, 5)), z, first, second)
    assert point["uniformity"] == pytest.approx(0.0, abs=1e-12)
    assert found["uniformity"] < -1.0


def test_views_of_different_images_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"shapes \(3, 2\) and \(4, 2\)"):
        similarity.alignment_uniformity(np.ones((3, 2)), np.ones((4, 2)), [0], [1])


@pytest.mark.parametrize("count", [5, 60])
def test_cka_is_invariant_to_rotation_scale_and_shift(count: int) -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(count, 8))
    y = np.concatenate([x[:, :4], rng.normal(size=(count, 5))], axis=1)
    rotation = np.linalg.qr(rng.normal(size=(9, 9)))[0]
    value = similarity.linear_cka(x, y)
    assert 0.1 < value < 0.999
    assert similarity.linear_cka(x, -2.0 * y @ rotation + 3.0) == pytest.approx(value)
    assert similarity.linear_cka(y, x) == pytest.approx(value)
    assert similarity.linear_cka(x, 5.0 * x + 1.0) == pytest.approx(1.0)


@pytest.mark.parametrize("count", [6, 40])
def test_cka_agrees_with_its_definition_by_gram_matrices(count: int) -> None:
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(count, 10)), rng.normal(size=(count, 7))
    center = np.eye(count) - 1.0 / count
    k, m = center @ x @ x.T @ center, center @ y @ y.T @ center
    expected = np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))
    assert similarity.linear_cka(x, y) == pytest.approx(expected)


def test_cka_of_a_constant_is_zero_and_of_other_images_an_error() -> None:
    x = np.random.default_rng(6).normal(size=(9, 3))
    assert similarity.linear_cka(x, np.ones((9, 4))) == 0.0
    with pytest.raises(ValueError, match="not 9 and 8"):
        similarity.linear_cka(x, x[:8])
