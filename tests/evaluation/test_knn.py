"""Exact kNN: against scikit-learn and NumPy, tie rules, blocks, padding and devices."""

import logging
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from hjepa_jax.evaluation import knn, validity


def _reference_neighbors(train, test, k):
    """All similarities in float64, then a stable sort."""
    a, b = (x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    return np.argsort(-(b @ a.T), axis=1, kind="stable")[:, :k]


def _ranking(labels, similarities, num_classes, reference):
    """Classes of one row of neighbors, best first, by Python's sort of (votes, sum, number)."""
    votes = [int(np.sum(labels == c)) for c in range(num_classes)]
    sums = [float(np.sum(similarities[labels == c])) for c in range(num_classes)]
    if reference:
        return sorted(range(num_classes), key=lambda c: (-votes[c], c))
    voted = [c for c in range(num_classes) if votes[c]]
    return sorted(voted, key=lambda c: (-votes[c], -sums[c], c))


def _counted(neighbor_labels, similarities, labels, k, num_classes, reference=False):
    """Top-1 and top-5 accuracy in plain Python."""
    orders = [
        _ranking(row[:k], np.asarray(near)[:k], num_classes, reference)
        for row, near in zip(neighbor_labels, similarities, strict=True)
    ]
    top1 = [order[0] == truth for order, truth in zip(orders, labels, strict=True)]
    top5 = [truth in order[:5] for order, truth in zip(orders, labels, strict=True)]
    return np.mean(top1), np.mean(top5)


def _signs(rng, count):
    """Vectors of +-1 in 16 dimensions: similarities are exact multiples of 1/8 and often tie."""
    return np.where(rng.random((count, 16)) < 0.5, -1.0, 1.0).astype(np.float32)


def test_neighbors_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    train = rng.normal(size=(301, 24)).astype(np.float32)
    test = rng.normal(size=(77, 24)).astype(np.float32)
    search = NearestNeighbors(n_neighbors=17, metric="cosine", algorithm="brute").fit(train)
    distances, expected = search.kneighbors(test)
    indices, similarities = knn.nearest_neighbors(train, test, 17, block=64, test_block=32)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(similarities, 1.0 - distances, atol=2e-6)


@pytest.mark.parametrize(
    ("block", "test_block"), [(1, 7), (5, 1000), (16, 3), (99, 40), (100, 41), (10**6, 1)]
)
def test_blocks_do_not_change_the_result_even_with_ties(block: int, test_block: int) -> None:
    rng = np.random.default_rng(1)
    train, test = _signs(rng, 100), _signs(rng, 41)
    indices, _ = knn.nearest_neighbors(train, test, 30, block=block, test_block=test_block)
    np.testing.assert_array_equal(indices, _reference_neighbors(train, test, 30))


def test_similarity_ignores_length_and_allows_zero_rows() -> None:
    train = np.array([[3.0, 0.0], [0.0, 0.0], [-5.0, 0.0], [0.01, 0.01]], np.float32)
    indices, values = knn.nearest_neighbors(train, np.array([[2.0, 0.0]], np.float32), 4)
    np.testing.assert_array_equal(indices[0], [0, 3, 1, 2])
    np.testing.assert_allclose(values[0], [1.0, np.sqrt(0.5), 0.0, -1.0], atol=1e-6)


@pytest.mark.parametrize("block", [2, 3, 5])
def test_padding_is_never_a_neighbor_even_of_opposite_rows(block: int) -> None:
    # All similarities are negative, so padding (similarity 0) would come first.
    train = -np.array([[1.0, 0.1], [1.0, 0.5], [1.0, 0.2], [1.0, 0.4], [1.0, 0.3]], np.float32)
    indices, values = knn.nearest_neighbors(train, np.array([[1.0, 0.0]]), 5, block=block)
    np.testing.assert_array_equal(indices[0], [1, 3, 4, 2, 0])
    assert values.max() < 0


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("num_classes", [2, 5, 9])
def test_votes_agree_with_counting_by_hand(num_classes: int, reference: bool) -> None:
    rng = np.random.default_rng(num_classes)
    train, test = _signs(rng, 120), _signs(rng, 50)
    labels = rng.integers(num_classes, size=120)
    truth = rng.integers(num_classes, size=50)
    ks = (1, 2, 3, 10, 64)
    result = knn.knn_accuracy(
        train,
        labels,
        test,
        truth,
        ks=ks,
        num_classes=num_classes,
        block=33,
        test_block=16,
        reference=reference,
    )
    found = _reference_neighbors(train, test, 64)
    near = np.take_along_axis(test.astype(np.float64) @ train.T / 16, found, axis=1)
    neighbors = labels[found]
    expected = [_counted(neighbors, near, truth, k, num_classes, reference) for k in ks]
    assert result["k_values"] == list(ks)
    np.testing.assert_allclose(result["top1"], [top1 for top1, _ in expected], atol=1e-6)
    np.testing.assert_allclose(result["top5"], [top5 for _, top5 in expected], atol=1e-6)
    if reference and num_classes <= 5:
        assert result["top5"] == [1.0] * len(ks)
    if not reference:
        assert result["top5"][0] == result["top1"][0]


def _vote(labels, similarities, truth, **options):
    result, answers = knn.vote([labels], [similarities], [truth], **options)
    return result["top1"][0], result["top5"][0], int(answers[0, 0])


def test_a_class_without_a_vote_is_never_a_hit() -> None:
    # Ten orthogonal rows of ten classes: the test rows are nearest to rows of another class.
    train, labels = np.eye(10, dtype=np.float32), np.arange(10)
    truth = (labels + 1) % 10
    options = {"ks": (1,), "num_classes": 10}
    found = knn.knn_accuracy(train, labels, train, truth, **options)
    assert (found["top1"], found["top5"]) == ([0.0], [0.0])
    published = knn.knn_accuracy(train, labels, train, truth, **options, reference=True)
    assert published["top1"] == [0.0]
    assert published["top5"][0] == pytest.approx(0.5)
    # Two votes leave three of the published five without one; class 4 is the sixth.
    options = {"ks": (3,), "num_classes": 10}
    for wrong, counted in ((0, 1.0), (2, 1.0), (3, 0.0), (4, 0.0)):
        assert _vote([9, 8, 9], [0.9, 0.8, 0.7], wrong, **options)[1] == 0.0
        published = _vote([9, 8, 9], [0.9, 0.8, 0.7], wrong, **options, reference=True)
        assert published[1] == counted
    assert _vote([9, 8, 9], [0.9, 0.8, 0.7], 8, **options)[1] == 1.0


def test_ties_go_to_the_nearer_class_then_to_the_lower_index() -> None:
    options = {"ks": (4,), "num_classes": 4}
    labels, near = [3, 1, 1, 3], [0.9, 0.8, 0.7, 0.5]
    assert _vote(labels, near, 1, **options) == (1.0, 1.0, 1)
    assert _vote(labels, [0.9, 0.8, 0.5, 0.7], 3, **options) == (1.0, 1.0, 3)
    assert _vote(labels, [0.9, 0.8, 0.5, 0.7], 1, **options) == (0.0, 1.0, 3)
    assert _vote(labels, [0.5] * 4, 3, **options) == (0.0, 1.0, 1)
    # Sums of negative similarities: the less negative is nearer.
    assert _vote(labels, [-0.1, -0.2, -0.3, -0.9], 1, **options)[0] == 1.0
    # The published counting uses only the index.
    assert _vote(labels, [0.9, 0.8, 0.5, 0.7], 1, **options, reference=True)[2] == 1
    # Six classes of one vote each: the five nearest are the top five, whatever their index.
    six = {"ks": (6,), "num_classes": 6}
    near = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    assert [_vote(range(5, -1, -1), near, c, **six)[1] for c in range(6)] == [0.0] + [1.0] * 5


@given(
    rows=st.lists(
        st.lists(st.tuples(st.integers(0, 6), st.integers(-8, 8)), min_size=9, max_size=9),
        min_size=1,
        max_size=5,
    ),
    truth=st.integers(0, 6),
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_any_votes_agree_with_counting_by_hand(rows, truth) -> None:
    labels = np.array([[c for c, _ in row] for row in rows])
    # Nearest first, in exact multiples so that sums may tie.
    near = np.array([sorted((s / 8 for _, s in row), reverse=True) for row in rows])
    truths = np.full(len(rows), truth)
    ks = (1, 2, 4, 9)
    found, answers = knn.vote(labels, near, truths, ks=ks, num_classes=7)
    for i, k in enumerate(ks):
        expected = _counted(labels, near, truths, k, 7)
        assert (found["top1"][i], found["top5"][i]) == pytest.approx(expected, abs=1e-6)
        assert found["top1"][i] <= found["top5"][i]
        wanted = [_ranking(r[:k], n[:k], 7, False)[0] for r, n in zip(labels, near, strict=True)]
        assert answers[i].tolist() == wanted


def test_votes_counted_in_parts_equal_those_counted_at_once(monkeypatch) -> None:
    rng = np.random.default_rng(8)
    labels, near = rng.integers(9, size=(50, 20)), -np.sort(rng.normal(size=(50, 20)), axis=1)
    arguments = (labels, np.clip(near, -1, 1), rng.integers(9, size=50))
    whole = knn.vote(*arguments, ks=(1, 20), num_classes=9)
    monkeypatch.setattr(knn, "_VOTES_AT_ONCE", 9 * 7)
    parts = knn.vote(*arguments, ks=(1, 20), num_classes=9)
    assert parts[0] == whole[0]
    np.testing.assert_array_equal(parts[1], whole[1])


@pytest.mark.parametrize(
    ("share", "count"), [(0.0, 1), (1.0, 5), (0.5, 36), (18 / 36, 36), (0.9, 10), (0.123, 1000)]
)
def test_intervals_are_wilsons(share: float, count: int) -> None:
    low, high = validity.wilson(share, count)
    # By definition, the distance is 1.96 standard errors at the bound.
    for bound in (low, high):
        error = np.sqrt(bound * (1 - bound) / count)
        assert abs(share - bound) == pytest.approx(1.959964 * error, abs=1e-6)
    assert 0 <= low <= share <= high <= 1
    assert high - low > 0


def test_an_accuracy_has_the_interval_of_its_test_images() -> None:
    rng = np.random.default_rng(1)
    train, test = _signs(rng, 60), _signs(rng, 36)
    labels, truth = rng.integers(3, size=60), rng.integers(3, size=36)
    found = knn.knn_accuracy(train, labels, test, truth, ks=(1, 5), num_classes=3)
    for name in ("top1", "top5"):
        expected = [validity.wilson(share, 36) for share in found[name]]
        assert found[f"{name}_interval"] == expected
    low, high = validity.wilson(0.5, 36)
    assert 0.30 < high - low < 0.32
    with pytest.raises(ValueError, match="of 0"):
        validity.wilson(0.5, 0)


def test_all_k_in_one_pass_equal_each_k_alone() -> None:
    rng = np.random.default_rng(3)
    train, test = rng.normal(size=(60, 8)), rng.normal(size=(30, 8))
    labels, truth = rng.integers(6, size=60), rng.integers(6, size=30)
    together = knn.knn_accuracy(train, labels, test, truth, ks=(20, 1, 5), num_classes=6)
    assert together["k_values"] == [1, 5, 20]
    for i, k in enumerate(together["k_values"]):
        alone = knn.knn_accuracy(train, labels, test, truth, ks=(k,), num_classes=6)
        assert (alone["top1"][0], alone["top5"][0]) == (together["top1"][i], together["top5"][i])


def test_k_above_the_training_set_is_skipped(caplog) -> None:
    with caplog.at_level(logging.DEBUG):
        assert knn.usable_ks((1, 5, 10, 200), 7) == (1, 5)
    assert "skipping k = [10, 200], above the 7 training images" in caplog.text
    with pytest.raises(ValueError, match="exceeds the 3 training images"):
        knn.usable_ks((5, 10), 3)
    with pytest.raises(ValueError, match="numbers of neighbors >= 1"):
        knn.usable_ks((0, 5), 3)


def test_mismatches_are_named() -> None:
    x, y = np.ones((4, 3)), np.array([0, 1, 2, 0])
    with pytest.raises(ValueError, match="test labels go from 0 to 2, but with 2 classes"):
        knn.knn_accuracy(x[:2], y[:2], x, y, ks=(1,), num_classes=2)
    with pytest.raises(ValueError, match=r"\(4, 3\) and the test features \(4, 2\)"):
        knn.knn_accuracy(x, y, x[:, :2], y, ks=(1,), num_classes=3)
    with pytest.raises(ValueError, match="got 3 training and 4 test labels"):
        knn.knn_accuracy(x, y[:3], x, y, ks=(1,), num_classes=3)
    with pytest.raises(ValueError, match="k = 5 needs at least 5 training images"):
        knn.nearest_neighbors(x, x, 5)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["training", "test"])
def test_features_that_are_not_finite_have_no_neighbors(odd: float, kind: str) -> None:
    sets = {"training": np.eye(5), "test": np.eye(5)}
    sets[kind][2, 3] = odd
    with pytest.raises(ValueError, match=f"some {kind} features are not"):
        knn.nearest_neighbors(sets["training"], sets["test"], 1)


_ON_FOUR_DEVICES = """
import jax, numpy as np
from jax.sharding import AxisType
from hjepa_jax.evaluation import knn
assert jax.device_count() == 4
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
rng = np.random.default_rng(5)
train = np.where(rng.random((90, 16)) < 0.5, -1.0, 1.0).astype(np.float32)
test = np.where(rng.random((37, 16)) < 0.5, -1.0, 1.0).astype(np.float32)
one = knn.nearest_neighbors(train, test, 11, block=32, test_block=10)
four = knn.nearest_neighbors(train, test, 11, block=32, test_block=10, mesh=mesh)
np.testing.assert_array_equal(one[0], four[0])
np.testing.assert_array_equal(one[1], four[1])
print("equal")
"""


def test_four_devices_give_the_same_result_as_one() -> None:
    environment = dict(os.environ, JAX_PLATFORMS="cpu")
    environment["JAX_NUM_CPU_DEVICES"] = "4"
    command = [sys.executable, "-W", "error", "-c", _ON_FOUR_DEVICES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "equal" in done.stdout


def _weighted_ranking(labels, similarities, temperature):
    """Voted classes of one row of neighbors, best first, by plain Python sums."""
    votes = {}
    for label, similarity in zip(labels, similarities, strict=True):
        votes.setdefault(label, []).append(math.exp((similarity - similarities[0]) / temperature))
    return sorted(votes, key=lambda c: (-math.fsum(votes[c]), -len(votes[c]), c))


@pytest.mark.parametrize("temperature", [0.05, 0.07, 1.0, 10.0])
@pytest.mark.parametrize("num_classes", [2, 9])
def test_weighted_votes_agree_with_sums_of_exponentials(
    num_classes: int, temperature: float
) -> None:
    rng = np.random.default_rng(num_classes)
    train, test = _signs(rng, 120), _signs(rng, 50)
    labels, truth = rng.integers(num_classes, size=120), rng.integers(num_classes, size=50)
    found = _reference_neighbors(train, test, 64)
    near = np.take_along_axis(test.astype(np.float64) @ train.T / 16, found, axis=1)
    ks = (1, 2, 10, 64)
    result, answers = knn.weighted_vote(
        labels[found], near, truth, ks=ks, num_classes=num_classes, temperature=temperature
    )
    for position, k in enumerate(ks):
        orders = [
            _weighted_ranking(row[:k].tolist(), values[:k].tolist(), temperature)
            for row, values in zip(labels[found], near, strict=True)
        ]
        np.testing.assert_array_equal(answers[position], [order[0] for order in orders])
        top1 = [order[0] == t for order, t in zip(orders, truth, strict=True)]
        top5 = [t in order[:5] for order, t in zip(orders, truth, strict=True)]
        assert result["top1"][position] == pytest.approx(np.mean(top1), abs=1e-6)
        assert result["top5"][position] == pytest.approx(np.mean(top5), abs=1e-6)
    _, majority = knn.vote(labels[found], near, truth, ks=ks, num_classes=num_classes)
    np.testing.assert_array_equal(answers[0], majority[0])
    assert temperature > 0.1 or not np.array_equal(answers, majority)


def test_near_neighbors_outvote_many_far_ones_by_the_temperature() -> None:
    labels, near = np.array([[1, 0, 0, 0]]), np.array([[0.9, 0.8, 0.79, 0.78]])
    options = {"ks": (4,), "num_classes": 3}
    for temperature, expected in ((0.2, 0), (0.07, 1), (100.0, 0)):
        _, answers = knn.weighted_vote(labels, near, [1], **options, temperature=temperature)
        assert answers[0, 0] == expected
    # Equal sums go to the class with more neighbors, then to the lower number; others get nothing.
    for classes, best in (([2, 1], 1), ([0, 2], 0)):
        result, answers = knn.weighted_vote(
            [classes], [[0.5, 0.5]], [3], ks=(2,), num_classes=7, temperature=0.07
        )
        assert (answers[0, 0], result["top5"]) == (best, [0.0])


def test_weighted_votes_too_small_for_their_unit_still_rank_above_no_vote() -> None:
    # exp(-2 / 0.01) is 0 in fixed point, yet class 6 has a neighbor and classes 0 to 5 have none.
    result, answers = knn.weighted_vote(
        [[4, 6]], [[1.0, -1.0]], [6], ks=(1, 2), num_classes=8, temperature=0.01
    )
    assert answers[:, 0].tolist() == [4, 4]
    assert (result["top1"], result["top5"]) == ([0.0, 0.0], [0.0, 1.0])
