"""SIGReg: sketched isotropic-Gaussian regularization by the Epps-Pulley statistic.

y = z A projects the embeddings on random directions; per direction the Epps-Pulley statistic is
the weighted L2 distance between the empirical characteristic function of y and that of N(0, 1):

    N sum_j w_j [ (mean_n cos(t_j y_n) - exp(-t_j^2/2))^2 + (mean_n sin(t_j y_n))^2 ].

Sources: LeJEPA, arXiv 2511.08544, section 4; T. W. Epps & L. B. Pulley, "A test for normality based
on the empirical characteristic function", Biometrika 70 (1983).
"""

import functools
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from hjepa_jax.objectives import shares
from hjepa_jax.objectives.characteristic_function import (
    Means,
    characteristic_function,
    trigonometric_means,
)
from hjepa_jax.objectives.regularizers import at_least_float32
from hjepa_jax.objectives.shares import AxisName

WeightType = Literal["gaussian", "uniform"]
Statistics = Literal["per_view", "flattened"]
Reduction = Literal["mean", "sum", "none"]
WEIGHT_TYPES: tuple[WeightType, ...] = get_args(WeightType)
STATISTICS: tuple[Statistics, ...] = get_args(Statistics)
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_quadrature(t_max: float, n_points: int, weight_type: WeightType) -> None:
    _check_choice("sigreg.weight_type", weight_type, WEIGHT_TYPES)
    if n_points < 3 or n_points % 2 == 0:
        raise ValueError(f"sigreg.n_points must be odd and at least 3, got {n_points}")
    if not t_max > 0:
        raise ValueError(f"sigreg.t_max must be positive, got {t_max}")


def _quadrature(
    t_max: float, n_points: int, weight_type: WeightType
) -> tuple[Float[np.ndarray, " count"], Float[np.ndarray, " count"]]:
    """Returns the frequencies of the one-sided rule and their weights, [n_points - 1] each.

    At t = 0 the statistic's integrand vanishes identically, so the frequencies start above it.
    """
    _check_quadrature(t_max, n_points, weight_type)
    step = t_max / (n_points - 1)
    t = step * np.arange(1, n_points)
    weights = np.full(n_points - 1, 2.0 * step)
    weights[-1] = step
    return t, weights * np.exp(-0.5 * t**2) if weight_type == "gaussian" else weights


def expected_epps_pulley(
    *, t_max: float, n_points: int, weight_type: WeightType, centered: bool = False
) -> float:
    """Returns the expected statistic of samples of N(0, 1).

    N E|f_N - f|^2 at the frequency t is 1 - exp(-t^2), and for samples from which their mean was
    subtracted 1 - (1 + t^2) exp(-t^2) in the limit of many.

    Args:
        t_max: see `epps_pulley`, as for the next two.
        n_points: number of frequencies.
        weight_type: weight of the frequencies.
        centered: whether the samples' mean was subtracted.

    Raises:
        ValueError: see `epps_pulley`.
    """
    t, weights = _quadrature(t_max, n_points, weight_type)
    explained = (1 + t**2) if centered else 1.0
    return float(np.sum(weights * (1 - explained * np.exp(-(t**2)))))


def random_slices(
    key: PRNGKeyArray, dim: int, num_slices: int, dtype: jax.typing.DTypeLike = jnp.float32
) -> Float[Array, "{dim} {num_slices}"]:
    """Draws directions, columns uniform on the unit sphere.

    Args:
        key: PRNG key.
        dim: D, the width of the embeddings.
        num_slices: K, the number of directions.
        dtype: floating-point dtype of the result.

    Returns:
        [D, K].

    Raises:
        ValueError: no directions.
    """
    if num_slices < 1:
        raise ValueError(f"sigreg.num_slices must be at least 1, got {num_slices}")
    directions = jax.random.normal(key, (dim, num_slices), dtype)
    return directions / jnp.linalg.norm(directions, axis=0, keepdims=True)


def random_subsample(
    key: PRNGKeyArray, num_rows: int, subsample: int
) -> Int[Array, " {subsample}"]:
    """Draws the rows for `sigreg` without replacement.

    Args:
        key: PRNG key.
        num_rows: how many there are.
        subsample: how many to draw.

    Returns:
        Indices [subsample].

    Raises:
        ValueError: subsample is not in 1..num_rows.
    """
    if not 1 <= subsample <= num_rows:
        raise ValueError(f"sigreg.subsample must lie in 1..{num_rows} (the rows), got {subsample}")
    return jax.random.permutation(key, num_rows)[:subsample]


