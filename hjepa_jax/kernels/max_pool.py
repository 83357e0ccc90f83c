"""Max-pooling over windows of 3x3 at stride 2, with a gradient by the place of each maximum.

Own code because XLA's gradient reads the values again to find the maximum of each window. On a GPU
this and the sums cause four times the traffic of the form here, which keeps a byte for each window
instead of the values, and on a CPU it is slower too (benchmarks/RESULTS.md). A TPU has an
instruction for XLA's form, and keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from hjepa_jax.runtime.devices import varying_alike

_SIDE, _STRIDE = 3, 2

# x, and the places of the maxima: what a platform does not use is dropped by its compiler.
_Saved = tuple[jax.Array, jax.Array]


@jax.custom_vjp
def max_pool_3x3(x: jax.Array) -> jax.Array:
    """Max-pools over 3x3 windows at stride 2, padded by 1 with -inf.

    The gradient goes to the first maximum of a window, row by row, and what several windows send to
    one value is added in float32 or wider. Reverse mode only.

    Args:
      x: finite values [N, H, W, C] of any floating-point dtype.

    Returns:
      [N, ceil(H / 2), ceil(W / 2), C], like x.
    """
    return _plain(x)


def _plain(x: jax.Array) -> jax.Array:
    """`max_pool_3x3` by XLA's operation."""
    return jax.lax.reduce_window(
        x,
        np.array(-np.inf, x.dtype),
        jax.lax.max,
        window_dimensions=(1, _SIDE, _SIDE, 1),
        window_strides=(1, _STRIDE, _STRIDE, 1),
        padding=((0, 0), (1, 1), (1, 1), (0, 0)),
    )


def _forward(x: jax.Array) -> tuple[jax.Array, _Saved]:
    y, place = jax.lax.platform_dependent(x, tpu=_without_places, default=_with_places)
    return y, (x, place)


def _backward(saved: _Saved, bar: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.platform_dependent(*saved, bar, tpu=_scattered, default=_gathered),)


max_pool_3x3.defvjp(_forward, _backward)


def _with_places(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the pooled values, and the place of the first maximum uint8, 0 to 8, like them."""
    entries = _entries(x)
    _, best = next(entries)
    place = jnp.zeros(best.shape, jnp.uint8)
    for number, values in entries:
        place = jnp.where(values > best, jnp.uint8(number), place)
        best = jnp.maximum(best, values)
    return best, place


def _entries(x: jax.Array) -> Iterator[tuple[int, jax.Array]]:
    """Yields the places of a window, row by row, with the values there, -inf in the padding."""
    images, height, width, channels = x.shape
    rows, columns = (_STRIDE * (_pooled(side) - 1) + 1 for side in (height, width))
    edge = ((0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0))
    padded = jax.lax.pad(x, np.array(-np.inf, x.dtype), edge)
    for number in range(_SIDE**2):
        i, j = divmod(number, _SIDE)
        last = (images, i + rows, j + columns, channels)
        yield number, jax.lax.slice(padded, (0, i, j, 0), last, (1, _STRIDE, _STRIDE, 1))


def _pooled(side: int) -> int:
    """Returns the number of windows along a side."""
    return (side + 1) // _STRIDE


def _gathered(x: jax.Array, place: jax.Array, bar: jax.Array) -> jax.Array:
    """Returns the gradient: each value adds what its windows send to its place in them.

    Windows come in order, so that sums round as XLA's do.
    """
    wide = bar.astype(jnp.promote_types(bar.dtype, jnp.float32))
    total = jnp.zeros(x.shape, wide.dtype)
    for number in reversed(range(_SIDE**2)):
        edges = [(0, 0, 0)] * 4
        for axis, offset in enumerate(divmod(number, _SIDE), 1):
            spread = _STRIDE * (place.shape[axis] - 1) + 1
            before = offset - 1
            edges[axis] = (before, x.shape[axis] - before - spread, _STRIDE - 1)
        sent = jnp.where(place == number, wide, 0)
        total += jax.lax.pad(sent, np.zeros((), wide.dtype), edges)
    return total.astype(x.dtype)


def _without_places(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`_with_places` for a gradient that needs x alone."""
    y = _plain(x)
    y, place = varying_alike(y, jnp.zeros(y.shape, jnp.uint8))
    return y, place


def _scattered(x: jax.Array, place: jax.Array, bar: jax.Array) -> jax.Array:
    """`_gathered` by XLA's operation, in float32 or wider."""
    del place
    wide = jnp.promote_types(x.dtype, jnp.float32)
    _, pull_back = jax.vjp(_plain, x.astype(wide))
    return pull_back(bar.astype(wide))[0].astype(x.dtype)
