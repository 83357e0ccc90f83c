"""Covariance spectra of features and the effective dimensions derived from them.

Computed on the host in float64: the small eigenvalues of a nearly collapsed state are far below
float32 rounding errors.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hjepa_jax.errors import ConfigError, DataError

_RANKME_EPS = 1e-7


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
