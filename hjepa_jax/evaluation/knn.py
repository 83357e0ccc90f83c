"""Exact k-nearest-neighbor classification by cosine similarity, in bounded memory.

The training set is processed in blocks, and each block is merged into a running list of the best
k_max neighbors, so neither N_test x N_train similarities nor a sort over N_train is ever needed.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hjepa_jax.errors import ConfigError, DataError
from hjepa_jax.evaluation.validity import wilson
from hjepa_jax.kernels.top_k import merge_top_k

_LOG = logging.getLogger(__name__)
_NORM_EPS = 1e-12
# Test rows times classes whose votes are counted at a time; bounds the memory.
_VOTES_AT_ONCE = 2**24


class KnnResult(TypedDict):
    """Accuracies in [0, 1] and their 95 % intervals [low, high], one for each k of `k_values`."""

    k_values: list[int]
    top1: list[float]
    top1_interval: list[list[float]]
    top5: list[float]
    top5_interval: list[list[float]]


def _normalize(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), _NORM_EPS)


@functools.partial(jax.jit, static_argnames=("k",))
def _best_neighbors(
    test: jax.Array, blocks: jax.Array, block_indices: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """Returns similarities and training indices [T, k], best first, of test rows [T, D]."""
    test = _normalize(test)
    none = jnp.full((len(test), k), -jnp.inf, test.dtype)

    def step(
        best: tuple[jax.Array, jax.Array], block: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        rows, indices = block
        similarity = jnp.matmul(test, rows.T, precision=lax.Precision.HIGHEST)
        return merge_top_k(best, similarity, indices), None

    start = (none, jnp.full((len(test), k), -1, jnp.int32))
    return lax.scan(step, start, (blocks, block_indices))[0]


@functools.partial(jax.jit, static_argnames=("ks", "num_classes", "reference"))
def _hits(
    neighbor_labels: jax.Array,
    weights: jax.Array,
    ties: jax.Array,
    labels: jax.Array,
    *,
    ks: tuple[int, ...],
    num_classes: int,
    reference: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns top-1 and top-5 hits of T test rows, bool [len(ks), T], and the predicted classes.

    The neighbors [T, K] vote with `weights`; equal sums are ordered by the sums of `ties`.
    """
    rows = jnp.arange(len(labels))[:, None]
    numbers = jnp.arange(num_classes)
    votes = jnp.zeros((len(labels), num_classes), jnp.int32)
    sums = jnp.zeros_like(votes)
    top1, top5, answers, done = [], [], [], 0
    for k in ks:
        new = neighbor_labels[:, done:k]
        votes = votes.at[rows, new].add(weights[:, done:k])
        sums = sums.at[rows, new].add(ties[:, done:k])
        done = k
        # The rank of the true class; a full sort over the classes would take far longer.
        true_votes = jnp.take_along_axis(votes, labels[:, None], axis=1)
        true_sum = jnp.take_along_axis(sums, labels[:, None], axis=1)
        lower = numbers < labels[:, None]
        tied = lower if reference else (sums > true_sum) | ((sums == true_sum) & lower)
        rank = jnp.sum((votes > true_votes) | ((votes == true_votes) & tied), axis=1)
        counted = jnp.any(neighbor_labels[:, :k] == labels[:, None], axis=1) | reference
        top1.append((rank == 0) & counted)
        top5.append((rank < 5) & counted)
        most = votes == votes.max(axis=1, keepdims=True)
        best = jnp.where(most, 0 if reference else sums, jnp.iinfo(jnp.int32).min)
        answers.append(jnp.argmax(best, axis=1))
    return jnp.stack(top1), jnp.stack(top5), jnp.stack(answers)


