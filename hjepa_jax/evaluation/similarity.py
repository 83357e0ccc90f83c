"""Cosine similarities, norms, alignment and uniformity, and CKA of features, on the host."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from hjepa_jax.errors import DataError

_NORM_EPS = 1e-12
# Pairs gathered at a time: bounds the memory at 2 * _CHUNK * D numbers.
_CHUNK = 4096


def normalize_rows(features: npt.ArrayLike) -> np.ndarray:
    """Returns rows [N, D] scaled to unit length; the norm is taken to be at least 1e-12."""
    x = np.asarray(features)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _NORM_EPS)


def random_pairs(
    num_rows: int, num_pairs: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Draws distinct pairs of different rows uniformly, without replacement.

    Args:
      num_rows: N, at least 2.
      num_pairs: number of pairs to draw, limited to all N (N - 1) / 2.
      seed: seed of the draw.

    Returns:
      Row numbers int [P] and [P].

    Raises:
      DataError: fewer than two rows.
    """
    if num_rows < 2:
        raise DataError(f"Pairs of different images need at least two images, not {num_rows}.")
    total = num_rows * (num_rows - 1) // 2
    if num_pairs >= total:
        chosen = np.arange(total)
    else:
        chosen = np.random.default_rng(seed).choice(total, num_pairs, replace=False)
    # Round-robin over an odd number m of rows: round o pairs i with i + o (mod m). If N is even,
    # round 0 pairs the last row with every other one.
    odd = num_rows % 2
    m = num_rows - 1 + odd
    first, turn = chosen % m, chosen // m + odd
    second = np.where(turn == 0, num_rows - 1, (first + turn) % m)
    return first, second


def reference_pairs(
    num_rows: int, num_pairs: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Draws pairs with replacement, self-pairs included, as the published protocol does."""
    first, second = np.random.default_rng(seed).integers(num_rows, size=(2, num_pairs))
    return first, second


def _pairwise(x: np.ndarray, first: npt.ArrayLike, second: npt.ArrayLike, kind: str) -> np.ndarray:
    """Returns the dot product or squared distance of x[first] and x[second], [P]."""
    first, second = np.asarray(first), np.asarray(second)
    parts = []
    for start in range(0, len(first), _CHUNK):
        a = x[first[start : start + _CHUNK]]
        b = x[second[start : start + _CHUNK]]
        parts.append(np.sum(a * b if kind == "dot" else np.square(a - b), axis=1))
    return np.concatenate(parts)


def cosine_similarities(
    features: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike
) -> np.ndarray:
    """Returns the cosine similarity [P] of the rows `first` and `second` (int [P]) of [N, D]."""
    return _pairwise(normalize_rows(features), first, second, "dot")


def summarize(values: npt.ArrayLike) -> dict[str, float]:
    """Returns mean, std (biased), p10, p50, p90 (linear interpolation), min and max of values."""
    x = np.asarray(values, np.float64)
    p10, p50, p90 = np.quantile(x, (0.1, 0.5, 0.9))
    summary = {"mean": x.mean(), "std": x.std(), "p10": p10, "p50": p50, "p90": p90}
    return {name: float(v) for name, v in (summary | {"min": x.min(), "max": x.max()}).items()}


def alignment_uniformity(
    views1: npt.ArrayLike,
    views2: npt.ArrayLike,
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    t: float = 2.0,
) -> dict[str, float]:
    """Alignment and uniformity on the unit sphere (Wang and Isola, ICML 2020).

    Args:
      views1: features [N, D] of one augmentation of N images.
      views2: features [N, D] of another augmentation of the same images.
      first: int [P], rows of `views1`: the first of each pair for the uniformity.
      second: int [P], rows of `views1`: the second of each pair.
      t: exponent of the uniformity.

    Returns:
      'alignment': mean |z1 - z2|^2 (0 = views agree), 'uniformity':
      log mean exp(-t |z_first - z_second|^2) (lower = spread more evenly, 0 = one point).

    Raises:
      ValueError: views of different shapes.
    """
    z1, z2 = normalize_rows(views1), normalize_rows(views2)
    if z1.shape != z2.shape:
        raise ValueError(
            f"Alignment compares two views of the same images, but their features have shapes "
            f"{z1.shape} and {z2.shape}."
        )
    distance = _pairwise(z1, first, second, "distance").astype(np.float64)
    between = np.sum(np.square(z1 - z2), axis=1, dtype=np.float64)
    return {
        "alignment": float(between.mean()),
        "uniformity": math.log(float(np.mean(np.exp(-t * distance)))),
    }


def linear_cka(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Linear centered kernel alignment of [N, D1] and [N, D2] (Kornblith et al., ICML 2019).

    1 = equal up to rotation and scale, 0 = uncorrelated (or one of them constant).

    Raises:
      ValueError: a different number of rows.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(a) != len(b):
        raise ValueError(f"CKA compares features of the same images, not {len(a)} and {len(b)}.")
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    if len(a) < min(a.shape[1], b.shape[1]):
        gram_a, gram_b = a @ a.T, b @ b.T
        cross, norms = np.sum(gram_a * gram_b), np.linalg.norm(gram_a) * np.linalg.norm(gram_b)
    else:
        cross = np.sum(np.square(a.T @ b))
        norms = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(cross / norms) if norms > 0 else 0.0
