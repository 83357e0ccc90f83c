"""Statistics of the empirical distribution function against that of N(0, 1).

The hypothesis is simple: the samples are N(0, 1), and no mean or variance is estimated. F is the
distribution function of N(0, 1), and x_(1) <= ... <= x_(N) are the sorted samples.

Sources: LeJEPA, arXiv 2511.08544, section 4; M. A. Stephens, "EDF statistics for goodness of fit
and some comparisons", JASA 69 (1974).
"""

import jax.numpy as jnp
from jax.scipy.special import log_ndtr, ndtr
from jaxtyping import Array, Float


def anderson_darling(samples: Float[Array, "*batch n k"]) -> Float[Array, "*batch k"]:
    """Returns -N - 1/N sum_i (2i - 1) [log F(x_(i)) + log(1 - F(x_(N+1-i)))] of each column.

    The logarithms are those of the tails themselves, so that no far sample gives infinity.

    Args:
        samples: [..., N, K], float32 or float64.

    Returns:
        [..., K]; the 5 % point is 2.492.
    """
    count = samples.shape[-2]
    ordered = jnp.sort(samples, axis=-2)
    odd = (2 * jnp.arange(1, count + 1, dtype=samples.dtype) - 1)[:, None]
    tails = log_ndtr(ordered) + log_ndtr(-jnp.flip(ordered, axis=-2))
    # The mean of the weights is N: its subtraction per term keeps the digits that cancel.
    return -jnp.sum(odd * (tails + 1) / count, axis=-2)


def _distances(
    samples: Float[Array, "*batch n k"],
) -> tuple[Float[Array, "*batch n k"], Float[Array, "*batch k"]]:
    """Returns F(x_(i)), and the statistic of `cramer_von_mises`."""
    count = samples.shape[-2]
    values = ndtr(jnp.sort(samples, axis=-2))
    middles = ((jnp.arange(count, dtype=samples.dtype) + 0.5) / count)[:, None]
    return values, 1 / (12 * count) + jnp.sum(jnp.square(values - middles), axis=-2)


def cramer_von_mises(samples: Float[Array, "*batch n k"]) -> Float[Array, "*batch k"]:
    """Returns 1/(12N) + sum_i (F(x_(i)) - (2i - 1)/(2N))^2 of each column.

    Args:
        samples: [..., N, K], float32 or float64.

    Returns:
        [..., K]; the 5 % point is 0.461.
    """
    return _distances(samples)[1]


def watson(samples: Float[Array, "*batch n k"]) -> Float[Array, "*batch k"]:
    """Returns Watson's U^2, Cramer-von Mises less N (mean_i F(x_i) - 1/2)^2, of each column.

    Args:
        samples: [..., N, K], float32 or float64.

    Returns:
        [..., K]; the 5 % point is 0.187.
    """
    values, distance = _distances(samples)
    return distance - samples.shape[-2] * jnp.square(jnp.mean(values, axis=-2) - 0.5)
