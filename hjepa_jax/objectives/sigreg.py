"""SIGReg: sketched isotropic-Gaussian regularisation by the Epps-Pulley statistic.

y = z A projects the embeddings on random directions; per direction the Epps-Pulley statistic is
the weighted L2 distance between the empirical characteristic function of y and that of N(0, 1):

    N sum_j w_j [ (mean_n cos(t_j y_n) - exp(-t_j^2/2))^2 + (mean_n sin(t_j y_n))^2 ].

Source: LeJEPA, arXiv 2511.08544, section 4.

The frequencies are equally spaced, so cos and sin are evaluated once and every further frequency
is one rotation (angle addition); no [N, K, T] array is ever formed. The backward pass evaluates
the trigonometric polynomial of the gradient by Horner's rule from the same rotation. Batches are
reduced by plain sums, so under `jit` a batch-sharded input gives the statistic of the global batch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hjepa_jax.objectives.regularizers import at_least_float32

WEIGHT_TYPES = ("gaussian", "uniform")
STATISTICS = ("per_view", "flattened")
REDUCTIONS = ("mean", "sum", "none")

# How the means of cos and sin are computed: (y [..., N, K], start, step, count) to two arrays
# [count, ..., K], as `characteristic_function` says.
Means = Callable[[jax.Array, float, float, int], tuple[jax.Array, jax.Array]]

# A block of projections has at most this many elements, so that a handful fits a CPU core's
# cache, and at most this share of the slices, to bound the memory.
_BLOCK_ELEMENTS = 1 << 16
_BLOCK_SHARE = 24
_SIMD_WIDTH = 8


@dataclasses.dataclass(frozen=True)
class SIGRegSettings:
    """Settings of `sigreg`; field names are those of `config.sigreg`.

    num_slices: directions K drawn by the caller with `random_slices`.
    t_max, n_points: frequencies linspace(0, t_max, n_points); n_points odd and >= 3.
    weight_type: 'gaussian' weighs frequency t by exp(-t^2/2), 'uniform' by 1.
    subsample: use this many images, the rows `subsample_index` of every view; None = all.
    clip_value: statistics below it count as zero and have no gradient; None = off.
    reduction: 'mean' or 'sum' over slices and views; 'none' returns [V, K] (or [K]).
    statistics: 'per_view' (one per view, N = images) or 'flattened' (one over views x images).
    """

    num_slices: int = 64
    t_max: float = 3.0
    n_points: int = 9
    weight_type: str = "gaussian"
    subsample: int | None = None
    clip_value: float | None = None
    reduction: str = "mean"
    statistics: str = "per_view"

    def __post_init__(self) -> None:
        _check_quadrature(self.t_max, self.n_points, self.weight_type)
        _check_choice("sigreg.reduction", self.reduction, REDUCTIONS)
        _check_choice("sigreg.statistics", self.statistics, STATISTICS)
        if self.num_slices < 1:
            raise ValueError(f"sigreg.num_slices must be at least 1, got {self.num_slices}")
        if self.subsample is not None and self.subsample < 1:
            raise ValueError(f"sigreg.subsample must be at least 1 or None, got {self.subsample}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_quadrature(t_max: float, n_points: int, weight_type: str) -> None:
    _check_choice("sigreg.weight_type", weight_type, WEIGHT_TYPES)
    if n_points < 3 or n_points % 2 == 0:
        raise ValueError(f"sigreg.n_points must be odd and at least 3, got {n_points}")
    if not t_max > 0:
        raise ValueError(f"sigreg.t_max must be positive, got {t_max}")


def random_slices(
    key: jax.Array, dim: int, num_slices: int, dtype: jax.typing.DTypeLike = jnp.float32
) -> jax.Array:
    """Draws directions [dim, num_slices], columns uniform on the unit sphere."""
    directions = jax.random.normal(key, (dim, num_slices), dtype)
    return directions / jnp.linalg.norm(directions, axis=0, keepdims=True)


def random_subsample(key: jax.Array, num_images: int, subsample: int | None) -> jax.Array | None:
    """Draws the rows [subsample] for `sigreg` without replacement; None when all are used."""
    if subsample is None or subsample >= num_images:
        return None
    return jax.random.permutation(key, num_images)[:subsample]


def _rotate(
    cosine: jax.Array, sine: jax.Array, cosine_step: jax.Array, sine_step: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns cos(a + b), sin(a + b) from those of a and b."""
    return cosine * cosine_step - sine * sine_step, sine * cosine_step + cosine * sine_step


