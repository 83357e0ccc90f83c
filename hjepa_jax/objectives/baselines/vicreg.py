"""VICReg: views agree, and no dimension collapses or repeats another.

Source: A. Bardes, J. Ponce, Y. LeCun, "VICReg", ICLR 2022, arXiv 2105.04906, equations 1 to 4 and
Algorithm 1, whose invariance is a mean over dimensions.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hjepa_jax.objectives import shares
from hjepa_jax.objectives.baselines.views import columns, cross_covariance, images, rows
from hjepa_jax.objectives.regularizers import at_least_float32
from hjepa_jax.objectives.shares import AxisName


def view_distance(z: Float[Array, "views batch d"], axis_name: AxisName = None) -> Float[Array, ""]:
    """Returns the mean over pairs of views, images and dimensions of the squared difference.

    Args:
        z: [V, B, D].
        axis_name: see `shares`.

    Raises:
        ValueError: fewer than two views.
    """
    if z.ndim != 3 or z.shape[0] < 2:
        raise ValueError(f"z must be [V, B, D] with at least two views, got shape {z.shape}")
    z = at_least_float32(z)
    one, two = np.triu_indices(z.shape[0], 1)
    return shares.mean(jnp.square(z[one] - z[two]), axis_name)


def variance_covariance(
    z: Float[Array, "views batch d"], *, gamma: float, eps: float, axis_name: AxisName = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the variance and the covariance term of a pair of views.

    A pair has the terms of both views, so the mean over all pairs is twice the mean over views of
    mean_j relu(gamma - sqrt(var_j + eps)) and of sum_{i != j} cov_ij^2 / D, with unbiased moments.

    Args:
        z: [V, B, D].
        gamma: the standard deviation below which a dimension is penalized.
        eps: added to the variance under the square root.
        axis_name: see `shares`.

    Returns:
        Two scalars in float32 (float64 for a float64 input).

    Raises:
        ValueError: fewer than two images.
    """
    count, (views, _, dim) = images(z, axis_name), z.shape
    flat = columns(at_least_float32(z))
    variance = shares.variance(flat, axis_name) * (count / (count - 1))
    hinge = 2 * jnp.mean(jax.nn.relu(gamma - jnp.sqrt(variance + eps)))
    centered = rows(shares.centered(flat, axis_name), views)
    others = 1 - jnp.eye(dim, dtype=flat.dtype)
    covariances = [cross_covariance(x, x, count - 1, axis_name) * others for x in centered]
    total = sum(jnp.sum(jnp.square(covariance)) for covariance in covariances)
    return hinge, 2 * jnp.asarray(total) / (views * dim)