def _part_size(count: int, most: int) -> int:
    """Returns the part size that splits `count` into the fewest equal parts of at most `most`."""
    return -(-count // -(-count // most))


@functools.partial(jax.jit, static_argnames=("block",))
def _prepare_train(train: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """Normalizes [N, D] and splits it into [blocks, B, D] with indices (-1 = padding), B <= block.

    The blocks have equal size, to keep the padding small.
    """
    count = len(train)
    block = _part_size(count, block)
    pad = -count % block
    blocks = jnp.pad(_normalize(train), ((0, pad), (0, 0))).reshape(-1, block, train.shape[1])
    indices = jnp.arange(count + pad, dtype=jnp.int32)
    return blocks, jnp.where(indices < count, indices, -1).reshape(-1, block)


def _placements(mesh: Mesh | None) -> tuple[NamedSharding | None, NamedSharding | None, int]:
    """Returns the shardings of test rows and of everything else, and the number of devices."""
    if mesh is None:
        return None, None, 1
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return rows, NamedSharding(mesh, PartitionSpec()), mesh.size


def nearest_neighbors(
    train: npt.ArrayLike,
    test: npt.ArrayLike,
    k: int,
    *,
    block: int = 8192,
    test_block: int = 1024,
    mesh: Mesh | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k training rows of largest cosine similarity for every test row, exactly.

    Equal similarities are ordered by training index. Memory on the device is the training set
    plus about `test_block * (block + 2k)` similarities.

    Args:
      train: [N, D], any float type; rows of norm zero have similarity 0 to everything.
      test: [M, D].
      k: neighbors per test row, at most N.
      block: maximum number of training rows compared at a time.
      test_block: maximum number of test rows compared at a time (at least one per device).
      mesh: devices that share the test rows of a block (over all mesh axes); each holds the whole
        training set. None = JAX's default device.

    Returns:
      Training indices int [M, k] and similarities [M, k], best first.

    Raises:
      ValueError: mismatched shapes, features that are not finite, an empty set, or k outside
        1..N.
    """
    train, test = np.asarray(train), np.asarray(test)
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1]:
        raise ValueError(
            f"kNN compares [N, D] with [M, D], but the training features have shape "
            f"{train.shape} and the test features {test.shape}."
        )
    if not len(test) or not 1 <= k <= len(train):
        raise ValueError(
            f"kNN with k = {k} needs at least {k} training images and one test image, but there "
            f"are {len(train)} and {len(test)}."
        )
    for features, kind in ((train, "training"), (test, "test")):
        # A NaN would be the nearest neighbor of everything.
        if not np.isfinite(features).all():
            raise ValueError(f"kNN needs finite features, but some {kind} features are not.")
    by_rows, everywhere, devices = _placements(mesh)
    blocks, block_indices = jax.device_put(_prepare_train(train, block=block), everywhere)
    test_block = -(-_part_size(len(test), test_block) // devices) * devices
    indices, similarities = [], []
    for start in range(0, len(test), test_block):
        part = test[start : start + test_block]
        padded = np.pad(part, ((0, test_block - len(part)), (0, 0)))
        found = _best_neighbors(jax.device_put(padded, by_rows), blocks, block_indices, k)
        values, index = jax.device_put(found, everywhere)
        similarities.append(np.asarray(values)[: len(part)])
        indices.append(np.asarray(index)[: len(part)])
    return np.concatenate(indices), np.concatenate(similarities)


def usable_ks(ks: Sequence[int], num_train: int) -> tuple[int, ...]:
    """Returns the distinct k in ascending order, without those above the training set size.

    Raises:
      ConfigError: no k is usable, or one is below 1.
    """
    if not ks or min(ks) < 1:
        raise ConfigError(
            f"config.evaluation.knn_k must contain numbers of neighbors >= 1, not {tuple(ks)}."
        )
    usable = tuple(sorted({int(k) for k in ks if k <= num_train}))
    skipped = sorted({int(k) for k in ks if k > num_train})
    if not usable:
        raise ConfigError(
            f"Every k in config.evaluation.knn_k={tuple(ks)} exceeds the {num_train} training "
            "images; add a smaller one."
        )
    if skipped:
        _LOG.debug("kNN: skipping k = %s, above the %d training images.", skipped, num_train)
    return usable


def check_labels(labels: npt.ArrayLike, num_classes: int, what: str) -> np.ndarray:
    """Returns labels as int32 [N]; DataError if one lies outside 0..num_classes-1."""
    values = np.asarray(labels)
    if values.size and not 0 <= values.min() <= values.max() < num_classes:
        raise DataError(
            f"The {what} labels go from {values.min()} to {values.max()}, but with {num_classes} "
            f"classes they must lie in 0..{num_classes - 1}."
        )
    return values.astype(np.int32)


def _fixed_point(values: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Returns numbers [M, K] in -1..1 as int32 fixed point whose sums over K do not overflow.

    Float sums depend on their order, which a GPU does not guarantee; the unit is a power of two.
    """
    values = np.asarray(values, np.float64)
    unit = 2.0 ** (30 - math.ceil(math.log2(max(values.shape[1], 1))))
    return np.rint(np.clip(values, -1.0, 1.0) * unit).astype(np.int32)


def vote(
    neighbor_labels: npt.ArrayLike,
    similarities: npt.ArrayLike,
    test_labels: npt.ArrayLike,
    *,
    ks: Sequence[int],
    num_classes: int,
    reference: bool = False,
) -> tuple[KnnResult, npt.NDArray[np.int32]]:
    """Classifies by unweighted majority among the first k neighbors, for every k in one pass.

    Ties are broken by the sum of the neighbors' similarities, then by class index. A class without
    votes is never an answer: at k = 1, top 5 equals top 1.

    Args:
      neighbor_labels: int [M, K], nearest first.
      similarities: [M, K], of the same neighbors.
      test_labels: int [M].
      ks: ascending numbers of neighbors, at most K.
      num_classes: number of classes; top 5 is over at most all of them.
      reference: count as the published protocol does: ties go to the lowest class index, and
        classes without votes fill the top five in order of index (four of five at k = 1).

    Returns:
      Accuracies with their intervals, and the predicted class for each k, int [len(ks), M].
    """
    similar = _fixed_point(similarities)
    given = (neighbor_labels, np.ones_like(similar), similar, test_labels)
    return _count(given, tuple(ks), num_classes, reference)


def weighted_vote(
    neighbor_labels: npt.ArrayLike,
    similarities: npt.ArrayLike,
    test_labels: npt.ArrayLike,
    *,
    ks: Sequence[int],
    num_classes: int,
    temperature: float,
) -> tuple[KnnResult, npt.NDArray[np.int32]]:
    """Classifies by votes exp(similarity / temperature) of the first k neighbors, for every k.

    Ties are broken by the number of neighbors, then by class index. A class without a neighbor is
    never an answer. Votes are multiples of about K 2^-30 times that of the nearest neighbor, so
    that sums do not depend on their order.

    Source: Wu et al., "Unsupervised feature learning via non-parametric instance discrimination",
    arXiv 1805.01978, section 3.4.

    Args:
      neighbor_labels: int [M, K], nearest first.
      similarities: [M, K], of the same neighbors.
      test_labels: int [M].
      ks: ascending numbers of neighbors, at most K.
      num_classes: number of classes; top 5 is over at most all of them.
      temperature: above 0.

    Returns:
      Accuracies with their intervals, and the predicted class for each k, int [len(ks), M].
    """
    cosines = np.asarray(similarities, np.float64)
    weights = _fixed_point(np.exp((cosines - cosines[:, :1]) / temperature))
    given = (neighbor_labels, weights, np.ones_like(weights), test_labels)
    return _count(given, tuple(ks), num_classes)


def _count(
    given: tuple[npt.ArrayLike, ...], ks: tuple[int, ...], num_classes: int, reference: bool = False
) -> tuple[KnnResult, npt.NDArray[np.int32]]:
    """Returns what `_hits` counts in its four arrays, a part of their rows at a time."""
    arrays = [np.asarray(array) for array in given]
    truth = arrays[-1]
    size = _part_size(len(truth), max(1, _VOTES_AT_ONCE // num_classes))
    parts = []
    for start in range(0, len(truth), size):
        rows = slice(start, start + size)
        pad = size - len(truth[rows])
        padded = [np.pad(x[rows], [(0, pad), *[(0, 0)] * (x.ndim - 1)]) for x in arrays]
        found = _hits(*padded, ks=ks, num_classes=num_classes, reference=reference)
        parts.append([np.asarray(x)[:, : size - pad] for x in found])
    top1, top5, answers = (np.concatenate(x, axis=1) for x in zip(*parts, strict=True))
    shares1, shares5 = top1.mean(axis=1).tolist(), top5.mean(axis=1).tolist()
    result: KnnResult = {
        "k_values": list(ks),
        "top1": shares1,
        "top1_interval": [wilson(share, len(truth)) for share in shares1],
        "top5": shares5,
        "top5_interval": [wilson(share, len(truth)) for share in shares5],
    }
    return result, answers


def knn_accuracy(
    train: npt.ArrayLike,
    train_labels: npt.ArrayLike,
    test: npt.ArrayLike,
    test_labels: npt.ArrayLike,
    *,
    ks: Sequence[int],
    num_classes: int,
    block: int = 8192,
    test_block: int = 1024,
    reference: bool = False,
    mesh: Mesh | None = None,
) -> KnnResult:
    """Returns kNN accuracies for all k from one search, by `nearest_neighbors` and `vote`.

    A k above the number of training rows is skipped with a warning (`usable_ks`).

    Args:
      train: training features [N, D].
      train_labels: int [N] in 0..num_classes-1.
      test: test features [M, D].
      test_labels: int [M] in 0..num_classes-1.
      ks: see `vote`.
      num_classes: see `vote`.
      block: see `nearest_neighbors`.
      test_block: see `nearest_neighbors`.
      reference: see `vote`.
      mesh: see `nearest_neighbors`.

    Raises:
      ValueError: mismatched shapes or labels, or no usable k.
    """
    labels = check_labels(train_labels, num_classes, "training")
    truth = check_labels(test_labels, num_classes, "test")
    if len(labels) != len(np.asarray(train)) or len(truth) != len(np.asarray(test)):
        raise ValueError(
            f"kNN got {len(labels)} training and {len(truth)} test labels for "
            f"{len(np.asarray(train))} and {len(np.asarray(test))} features."
        )
    usable = usable_ks(ks, len(labels))
    indices, similarities = nearest_neighbors(
        train, test, usable[-1], block=block, test_block=test_block, mesh=mesh
    )
    return vote(
        labels[indices],
        similarities,
        truth,
        ks=usable,
        num_classes=num_classes,
        reference=reference,
    )[0]
