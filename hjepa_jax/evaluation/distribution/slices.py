"""States along random directions against the standard Gaussian, quantile by quantile.

SIGReg projects states on random directions and tests each projection against N(0, 1); these are
such projections. Standardized, each has mean 0 and variance 1, so that its shape alone counts.
"""

from __future__ import annotations

import dataclasses
import statistics

import jax
import jax.numpy as jnp
import numpy as np

from hjepa_jax.methods.regularizers.sigreg import SIGRegSection
from hjepa_jax.objectives.characteristic_function import Means, trigonometric_means
from hjepa_jax.objectives.sigreg import epps_pulley

NUM_SLICES = 256
# Quantiles beyond these need thousands of states.
_LARGEST = 3.0
_LEVELS = 61
_MOST_ROWS = 4096


@dataclasses.dataclass(frozen=True)
class Band:
    """What K directions have at M quantiles, [M] each: extremes, 10 and 90 %, and the median."""

    lowest: np.ndarray
    low: np.ndarray
    median: np.ndarray
    high: np.ndarray
    highest: np.ndarray


@dataclasses.dataclass(frozen=True)
class SliceDiscrepancy:
    """How far projections are from N(0, 1).

    Attributes:
      gaussian: quantiles of N(0, 1), [M], ascending.
      states: empirical minus Gaussian quantile of the states' projections.
      sample: the same of as many independent Gaussian numbers as there are states.
      columns: the projections of the states, [N, K].
      sample_columns: the Gaussian numbers, [N, K].
    """

    gaussian: np.ndarray
    states: Band
    sample: Band
    columns: np.ndarray
    sample_columns: np.ndarray

    def statistics(self) -> tuple[float, float]:
        """Returns SIGReg of the states and of the Gaussian numbers, with its default frequencies.

        Each is the mean over directions.
        """
        return _statistic(self.columns), _statistic(self.sample_columns)


def gaussian_levels(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns probabilities [M], and the quantiles [M] of N(0, 1) there, equally spaced.

    They reach as far as the Gaussian quantile of the largest of `rows` numbers, at most to 3.
    """
    normal = statistics.NormalDist()
    end = min(_LARGEST, normal.inv_cdf(1 - 0.5 / rows))
    quantiles = np.linspace(-end, end, _LEVELS)
    return np.array([normal.cdf(float(x)) for x in quantiles]), quantiles


def unit_vectors(dim: int, count: int, seed: int) -> np.ndarray:
    """Returns random directions [dim, count], uniform on the sphere; without waiting for XLA."""
    found = np.random.default_rng([seed, dim]).standard_normal((dim, count))
    return found / np.linalg.norm(found, axis=0)


def _standardized(columns: np.ndarray) -> np.ndarray:
    deviation = columns.std(axis=0)
    return (columns - columns.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)


def _band(columns: np.ndarray, levels: np.ndarray, gaussian: np.ndarray) -> Band:
    # 'hazen' has the i-th of N numbers at probability (i - 1/2)/N, as quantile plots do.
    found = np.quantile(columns, levels, axis=0, method="hazen") - gaussian[:, None]
    return Band(*np.quantile(found, (0.0, 0.1, 0.5, 0.9, 1.0), axis=1))


def default_sigreg(projections: jax.Array, means: Means = trigonometric_means) -> jax.Array:
    """Returns SIGReg of projections [N, K] with its default frequencies, the mean over directions.

    Args:
      projections: as many columns as there are directions.
      means: see `epps_pulley`.
    """
    section = SIGRegSection()
    found = epps_pulley(
        projections,
        t_max=section.t_max,
        n_points=section.n_points,
        weight_type=section.weight_type,
        means=means,
    )
    return jnp.mean(found)


def _statistic(columns: np.ndarray) -> float:
    return float(default_sigreg(jnp.asarray(columns, jnp.float32)))


def slice_discrepancy(
    states: np.ndarray, *, standardized: bool, num_slices: int = NUM_SLICES, seed: int = 0
) -> SliceDiscrepancy:
    """Compares projections of states on random unit vectors with N(0, 1).

    Args:
      states: [N, D]; of more than 4096 the first are used.
      standardized: whether each projection, also of the Gaussian numbers, is first brought to mean
        0 and variance 1.
      num_slices: number K of directions.
      seed: of the directions and the Gaussian numbers.

    Raises:
      ValueError: fewer than two states.
    """
    if len(states) < 2:
        raise ValueError(f"quantiles need at least two states, got {len(states)}")
    rows = states[:_MOST_ROWS].astype(np.float64)
    columns = rows @ unit_vectors(rows.shape[1], num_slices, seed)
    sample = np.random.default_rng(seed).standard_normal((len(rows), num_slices))
    if standardized:
        columns, sample = _standardized(columns), _standardized(sample)
    levels, gaussian = gaussian_levels(len(rows))
    return SliceDiscrepancy(
        gaussian,
        _band(columns, levels, gaussian),
        _band(sample, levels, gaussian),
        columns,
        sample,
    )
