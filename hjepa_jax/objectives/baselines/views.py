"""Moments of each view's states over a batch, whose images may be split over devices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hjepa_jax.objectives import shares
from hjepa_jax.objectives.shares import AxisName


def images(z: Float[Array, "views batch d"], axis_name: AxisName) -> int:
    """Returns the number of images of all shares.

    Args:
        z: [V, B, D], a share of the images.
        axis_name: see `shares`.

    Raises:
        ValueError: z has not three axes, or there are fewer than two images.
    """
    if z.ndim != 3:
        raise ValueError(f"z must be [V, B, D], got shape {z.shape}")
    count = z.shape[1] * shares.count(axis_name)
    if count < 2:
        raise ValueError(f"a variance needs at least 2 images, got {count}")
    return count


def columns(z: Float[Array, "views batch d"]) -> Float[Array, "batch n"]:
    """Returns [B, V * D]: `shares` then reduces each dimension of each view by itself."""
    return jnp.swapaxes(z, 0, 1).reshape(z.shape[1], -1)


def rows(x: Float[Array, "batch n"], views: int) -> Float[Array, "{views} batch n//{views}"]:
    """Returns the [V, B, D] of `columns`."""
    return jnp.swapaxes(x.reshape(x.shape[0], views, -1), 0, 1)


def cross_covariance(
    a: Float[Array, "batch d"], b: Float[Array, "batch d"], count: int, axis_name: AxisName
) -> Float[Array, "d d"]:
    """Returns sum_n a_n b_n^T / count over the images of all shares.

    Args:
        a: centered states.
        b: centered states of the same images.
        count: the divisor.
        axis_name: see `shares`.
    """
    own = jnp.matmul(a.T, b, precision=jax.lax.Precision.HIGHEST)
    return shares.sum_shares(own, axis_name) / count