def _phases(
    y: jax.Array, start: float, step: float
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns (cos, sin)(start y) and (cos, sin)(step y)."""
    turn = (jnp.cos(step * y), jnp.sin(step * y))
    return (turn if start == step else (jnp.cos(start * y), jnp.sin(start * y))), turn


def _means_unrolled(
    y: jax.Array, start: float, step: float, count: int
) -> tuple[jax.Array, jax.Array]:
    """The means as `count` sibling reductions, which accelerators fuse into few kernels."""
    (cosine, sine), turn = _phases(y, start, step)
    cosines, sines = [], []
    for index in range(count):
        if index:
            cosine, sine = _rotate(cosine, sine, *turn)
        cosines.append(jnp.mean(cosine, axis=-2))
        sines.append(jnp.mean(sine, axis=-2))
    return jnp.stack(cosines), jnp.stack(sines)


def _means_scanned(
    y: jax.Array, start: float, step: float, count: int
) -> tuple[jax.Array, jax.Array]:
    """The means by a loop over frequencies: XLA:CPU would recompute an unrolled chain."""
    first, turn = _phases(y, start, step)

    def body(phase: tuple[jax.Array, jax.Array], _: None) -> tuple:
        means = jnp.mean(phase[0], axis=-2), jnp.mean(phase[1], axis=-2)
        return _rotate(*phase, *turn), means

    return jax.lax.scan(body, first, None, length=count, unroll=4)[1]


def _means_blocked(
    y: jax.Array, start: float, step: float, count: int
) -> tuple[jax.Array, jax.Array]:
    """`_means_scanned` on blocks of slices that fit the cache and cost little memory.

    The blocks split the slices, never the rows: rows may be sharded over devices.
    """
    slices = y.shape[-1]
    rows = math.prod(y.shape[:-1])
    # A power of two fills the SIMD registers: other widths take twice the time.
    most = max(_SIMD_WIDTH, min(slices // _BLOCK_SHARE, _BLOCK_ELEMENTS // rows))
    width = 1 << (most.bit_length() - 1)
    if width >= slices:
        return _means_scanned(y, start, step, count)

    def body(index: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        # The last block is moved back to end at the edge; what overlaps is written twice, equally.
        begin = jnp.minimum(index * width, slices - width)
        block = jax.lax.dynamic_slice_in_dim(y, begin, width, axis=-1)
        means = _means_scanned(block, start, step, count)
        update = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=-1)
        return update(sums[0], means[0], begin), update(sums[1], means[1], begin)

    empty = jnp.zeros((count, *y.shape[:-2], slices), y.dtype)
    return jax.lax.fori_loop(0, -(-slices // width), body, (empty, empty))


def trigonometric_means(
    y: jax.Array, start: float, step: float, count: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the means that `characteristic_function` is made of, by the platform's best form."""
    return jax.lax.platform_dependent(
        y,
        cpu=lambda y: _means_blocked(y, start, step, count),
        default=lambda y: _means_unrolled(y, start, step, count),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def characteristic_function(
    y: jax.Array, start: float, step: float, count: int, means: Means = trigonometric_means
) -> tuple[jax.Array, jax.Array]:
    """Returns the means of cos(t y) and sin(t y) over axis -2, t = start + step * 0..count-1.

    Args:
        y: [..., N, K], float32 or float64.
        start: the first frequency.
        step: the distance of the frequencies.
        count: the number of frequencies.
        means: what computes them; only its value is used, the gradient is given here.

    Returns:
        Two arrays [count, ..., K].
    """
    return means(y, start, step, count)


def _characteristic_forward(
    y: jax.Array, start: float, step: float, count: int, means: Means
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    return means(y, start, step, count), y


def _characteristic_backward(
    start: float,
    step: float,
    count: int,
    _means: Means,
    y: jax.Array,
    cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array]:
    """Evaluates sum_j t_j (b_j cos(t_j y) - a_j sin(t_j y)) / N, (a, b) the cotangents.

    It is the real part of sum_j c_j e^(i t_j y) with c_j = t_j (b_j + i a_j): Horner in e^(i dt y).
    """
    frequencies = jnp.asarray(start + step * np.arange(count), y.dtype) / y.shape[-2]
    scale = frequencies.reshape((count,) + (1,) * y.ndim)
    imaginary = scale * cotangents[0][..., None, :]
    real = scale * cotangents[1][..., None, :]
    first, turn = _phases(y, start, step)
    x, w = jnp.broadcast_to(real[-1], y.shape), jnp.broadcast_to(imaginary[-1], y.shape)
    for index in range(count - 2, -1, -1):
        x, w = _rotate(x, w, *turn)
        x, w = x + real[index], w + imaginary[index]
    return (_rotate(x, w, *first)[0],)


characteristic_function.defvjp(_characteristic_forward, _characteristic_backward)


def epps_pulley(
    projections: jax.Array,
    *,
    t_max: float,
    n_points: int,
    weight_type: str,
    means: Means = trigonometric_means,
) -> jax.Array:
    """Returns the Epps-Pulley statistic against N(0, 1) of each column.

    Args:
        projections: [..., N, K]; bfloat16 and float16 are computed in float32.
        t_max: largest frequency; t_j = linspace(0, t_max, n_points).
        n_points: number of frequencies, odd and >= 3.
        weight_type: 'gaussian' or 'uniform'.
        means: see `characteristic_function`.

    Returns:
        [..., K], float32 (float64 for a float64 input).

    Raises:
        ValueError: an invalid n_points, t_max or weight_type, or fewer than two axes.
    """
    _check_quadrature(t_max, n_points, weight_type)
    if projections.ndim < 2:
        raise ValueError(f"projections must be [..., N, K], got shape {projections.shape}")
    step = t_max / (n_points - 1)
    # At t = 0 the term vanishes identically, so the frequencies start at `step`.
    t = step * np.arange(1, n_points)
    weights = np.full(n_points - 1, 2.0 * step)
    weights[-1] = step
    if weight_type == "gaussian":
        weights = weights * np.exp(-0.5 * t**2)
    return _weighted_distance(at_least_float32(projections), step, step, weights, means)


def epps_pulley_two_sided(
    projections: jax.Array, *, t_min: float, t_max: float, num_t: int
) -> jax.Array:
    """The statistic by the trapezoid rule on linspace(t_min, t_max, num_t), Gaussian weight.

    The published code has this variant beside the one-sided one and does not use it.

    Args:
        projections: [..., N, K].
        t_min: smallest frequency, may be negative.
        t_max: largest frequency.
        num_t: number of frequencies, >= 2.

    Returns:
        [..., K].

    Raises:
        ValueError: t_min >= t_max, or fewer than two frequencies.
    """
    if not t_min < t_max or num_t < 2:
        raise ValueError(f"need t_min < t_max and num_t >= 2, got {t_min}, {t_max}, {num_t}")
    step = (t_max - t_min) / (num_t - 1)
    t = t_min + step * np.arange(num_t)
    weights = np.full(num_t, step)
    weights[[0, -1]] = 0.5 * step
    return _weighted_distance(
        at_least_float32(projections), t_min, step, weights * np.exp(-0.5 * t**2)
    )


def _weighted_distance(
    y: jax.Array,
    start: float,
    step: float,
    weights: np.ndarray,
    means: Means = trigonometric_means,
) -> jax.Array:
    """Returns N sum_j w_j |empirical - Gaussian characteristic function|^2, [..., K]."""
    count = len(weights)
    parts: tuple[jax.Array, jax.Array] = characteristic_function(y, start, step, count, means)
    cosines, sines = parts
    shape = (count,) + (1,) * (cosines.ndim - 1)
    t = start + step * np.arange(count)
    gaussian = jnp.asarray(np.exp(-0.5 * t**2), y.dtype).reshape(shape)
    weight = jnp.asarray(weights, y.dtype).reshape(shape)
    distance = jnp.square(cosines - gaussian) + jnp.square(sines)
    return y.shape[-2] * jnp.sum(weight * distance, axis=0)


def sigreg(
    z: jax.Array,
    slices: jax.Array,
    settings: SIGRegSettings,
    *,
    subsample_index: jax.Array | None = None,
    means: Means = trigonometric_means,
) -> jax.Array:
    """Returns SIGReg of the embeddings.

    Args:
        z: [V, B, D] or [N, D], any float dtype; computed in float32 (float64 stays).
        slices: [D, K] unit columns, from `random_slices`.
        settings: see `SIGRegSettings`.
        subsample_index: [S] images used of every view, from `random_subsample`; for 'flattened'
            statistics, rows of the B x V rows in image-major order.
        means: see `characteristic_function`.

    Returns:
        A scalar, or the statistics [V, K] ([K] without views or flattened) for reduction 'none'.

    Raises:
        ValueError: shapes that do not fit, or settings.subsample without subsample_index.
    """
    if z.ndim not in (2, 3) or slices.ndim != 2 or slices.shape[0] != z.shape[-1]:
        raise ValueError(
            f"z must be [V, B, D] or [N, D] and slices [D, K], got {z.shape} and {slices.shape}"
        )
    z = at_least_float32(z)
    if settings.statistics == "flattened" and z.ndim == 3:
        # Images before views: merging the axes then keeps a sharded batch axis in place.
        z = jnp.swapaxes(z, 0, 1).reshape(-1, z.shape[-1])
    if subsample_index is not None:
        z = jnp.take(z, subsample_index, axis=-2)
    elif settings.subsample is not None and settings.subsample < z.shape[-2]:
        raise ValueError(
            f"sigreg.subsample = {settings.subsample} needs subsample_index "
            "(draw it with random_subsample)"
        )
    highest = jax.lax.Precision.HIGHEST
    projections = jnp.matmul(z, slices.astype(z.dtype), precision=highest)
    statistics = epps_pulley(
        projections,
        t_max=settings.t_max,
        n_points=settings.n_points,
        weight_type=settings.weight_type,
        means=means,
    )
    if settings.clip_value is not None:
        statistics = jnp.where(statistics < settings.clip_value, 0.0, statistics)
    if settings.reduction == "none":
        return statistics
    return jnp.mean(statistics) if settings.reduction == "mean" else jnp.sum(statistics)
