"""The geometry of features, without labels: covariance spectra, and similarities of pairs.

Computed on the host. Spectra are in float64: the small eigenvalues of a nearly collapsed state are
far below float32 rounding errors.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hjepa_jax.errors import ConfigError, DataError

_RANKME_EPS = 1e-7
_NORM_EPS = 1e-12
# Pairs gathered at a time: bounds the memory at 2 * _CHUNK * D numbers.
_CHUNK = 4096
# Of a histogram of the spectrum: states it is of, and the share below which is rounding error.
_HISTOGRAM_ROWS = 1024
_SMALLEST_SHARE = 1e-7


class Spectrum(NamedTuple):
    """The largest `top` eigenvalues in descending order, and summaries of the spectrum.

    The `_full` values use every eigenvalue, the others the largest `top` as published. They are for
    centered features and do not depend on their scale; `rankme` uses the uncentered features, and
    `mean_share` is the share of their energy in the mean.
    """

    eigenvalues: np.ndarray
    effective_rank: float
    participation_ratio: float
    effective_rank_full: float
    participation_ratio_full: float
    rankme: float
    mean_share: float
    num_samples: int


def _gram_eigenvalues(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns the min(N, D) eigenvalues of x^T x, descending, none below zero."""
    # The smaller of x^T x and x x^T has the same nonzero eigenvalues.
    gram = x.T @ x if x.shape[1] <= x.shape[0] else x @ x.T
    return np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)


def covariance_eigenvalues(features: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Returns the min(N, D) largest eigenvalues of the sample covariance (n - 1), descending.

    Args:
      features: [N, D], N at least 2.

    Returns:
      float64 [min(N, D)], none below 0.

    Raises:
      DataError: fewer than two rows.
    """
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise DataError(
            f"A covariance needs features [N, D] of at least two images, but they have shape "
            f"{x.shape}."
        )
    return _gram_eigenvalues(x - x.mean(axis=0)) / (len(x) - 1)


def spreads(states: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float64]]:
    """Returns what histograms show of states [N, D]: the spread of the dimensions and directions.

    Returns:
      'std', the standard deviation of each dimension; and 'spectrum_log10', of the eigenvalues of
      the covariance that are not rounding errors, of at most 1024 states.
    """
    found = {"std": states.astype(np.float64).std(axis=0)}
    if len(states) < 2:
        return found
    eigenvalues = covariance_eigenvalues(states[:_HISTOGRAM_ROWS])
    large = eigenvalues[eigenvalues > _SMALLEST_SHARE * eigenvalues[0]]
    return found | ({"spectrum_log10": np.log10(large)} if len(large) else {})


def effective_rank(eigenvalues: npt.ArrayLike) -> float:
    """exp(entropy of the normalized eigenvalues), Roy and Vetterli, EUSIPCO 2007.

    0 if all are zero: a state that has collapsed to a point has no dimensions.
    """
    values = np.asarray(eigenvalues, np.float64)
    if not values.any():
        return 0.0
    share = values / values.sum()
    share = share[share > 0]
    return math.exp(-float(np.sum(share * np.log(share))))


def participation_ratio(eigenvalues: npt.ArrayLike) -> float:
    """(sum lambda)^2 / sum lambda^2; 0 if all are zero."""
    values = np.asarray(eigenvalues, np.float64)
    if not values.any():
        return 0.0
    return float(values.sum() ** 2 / np.sum(values**2))


def rankme(features: npt.ArrayLike) -> float:
    """exp(entropy of the singular values of the uncentered features), Garrido et al., ICML 2023.

    The entropy is of p_k = sigma_k / sum(sigma) + 1e-7, as in that paper. All-zero
    features give 0.
    """
    sigma = np.sqrt(_gram_eigenvalues(np.asarray(features, np.float64)))
    if not sigma.any():
        return 0.0
    share = sigma / sigma.sum() + _RANKME_EPS
    return math.exp(-float(np.sum(share * np.log(share))))


def mean_share(features: npt.ArrayLike) -> float:
    """|mean x|^2 / mean |x|^2 of features [N, D]: the share of the energy in the mean.

    1 = all features are equal (also all zero), 0 = centered. For features of equal norm it is the
    mean cosine similarity of pairs.
    """
    x = np.asarray(features, np.float64)
    energy = float(np.mean(np.sum(x * x, axis=1)))
    return float(np.sum(x.mean(axis=0) ** 2)) / energy if energy > 0 else 1.0


def projected_participation(features: npt.ArrayLike, rank: int, seed: int) -> float:
    """Participation ratio, relative to its maximum, of features [N, D] on random directions.

    Training logs it as 'q_pr': it is that of the covariance on min(rank, D, N - 1) orthonormal
    directions, in [0, 1]; 0 for constant features.
    """
    x = np.asarray(features, np.float64)
    directions = min(rank, x.shape[1], len(x) - 1)
    drawn = np.random.default_rng(seed).normal(size=(x.shape[1], directions))
    # Center first: products of equal rows may round differently.
    values = covariance_eigenvalues((x - x.mean(axis=0)) @ np.linalg.qr(drawn)[0])
    return participation_ratio(values) / directions


def subsample_rows(num_rows: int, max_samples: int, seed: int) -> npt.NDArray[np.int64]:
    """Returns all row indices, or a seeded sample of `max_samples` of them in ascending order."""
    if num_rows <= max_samples:
        return np.arange(num_rows)
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(num_rows, max_samples, replace=False))


def covariance_spectrum(
    features: npt.ArrayLike, *, max_samples: int = 5000, top: int = 256, seed: int = 0
) -> Spectrum:
    """Summarizes the covariance of features [N, D], exactly (no randomized decomposition).

    Args:
      features: [N, D], N at least 2.
      max_samples: maximum number of rows; of more, a seeded sample is used.
      top: number of eigenvalues to keep, limited to min(D, rows - 1).
      seed: seed of the sample.

    Raises:
      UserError: fewer than two rows, or `top` below 1.
    """
    if top < 1:
        raise ConfigError(f"config.evaluation.spectrum_top must be at least 1, not {top}.")
    x = np.asarray(features)
    x = x[subsample_rows(len(x), max_samples, seed)]
    values = covariance_eigenvalues(x)
    largest = values[: min(top, x.shape[1], len(x) - 1)]
    return Spectrum(
        eigenvalues=largest,
        effective_rank=effective_rank(largest),
        participation_ratio=participation_ratio(largest),
        effective_rank_full=effective_rank(values),
        participation_ratio_full=participation_ratio(values),
        rankme=rankme(x),
        mean_share=mean_share(x),
        num_samples=len(x),
    )


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
