"""Running top-k of rows by both forms, and the kNN search on top of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_arrays import draw

from hjepa_jax.evaluation import knn
from hjepa_jax.kernels import top_k

pytestmark = pytest.mark.usefixtures("native_kernels")


def merge_in_blocks(rows, k, width, native):
    """The k largest of rows and their columns, merged block by block by either form."""
    count = rows.shape[1]
    padded = np.pad(rows, ((0, 0), (0, -count % width)), constant_values=7e30)
    columns = np.arange(padded.shape[1], dtype=np.int32)
    columns[count:] = -1
    best = (
        jnp.full((len(rows), k), -jnp.inf, jnp.float32),
        jnp.full((len(rows), k), -1, jnp.int32),
    )
    merge = top_k.merge_top_k_native if native else top_k.merge_top_k
    for start in range(0, padded.shape[1], width):
        part = slice(start, start + width)
        best = merge(best, jnp.asarray(padded[:, part]), jnp.asarray(columns[part]))
    return best


@pytest.mark.parametrize(
    ("columns", "k", "width"),
    [(5000, 20, 5000), (5000, 1, 700), (300, 300, 128), (4096, 1500, 4096), (4096, 50, 512)],
)
def test_largest_values_are_those_of_lax(columns, k, width) -> None:
    """Many ties, infinities, both orders of rows; more candidates than are collected at once."""
    rows = draw(1, 6, columns)
    rows[1] = np.round(rows[1])
    rows[2] = np.sort(rows[2])
    rows[3] = -np.sort(-rows[3])
    rows[4, ::2] = -3e38
    rows[5] = -np.finfo(np.float32).max
    rows[5, 3::11] = np.inf
    expected = jax.lax.top_k(rows, k)
    for native in (True, False):
        for a, b in zip(merge_in_blocks(rows, k, width, native), expected, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def test_places_without_neighbors_stay_empty() -> None:
    """-inf is never a neighbor, wherever it occurs; both forms."""
    rows = draw(1, 3, 40)
    rows[1, 3:] = -np.inf
    rows[2] = -np.inf
    for native in (True, False):
        values, columns = merge_in_blocks(rows, 5, 16, native)
        np.testing.assert_array_equal(columns[1, 3:], -1)
        np.testing.assert_array_equal(columns[2], -1)
        np.testing.assert_array_equal(np.sort(columns[1, :3]), [0, 1, 2])
        assert np.isneginf(values[2]).all()
        assert (columns[0] >= 0).all()


def test_not_a_number_is_the_largest() -> None:
    rows = draw(1, 2, 3000)
    rows[0, 1234] = np.nan
    values, columns = merge_in_blocks(rows, 3, 1000, native=True)
    assert np.isnan(values[0, 0])
    assert columns[0, 0] == 1234
    assert not np.isnan(values[0, 1:]).any()
    np.testing.assert_array_equal(values[1], -np.sort(-rows[1])[:3])


def test_neighbors_are_those_of_lax(monkeypatch) -> None:
    """The search itself, over blocks with padding, with both forms."""
    train, test = draw(1, 700, 16), draw(2, 90, 16)
    train[300] = train[20]
    found = []
    for least in (top_k._MIN_VALUES, 1):
        monkeypatch.setattr(top_k, "_MIN_VALUES", least)
        knn._best_neighbors.clear_cache()
        blocks = knn._prepare_train(train, block=128)
        traced = str(jax.make_jaxpr(functools.partial(knn._best_neighbors, k=3))(test, *blocks))
        assert ("hjepa_merge_top_k" in traced) == (least == 1)
        found.append(knn.nearest_neighbors(train, test, 9, block=128, test_block=40))
    knn._best_neighbors.clear_cache()
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)
