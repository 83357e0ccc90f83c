"""Statistics of vectors against a multivariate Gaussian, without projections.

Both are N times the squared distance of the empirical characteristic function from that of
N(0, I), weighted by a Gaussian of variance beta^2, in closed form from the distances of all pairs.

Sources: L. Baringhaus & N. Henze, "A consistent test for multivariate normality based on the
empirical characteristic function", Metrika 35 (1988); N. Henze & B. Zirkler, "A class of invariant
consistent tests for multivariate normality", Communications in Statistics 19 (1990).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Added to the covariance, times its mean eigenvalue: lost dimensions then stay constant, not NaN.
_RIDGE = 1e-6
# Keeps equal samples finite.
_LEAST_VARIANCE = 1e-12


def _closed_form(x: Float[Array, "*batch n d"], beta: float) -> Float[Array, "*batch"]:
    """Returns the statistic of vectors that are compared with N(0, I)."""
    count, dim = x.shape[-2:]
    norms = jnp.sum(jnp.square(x), axis=-1)
    inner = jnp.einsum("...nd,...md->...nm", x, x, precision=jax.lax.Precision.HIGHEST)
    distances = norms[..., :, None] + norms[..., None, :] - 2 * inner
    pairs = jnp.sum(jnp.exp(-(beta**2) / 2 * distances), axis=(-2, -1)) / count
    width = 1 + beta**2
    cross = jnp.sum(jnp.exp(-(beta**2) / (2 * width) * norms), axis=-1) * width ** (-dim / 2)
    return pairs - 2 * cross + count * (1 + 2 * beta**2) ** (-dim / 2)


def bhep(x: Float[Array, "*batch n d"], beta: float | None = None) -> Float[Array, "*batch"]:
    """Returns the Baringhaus-Henze-Epps-Pulley statistic against N(0, I), a simple hypothesis.

    The samples are not standardized, so that it sees mean and covariance as well.

    Args:
        x: [..., N, D], float32 or float64.
        beta: width of the weights; None = 1/sqrt(D), for which the pairs' terms are neither all 1
            nor all 0 in high dimensions.

    Returns:
        [...].
    """
    return _closed_form(x, x.shape[-1] ** -0.5 if beta is None else beta)


def henze_zirkler_width(count: int, dim: int) -> float:
    """Returns Henze and Zirkler's beta of N samples in D dimensions."""
    return ((2 * dim + 1) * count / 4) ** (1 / (dim + 4)) / 2**0.5


def henze_zirkler(x: Float[Array, "*batch n d"]) -> Float[Array, "*batch"]:
    """Returns the Henze-Zirkler statistic, whose hypothesis is composite: any mean and covariance.

    The samples are standardized by their mean and biased covariance, to which 1e-6 of its mean
    eigenvalue is added. As a regularizer it does not see a collapse of the scale by itself.

    Args:
        x: [..., N, D], float32 or float64, of more samples than dimensions.

    Returns:
        [...].

    Raises:
        ValueError: not more samples than dimensions.
    """
    count, dim = x.shape[-2:]
    if count <= dim:
        raise ValueError(f"the covariance of {count} samples in {dim} dimensions is singular")
    highest = jax.lax.Precision.HIGHEST
    centered = x - jnp.mean(x, axis=-2, keepdims=True)
    covariance = jnp.einsum("...nd,...ne->...de", centered, centered, precision=highest) / count
    ridge = _RIDGE * jnp.trace(covariance, axis1=-2, axis2=-1) / dim + _LEAST_VARIANCE
    eye = jnp.eye(dim, dtype=x.dtype)
    factor = jnp.linalg.cholesky(covariance + ridge[..., None, None] * eye)
    # Solved from the right, the rows stay the samples.
    standard = jax.lax.linalg.triangular_solve(
        factor, centered, left_side=False, lower=True, transpose_a=True
    )
    return _closed_form(standard, henze_zirkler_width(count, dim))
