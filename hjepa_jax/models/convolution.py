"""The one place where convolutions are computed."""

from __future__ import annotations

import jax


def conv2d(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Convolves x [N,H,W,C] with kernel [kh,kw,C,F] (cross-correlation), padded symmetrically.

    Returns [N,H',W',F] with H' = floor((H + 2*padding - kh)/stride) + 1, in the dtype of both.
    """
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