def epps_pulley(
    projections: Float[Array, "*batch n k"],
    *,
    t_max: float,
    n_points: int,
    weight_type: WeightType,
    means: Means = trigonometric_means,
    axis_name: AxisName = None,
    selected: int | None = None,
) -> Float[Array, "*batch k"]:
    """Returns the Epps-Pulley statistic against N(0, 1) of each column.

    Args:
        projections: [..., N, K]; bfloat16 and float16 are computed in float32.
        t_max: largest frequency; t_j = linspace(0, t_max, n_points).
        n_points: number of frequencies, odd and >= 3.
        weight_type: 'gaussian' or 'uniform'.
        means: see `characteristic_function`.
        axis_name: see `shares`.
        selected: number of rows, of all shares, that count; the others must be zero. None = all.

    Returns:
        [..., K], float32 (float64 for a float64 input).

    Raises:
        ValueError: an invalid n_points, t_max or weight_type, or fewer than two axes.
    """
    _, weights = _quadrature(t_max, n_points, weight_type)
    if projections.ndim < 2:
        raise ValueError(f"projections must be [..., N, K], got shape {projections.shape}")
    step, y = t_max / (n_points - 1), at_least_float32(projections)
    return _weighted_distance(y, step, step, weights, means, axis_name, selected)


def epps_pulley_two_sided(
    projections: Float[Array, "*batch n k"],
    *,
    t_min: float,
    t_max: float,
    num_t: int,
    means: Means = trigonometric_means,
    axis_name: AxisName = None,
    selected: int | None = None,
) -> Float[Array, "*batch k"]:
    """Returns the Gaussian-weighted statistic by the trapezoid rule on [t_min, t_max].

    The published code has this variant beside the one-sided one and does not use it.

    Args:
        projections: [..., N, K].
        t_min: smallest frequency, may be negative.
        t_max: largest frequency.
        num_t: number of frequencies linspace(t_min, t_max, num_t), >= 2.
        means: see `characteristic_function`.
        axis_name: see `shares`.
        selected: see `epps_pulley`.

    Returns:
        [..., K], float32 (float64 for a float64 input).

    Raises:
        ValueError: t_min >= t_max, or fewer than two frequencies.
    """
    if not t_min < t_max or num_t < 2:
        raise ValueError(f"need t_min < t_max and num_t >= 2, got {t_min}, {t_max}, {num_t}")
    step = (t_max - t_min) / (num_t - 1)
    t = t_min + step * np.arange(num_t)
    weights = np.full(num_t, step)
    weights[[0, -1]] = 0.5 * step
    weights = weights * np.exp(-0.5 * t**2)
    y = at_least_float32(projections)
    return _weighted_distance(y, t_min, step, weights, means, axis_name, selected)


def _weighted_distance(
    y: Float[Array, "*batch n k"],
    start: float,
    step: float,
    weights: Float[np.ndarray, " count"],
    means: Means,
    axis_name: AxisName,
    selected: int | None,
) -> Float[Array, "*batch k"]:
    """Returns N sum_j w_j |empirical - Gaussian characteristic function|^2, [..., K]."""
    count = len(weights)
    parts: tuple[Array, Array] = characteristic_function(y, start, step, count, means, axis_name)
    cosines, sines = parts
    rows = y.shape[-2] * shares.count(axis_name)
    if selected is not None:
        # A row of zeros adds 1 to the sum of the cosines, and 0 to that of the sines.
        cosines, sines = (rows * cosines - (rows - selected)) / selected, rows * sines / selected
        rows = selected
    shape = (count,) + (1,) * (cosines.ndim - 1)
    t = start + step * np.arange(count)
    gaussian = jnp.asarray(np.exp(-0.5 * t**2), y.dtype).reshape(shape)
    weight = jnp.asarray(weights, y.dtype).reshape(shape)
    distance = jnp.square(cosines - gaussian) + jnp.square(sines)
    return rows * jnp.sum(weight * distance, axis=0)


def _check_inputs(
    z: Float[Array, "..."], slices: Float[Array, "..."], statistics: str, reduction: str
) -> None:
    _check_choice("sigreg.statistics", statistics, STATISTICS)
    _check_choice("sigreg.reduction", reduction, REDUCTIONS)
    if z.ndim not in (2, 3) or slices.ndim != 2 or slices.shape[0] != z.shape[-1]:
        raise ValueError(
            f"z must be [V, B, D] or [N, D] and slices [D, K], got {z.shape} and {slices.shape}"
        )


