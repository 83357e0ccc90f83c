"""Log-determinant and smallest eigenvalue of states, whose fall is a collapse.

Both are of the covariance in k random orthonormal directions, as in HJEPA's spectral floors, with
the same ridge. The directions are fixed, so that the checkpoints of a run can be compared.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hjepa_jax.objectives.regularizers import projection_rank


class Volume(NamedTuple):
    """Of a covariance C = R^T cov(x) R + ridge I of rank k.

    Attributes:
      logdet: log det(C) / k; -inf if an eigenvalue is 0.
      smallest: smallest eigenvalue.
      rank: k.
    """

    logdet: float
    smallest: float
    rank: int


def directions(dim: int, rank: int, seed: int) -> np.ndarray:
    """Returns random orthonormal directions [dim, rank]; without waiting for XLA."""
    return np.linalg.qr(np.random.default_rng([seed, dim]).standard_normal((dim, rank)))[0]


def volume(part: np.ndarray, rank: int, ridge: float, seed: int = 0) -> Volume:
    """Returns the volume of one part of the states in random directions.

    Args:
      part: [N, d].
      rank: most directions; at most d and N - 1 are used.
      ridge: added to every eigenvalue.
      seed: of the directions.

    Raises:
      ValueError: fewer than two states.
    """
    used = projection_rank(rank, part.shape[1], len(part))
    rows = part.astype(np.float64)
    projected = (rows - rows.mean(axis=0)) @ directions(part.shape[1], used, seed)
    covariance = projected.T @ projected / (len(rows) - 1)
    # Rounding may leave an eigenvalue of 0 below it.
    values = np.maximum(np.linalg.eigvalsh(covariance), 0.0) + ridge
    with np.errstate(divide="ignore"):
        logdet = float(np.log(values).mean())
    return Volume(logdet, float(values[0]), used)
