"""Statistics of moments and order statistics: is the shape of the samples Gaussian?

The hypothesis of `shapiro_wilk` and `jarque_bera` is composite: the samples are Gaussian of any
mean and variance, which are estimated. As regularizers they do not see a collapse by themselves.
That of `extended_jarque_bera` is simple: N(0, 1).

Sources: S. S. Shapiro & M. B. Wilk, Biometrika 52 (1965), with the weights of P. Royston,
"Approximating the Shapiro-Wilk W-test for non-normality", Statistics and Computing 2 (1992);
C. M. Jarque & A. K. Bera, Economics Letters 6 (1980); LeJEPA, arXiv 2511.08544, section 4.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from hjepa_jax.objectives.normality.quantiles import normal_quantiles

# Royston's polynomials in 1/sqrt(N) of the last two weights, from the first power on.
_LAST = (0.221157, -0.147981, -2.071190, 4.434685, -2.706056)
_BEFORE_LAST = (0.042981, -0.293762, -1.752461, 5.682633, -3.582633)
# Least samples of these weights.
LEAST_SAMPLES = 6
# Keeps quotients finite where all samples are equal.
_LEAST_VARIANCE = 1e-12


def _weights(count: int, dtype: jnp.dtype) -> Float[Array, " {count}"]:
    """Returns Royston's weights of the sorted samples, of norm 1."""
    scores = normal_quantiles(count, 0.375, dtype)
    norm = jnp.sum(jnp.square(scores))
    powers = [count ** (-0.5 * power) for power in range(1, 6)]
    last, before = (
        scores[-place] / jnp.sqrt(norm) + sum(c * power for c, power in zip(polynomial, powers))
        for place, polynomial in ((1, _LAST), (2, _BEFORE_LAST))
    )
    inner = scores[2:-2]
    rest = norm - 2 * jnp.square(scores[-1]) - 2 * jnp.square(scores[-2])
    scale = jnp.sqrt((1 - 2 * jnp.square(last) - 2 * jnp.square(before)) / rest)
    ends = jnp.stack([before, last])
    return jnp.concatenate([-ends[::-1], inner * scale, ends])


def _centered(
    samples: Float[Array, "*batch n k"],
) -> tuple[Float[Array, "*batch n k"], Float[Array, "*batch k"]]:
    """Returns samples minus their mean, and the biased variance."""
    centered = samples - jnp.mean(samples, axis=-2, keepdims=True)
    variance = jnp.mean(jnp.square(centered), axis=-2)
    return centered, jnp.maximum(variance, _LEAST_VARIANCE)


def shapiro_wilk(samples: Float[Array, "*batch n k"]) -> Float[Array, "*batch k"]:
    """Returns N (1 - W) of each column, W = (sum_i a_i x_(i))^2 / sum_i (x_i - mean)^2.

    Args:
        samples: [..., N, K], float32 or float64.

    Returns:
        [..., K].

    Raises:
        ValueError: fewer than 6 samples.
    """
    count = samples.shape[-2]
    if count < LEAST_SAMPLES:
        raise ValueError(f"the Shapiro-Wilk weights need {LEAST_SAMPLES} samples, got {count}")
    centered, variance = _centered(samples)
    ordered = jnp.sort(centered, axis=-2)
    slope = jnp.sum(_weights(count, samples.dtype)[:, None] * ordered, axis=-2)
    return count - jnp.square(slope) / variance


def _skewness_and_kurtosis(
    samples: Float[Array, "*batch n k"],
) -> tuple[Float[Array, "*batch k"], Float[Array, "*batch k"]]:
    """Returns N times the squared skewness over 6, and the squared excess kurtosis over 24."""
    count = samples.shape[-2]
    centered, variance = _centered(samples)
    unit = centered / jnp.sqrt(variance)[..., None, :]
    skewness = jnp.mean(unit**3, axis=-2)
    excess = jnp.mean(unit**4, axis=-2) - 3
    return count / 6 * jnp.square(skewness), count / 24 * jnp.square(excess)


def jarque_bera(samples: Float[Array, "*batch n k"]) -> Float[Array, "*batch k"]:
    """Returns N/6 (skewness^2 + (kurtosis - 3)^2 / 4) of each column, chi-squared(2) for large N.

    Args:
        samples: [..., N, K], float32 or float64.

    Returns:
        [..., K].
    """
    return sum(_skewness_and_kurtosis(samples), jnp.zeros((), samples.dtype))


def extended_jarque_bera(samples: Float[Array, "*batch n k"]) -> Float[Array, "*batch k"]:
    """Returns `jarque_bera` + N mean^2 + (N - 1) (variance - 1)^2 / 2, chi-squared(4) for large N.

    The variance is the unbiased one. It does not divide the squared mean: the hypothesis has
    variance 1, and the gradient is finite in a collapse.

    Args:
        samples: [..., N, K], float32 or float64.

    Returns:
        [..., K].
    """
    count = samples.shape[-2]
    mean = jnp.mean(samples, axis=-2)
    variance = jnp.var(samples, axis=-2, ddof=1)
    scale = (count - 1) / 2 * jnp.square(variance - 1)
    return jarque_bera(samples) + count * jnp.square(mean) + scale
