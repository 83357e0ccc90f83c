"""VISReg: mean, standard deviation and shape of each view's states, each by a term of its own.

Source: "VISReg", arXiv 2606.02572.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hjepa_jax.objectives import shares
from hjepa_jax.objectives.baselines.views import columns, images, rows
from hjepa_jax.objectives.normality.quantiles import normal_quantiles
from hjepa_jax.objectives.regularizers import at_least_float32
from hjepa_jax.objectives.shares import AxisName

# The least standard deviation by which states are divided.
_LEAST_STD = 1e-6


def visreg_terms(
    z: Float[Array, "views batch d"], slices: Float[Array, "d k"], axis_name: AxisName = None
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Returns the terms of the mean, of the scale, and of the shape, each a mean over views.

    With mean m and biased standard deviation s over the batch of each dimension of a view, they are
    mean_d m^2, mean_d (s - 1)^2, and the mean over directions and ranks i = 1..B of the squared
    difference between the sorted projections of (z - m) / stop_gradient(s) and the quantiles of
    N(0, 1) at i / (B + 1).

    Args:
        z: [V, B, D].
        slices: [D, K] unit columns, the same for all views.
        axis_name: see `shares`; B counts the images of all shares.

    Returns:
        Three scalars in float32 (float64 for a float64 input).

    Raises:
        ValueError: fewer than two images, or sizes that do not fit.
    """
    count, (views, _, dim) = images(z, axis_name), z.shape
    if slices.ndim != 2 or slices.shape[0] != dim:
        raise ValueError(f"slices must be [{dim}, K], got shape {slices.shape}")
    flat = columns(at_least_float32(z))
    mean = shares.row_mean(flat, axis_name)
    # Under the root, where a collapsed dimension has a finite gradient.
    std = jnp.sqrt(jnp.maximum(shares.variance(flat, axis_name), _LEAST_STD**2))
    shape = rows((flat - mean) / jax.lax.stop_gradient(std), views)
    highest = jax.lax.Precision.HIGHEST
    projections = jnp.matmul(shape, slices.astype(flat.dtype), precision=highest)
    ordered = jnp.sort(shares.gather(projections, axis_name, axis=1), axis=1)
    quantiles = normal_quantiles(count, 0.0, flat.dtype)[:, None]
    # Every share has all ranks; their mean is that of any.
    distance = shares.mean(jnp.square(ordered - quantiles), axis_name)
    return jnp.mean(jnp.square(mean)), jnp.mean(jnp.square(std - 1)), distance
