"""Exact kNN: against scikit-learn and NumPy, tie rules, blocks, padding and devices."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from hjepa_jax.evaluation import knn


def _reference_neighbours(train, test, k):
    """All similarities in float64, then a stable sort."""
    a, b = (x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    return np.argsort(-(b @ a.T), axis=1, kind="stable")[:, :k]


def _reference_votes(neighbour_labels, labels, k, num_classes):
    """Counts by hand; a stable sort of the negated counts prefers the lowest class."""
    votes = [np.bincount(row[:k], minlength=num_classes) for row in neighbour_labels]
    order = np.argsort(-np.stack(votes), axis=1, kind="stable")[:, :5]
    right = order == labels[:, None]
    return right[:, 0].mean(), right.any(axis=1).mean()


def _signs(rng, count):
    """Vectors of +-1 in 16 dimensions: similarities are exact multiples of 1/8 and often tie."""
    return np.where(rng.random((count, 16)) < 0.5, -1.0, 1.0).astype(np.float32)


def test_neighbours_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    train = rng.normal(size=(301, 24)).astype(np.float32)
    test = rng.normal(size=(77, 24)).astype(np.float32)
    search = NearestNeighbors(n_neighbors=17, metric="cosine", algorithm="brute").fit(train)
    distances, expected = search.kneighbors(test)
    indices, similarities = knn.nearest_neighbours(train, test, 17, block=64, test_block=32)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(similarities, 1.0 - distances, atol=2e-6)


@pytest.mark.parametrize(
    ("block", "test_block"), [(1, 7), (5, 1000), (16, 3), (99, 40), (100, 41), (10**6, 1)]
)
def test_blocks_do_not_change_the_result_even_with_ties(block: int, test_block: int) -> None:
    rng = np.random.default_rng(1)
    train, test = _signs(rng, 100), _signs(rng, 41)
    indices, _ = knn.nearest_neighbours(train, test, 30, block=block, test_block=test_block)
    np.testing.assert_array_equal(indices, _reference_neighbours(train, test, 30))


def test_similarity_ignores_length_and_allows_zero_rows() -> None:
    train = np.array([[3.0, 0.0], [0.0, 0.0], [-5.0, 0.0], [0.01, 0.01]], np.float32)
    indices, values = knn.nearest_neighbours(train, np.array([[2.0, 0.0]], np.float32), 4)
    np.testing.assert_array_equal(indices[0], [0, 3, 1, 2])
    np.testing.assert_allclose(values[0], [1.0, np.sqrt(0.5), 0.0, -1.0], atol=1e-6)


@pytest.mark.parametrize("block", [2, 3, 5])
def test_padding_is_never_a_neighbour_even_of_opposite_rows(block: int) -> None:
    # All similarities are negative, so padding (similarity 0) would come first.
    train = -np.array([[1.0, 0.1], [1.0, 0.5], [1.0, 0.2], [1.0, 0.4], [1.0, 0.3]], np.float32)
    indices, values = knn.nearest_neighbours(train, np.array([[1.0, 0.0]]), 5, block=block)
    np.testing.assert_array_equal(indices[0], [1, 3, 4, 2, 0])
    assert values.max() < 0


@pytest.mark.parametrize("num_classes", [2, 4, 5, 9])
def test_votes_agree_with_counting_by_hand(num_classes: int) -> None:
    rng = np.random.default_rng(num_classes)
    train, test = _signs(rng, 120), _signs(rng, 50)
    labels = rng.integers(num_classes, size=120)
    truth = rng.integers(num_classes, size=50)
    ks = (1, 2, 3, 10, 64)
    result = knn.knn_accuracy(
        train, labels, test, truth, ks=ks, num_classes=num_classes, block=33, test_block=16
    )
    neighbours = labels[_reference_neighbours(train, test, 64)]
    expected = [_reference_votes(neighbours, truth, k, num_classes) for k in ks]
    assert result["k_values"] == list(ks)
    np.testing.assert_allclose(result["top1"], [top1 for top1, _ in expected], atol=1e-6)
    np.testing.assert_allclose(result["top5"], [top5 for _, top5 in expected], atol=1e-6)
    if num_classes <= 5:
        assert result["top5"] == [1.0] * len(ks)


def test_ties_go_to_the_lowest_class() -> None:
    votes = np.array([[3, 1, 1, 3, 2]])
    for truth, right in ((1, 1.0), (3, 0.0)):
        result = knn.vote(votes, np.array([truth]), ks=(4,), num_classes=4)
        assert result["top1"] == [right]
    # At k = 1 the nearest decides; class 3 has the only vote.
    assert knn.vote(votes, np.array([3]), ks=(1,), num_classes=4)["top1"] == [1.0]


def test_classes_without_votes_fill_the_top_five_only_if_asked_to() -> None:
    votes, truth = np.array([[9]]), np.array([2])
    published = knn.vote(votes, truth, ks=(1,), num_classes=10)
    strict = knn.vote(votes, truth, ks=(1,), num_classes=10, count_zero_votes=False)
    assert published["top5"] == [1.0]
    assert strict["top5"] == [0.0]
    # Class 4 is the fifth without a vote after 9, 0, 1, 2, 3.
    assert knn.vote(votes, np.array([4]), ks=(1,), num_classes=10)["top5"] == [0.0]


def test_all_k_in_one_pass_equal_each_k_alone() -> None:
    rng = np.random.default_rng(3)
    train, test = rng.normal(size=(60, 8)), rng.normal(size=(30, 8))
    labels, truth = rng.integers(6, size=60), rng.integers(6, size=30)
    together = knn.knn_accuracy(train, labels, test, truth, ks=(20, 1, 5), num_classes=6)
    assert together["k_values"] == [1, 5, 20]
    for i, k in enumerate(together["k_values"]):
        alone = knn.knn_accuracy(train, labels, test, truth, ks=(k,), num_classes=6)
        assert (alone["top1"][0], alone["top5"][0]) == (together["top1"][i], together["top5"][i])


def test_k_above_the_training_set_is_left_out_with_a_sentence(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        assert knn.usable_ks((1, 5, 10, 200), 7) == (1, 5)
    assert "k = [10, 200] left out, above the 7 training images" in caplog.text
    with pytest.raises(ValueError, match="exceeds the 3 training images"):
        knn.usable_ks((5, 10), 3)
    with pytest.raises(ValueError, match="numbers of neighbours >= 1"):
        knn.usable_ks((0, 5), 3)


def test_what_does_not_fit_is_named() -> None:
    x, y = np.ones((4, 3)), np.array([0, 1, 2, 0])
    with pytest.raises(ValueError, match="test labels go from 0 to 2, but with 2 classes"):
        knn.knn_accuracy(x[:2], y[:2], x, y, ks=(1,), num_classes=2)
    with pytest.raises(ValueError, match=r"\(4, 3\) and the test features \(4, 2\)"):
        knn.knn_accuracy(x, y, x[:, :2], y, ks=(1,), num_classes=3)
    with pytest.raises(ValueError, match="got 3 training and 4 test labels"):
        knn.knn_accuracy(x, y[:3], x, y, ks=(1,), num_classes=3)
    with pytest.raises(ValueError, match="k = 5 needs at least 5 training images"):
        knn.nearest_neighbours(x, x, 5)


_ON_FOUR_DEVICES = """
import jax, numpy as np
from jax.sharding import AxisType
from hjepa_jax.evaluation import knn
assert jax.device_count() == 4
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
rng = np.random.default_rng(5)
train = np.where(rng.random((90, 16)) < 0.5, -1.0, 1.0).astype(np.float32)
test = np.where(rng.random((37, 16)) < 0.5, -1.0, 1.0).astype(np.float32)
one = knn.nearest_neighbours(train, test, 11, block=32, test_block=10)
four = knn.nearest_neighbours(train, test, 11, block=32, test_block=10, mesh=mesh)
np.testing.assert_array_equal(one[0], four[0])
np.testing.assert_array_equal(one[1], four[1])
print("equal")
"""


def test_four_devices_give_what_one_gives() -> None:
    environment = dict(os.environ, JAX_PLATFORMS="cpu")
    environment["JAX_NUM_CPU_DEVICES"] = "4"
    command = [sys.executable, "-W", "error", "-c", _ON_FOUR_DEVICES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "equal" in done.stdout