def _subsampled(
    z: Float[Array, "*views n d"],
    index: Int[Array | np.ndarray, " rows"] | None,
    axis_name: AxisName,
) -> tuple[Float[Array, "*views m d"], int | None]:
    """Returns the rows that count, and the number of them, None for all.

    A share keeps all its rows, zeros in place of those that do not count: how many it has of them
    is not known when it is compiled.
    """
    if index is None:
        return z, None
    if axis_name is None:
        return jnp.take(z, index, axis=-2), None
    own = z.shape[-2]
    counts = jnp.zeros(own * shares.count(axis_name), bool).at[index].set(True)
    first = jax.lax.axis_index(axis_name) * own
    mask = jax.lax.dynamic_slice_in_dim(counts, first, own)
    return z * mask[:, None].astype(z.dtype), index.shape[0]


def _statistic(
    t_min: float | None, t_max: float, n_points: int, weight_type: WeightType
) -> Callable[..., Array]:
    """Returns the statistic of projections that `sigreg` asks for."""
    if t_min is None:
        return functools.partial(
            epps_pulley, t_max=t_max, n_points=n_points, weight_type=weight_type
        )
    if weight_type != "gaussian":
        raise ValueError(f"a two-sided statistic is weighted as 'gaussian', not {weight_type!r}")
    return functools.partial(epps_pulley_two_sided, t_min=t_min, t_max=t_max, num_t=n_points)


def sigreg(
    z: Float[Array, "*views n d"],
    slices: Float[Array, "d k"],
    *,
    t_max: float,
    n_points: int,
    weight_type: WeightType,
    t_min: float | None = None,
    statistics: Statistics = "per_view",
    reduction: Reduction = "mean",
    clip_value: float | None = None,
    subsample_index: Int[Array | np.ndarray, " rows"] | None = None,
    means: Means = trigonometric_means,
    axis_name: AxisName = None,
) -> Float[Array, "*statistics"]:
    """Returns SIGReg of the embeddings: their Epps-Pulley statistics along random directions.

    Args:
        z: [V, B, D] or [N, D], any float dtype; computed in float32 (float64 stays).
        slices: [D, K] unit columns, from `random_slices`.
        t_max: see `epps_pulley`, as for the next two.
        n_points: number of frequencies.
        weight_type: weight of the frequencies.
        t_min: if given, the statistic is `epps_pulley_two_sided` of n_points frequencies, which may
            be even; weight_type must be 'gaussian'.
        statistics: 'per_view' (one per view, N = images) or 'flattened' (one over views x images).
        reduction: 'mean' or 'sum' over slices and views; 'none' returns the statistics.
        clip_value: statistics below it count as zero and have no gradient; None = off.
        subsample_index: [S] images used of every view, from `random_subsample`; for 'flattened'
            statistics, rows of the B x V rows in image-major order; None = all. They count in the
            images of all shares.
        means: see `characteristic_function`.
        axis_name: see `shares`.

    Returns:
        A scalar, or the statistics [V, K] ([K] without views or flattened) for reduction 'none'.

    Raises:
        ValueError: shapes that do not fit, an unknown choice, or see `epps_pulley`.
    """
    _check_inputs(z, slices, statistics, reduction)
    z = at_least_float32(z)
    if statistics == "flattened" and z.ndim == 3:
        # Images before views: merging the axes then keeps a sharded batch axis in place.
        z = jnp.swapaxes(z, 0, 1).reshape(-1, z.shape[-1])
    z, selected = _subsampled(z, subsample_index, axis_name)
    highest = jax.lax.Precision.HIGHEST
    projections = jnp.matmul(z, slices.astype(z.dtype), precision=highest)
    statistic = _statistic(t_min, t_max, n_points, weight_type)
    values = statistic(projections, means=means, axis_name=axis_name, selected=selected)
    return reduced(values, reduction, clip_value)


def reduced(
    values: Float[Array, "*statistics"], reduction: Reduction, clip_value: float | None
) -> Float[Array, "*rest"]:
    """Returns statistics clipped and reduced; arguments as in `sigreg`."""
    if clip_value is not None:
        values = jnp.where(values < clip_value, 0.0, values)
    if reduction == "none":
        return values
    return jnp.mean(values) if reduction == "mean" else jnp.sum(values)
