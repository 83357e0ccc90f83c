"""The empirical characteristic function at equally spaced frequencies, for SIGReg.

The frequencies are equally spaced, so cos and sin are evaluated once and every further frequency
is one rotation (angle addition); no [N, K, T] array is ever formed. The backward pass evaluates
the trigonometric polynomial of the gradient by Horner's rule from the same rotation. Batches are
reduced by plain sums, so under `jit` a batch-sharded input gives the statistic of the global batch;
inside `jax.shard_map` the input is one share of it, see `shares`.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hjepa_jax.objectives import shares
from hjepa_jax.objectives.shares import AxisName

# How the means of cos and sin are computed, (y, start, step, count) -> (cosines, sines): see
# `characteristic_function`.
Means = Callable[
    [Float[Array, "*batch n k"], float, float, int],
    tuple[Float[Array, "count *batch k"], Float[Array, "count *batch k"]],
]
_Phase = tuple[Float[Array, "*shape"], Float[Array, "*shape"]]

# A block of projections has at most this many elements, so that a handful fits a CPU core's
# cache, and at most this share of the slices, to bound the memory.
_BLOCK_ELEMENTS = 1 << 16
_BLOCK_SHARE = 24
_SIMD_WIDTH = 8


def _rotate(
    cosine: Float[Array, "*shape"],
    sine: Float[Array, "*shape"],
    cosine_step: Float[Array, "*shape"],
    sine_step: Float[Array, "*shape"],
) -> _Phase:
    """Returns cos(a + b), sin(a + b) from those of a and b."""
    return cosine * cosine_step - sine * sine_step, sine * cosine_step + cosine * sine_step


def _phases(y: Float[Array, "*shape"], start: float, step: float) -> tuple[_Phase, _Phase]:
    """Returns (cos, sin)(start y) and (cos, sin)(step y)."""
    turn = (jnp.cos(step * y), jnp.sin(step * y))
    return (turn if start == step else (jnp.cos(start * y), jnp.sin(start * y))), turn


def _means_unrolled(
    y: Float[Array, "*batch n k"], start: float, step: float, count: int
) -> tuple[Float[Array, "{count} *batch k"], Float[Array, "{count} *batch k"]]:
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
    y: Float[Array, "*batch n k"], start: float, step: float, count: int
) -> tuple[Float[Array, "{count} *batch k"], Float[Array, "{count} *batch k"]]:
    """The means by a loop over frequencies: XLA:CPU would recompute an unrolled chain."""
    first, turn = _phases(y, start, step)

    def body(
        phase: _Phase, _: None
    ) -> tuple[_Phase, tuple[Float[Array, "*batch k"], Float[Array, "*batch k"]]]:
        means = jnp.mean(phase[0], axis=-2), jnp.mean(phase[1], axis=-2)
        return _rotate(*phase, *turn), means

    return jax.lax.scan(body, first, None, length=count, unroll=4)[1]


def _means_blocked(
    y: Float[Array, "*batch n k"], start: float, step: float, count: int
) -> tuple[Float[Array, "{count} *batch k"], Float[Array, "{count} *batch k"]]:
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

    def body(index: Int[Array, ""], sums: _Phase) -> _Phase:
        # The last block is moved back to end at the edge; what overlaps is written twice, equally.
        begin = jnp.minimum(index * width, slices - width)
        block = jax.lax.dynamic_slice_in_dim(y, begin, width, axis=-1)
        means = _means_scanned(block, start, step, count)
        update = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=-1)
        return update(sums[0], means[0], begin), update(sums[1], means[1], begin)

    empty = jnp.zeros_like(y, shape=(count, *y.shape[:-2], slices))
    return jax.lax.fori_loop(0, -(-slices // width), body, (empty, empty))


def trigonometric_means(
    y: Float[Array, "*batch n k"], start: float, step: float, count: int
) -> tuple[Float[Array, "{count} *batch k"], Float[Array, "{count} *batch k"]]:
    """Computes the means of `characteristic_function` in the form that suits the platform.

    Args:
        y: projections [..., N, K].
        start: the first frequency.
        step: the distance between frequencies.
        count: the number of frequencies.

    Returns:
        (cosines, sines), each [count, ..., K].
    """
    return jax.lax.platform_dependent(
        y,
        cpu=lambda y: _means_blocked(y, start, step, count),
        default=lambda y: _means_unrolled(y, start, step, count),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def characteristic_function(
    y: Float[Array, "*batch n k"],
    start: float,
    step: float,
    count: int,
    means: Means = trigonometric_means,
    axis_name: AxisName = None,
) -> tuple[Float[Array, "{count} *batch k"], Float[Array, "{count} *batch k"]]:
    """Returns the means of cos(t y) and sin(t y) over axis -2, t = start + step * 0..count-1.

    Args:
        y: [..., N, K], float32 or float64.
        start: the first frequency.
        step: the distance between frequencies.
        count: the number of frequencies.
        means: computes them; only its value is used, the gradient is defined here.
        axis_name: see `shares`; y has a share of the rows, and the means are over all of them.

    Returns:
        (cosines, sines), each [count, ..., K], in the dtype of y.
    """
    return shares.mean_shares(means(y, start, step, count), axis_name)


def _characteristic_forward(
    y: Float[Array, "*batch n k"],
    start: float,
    step: float,
    count: int,
    means: Means,
    axis_name: AxisName,
) -> tuple[
    tuple[Float[Array, "{count} *batch k"], Float[Array, "{count} *batch k"]],
    Float[Array, "*batch n k"],
]:
    return shares.mean_shares(means(y, start, step, count), axis_name), y


def _characteristic_backward(
    start: float,
    step: float,
    count: int,
    _means: Means,
    axis_name: AxisName,
    y: Float[Array, "*batch n k"],
    cotangents: tuple[Float[Array, "{count} *batch k"], Float[Array, "{count} *batch k"]],
) -> tuple[Float[Array, "*batch n k"]]:
    """Evaluates sum_j t_j (b_j cos(t_j y) - a_j sin(t_j y)) / N, (a, b) the cotangents.

    It is the real part of sum_j c_j e^(i t_j y) with c_j = t_j (b_j + i a_j): Horner in e^(i dt y).
    """
    rows = y.shape[-2] * shares.count(axis_name)
    frequencies = jnp.asarray(start + step * np.arange(count), y.dtype) / rows
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
