"""Barlow Twins: the cross-correlation of two views is the identity.

Source: J. Zbontar, L. Jing, I. Misra, Y. LeCun, S. Deny, "Barlow Twins", ICML 2021,
arXiv 2103.03230, equations 1 and 2.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hjepa_jax.objectives import shares
from hjepa_jax.objectives.baselines.views import columns, cross_covariance, images, rows
from hjepa_jax.objectives.regularizers import at_least_float32
from hjepa_jax.objectives.shares import AxisName


def cross_correlation_terms(
    z: Float[Array, "views batch d"], *, eps: float, axis_name: AxisName = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns sum_i (1 - C_ii)^2 and sum_{i != j} C_ij^2, each the mean over pairs of views.

    C_ij is the correlation over the batch of dimension i of one view and dimension j of the other.
    The paper has two views; more are compared pair by pair.

    Args:
        z: [V, B, D].
        eps: added to variances, biased as batch normalization's.
        axis_name: see `shares`.

    Returns:
        Two scalars in float32 (float64 for a float64 input).

    Raises:
        ValueError: fewer than two views or images.
    """
    count, (views, _, dim) = images(z, axis_name), z.shape
    if views < 2:
        raise ValueError("a correlation between views needs at least two, got 1")
    flat = columns(at_least_float32(z))
    scale = jnp.sqrt(shares.variance(flat, axis_name) + eps).reshape(views, dim)
    centered = rows(shares.centered(flat, axis_name), views)
    diagonal, others = [], []
    off = 1 - jnp.eye(dim, dtype=flat.dtype)
    for one, two in zip(*np.triu_indices(views, 1)):
        covariance = cross_covariance(centered[one], centered[two], count, axis_name)
        correlation = covariance / (scale[one][:, None] * scale[two])
        diagonal.append(jnp.sum(jnp.square(1 - jnp.diagonal(correlation))))
        others.append(jnp.sum(jnp.square(correlation * off)))
    return jnp.mean(jnp.stack(diagonal)), jnp.mean(jnp.stack(others))
