"""Anti-collapse regularizers: budget, variance, log-det and mean; and statistics of a state.

Every function pools all leading axes of its input (views and images) and reduces over them with
plain means and contractions, never a reshape, so that under `jit` with a batch-sharded input the
result is that of the global batch and no all-gather is needed. Inside `jax.shard_map` the input is
one share of the rows, and `axis_name` names the axis that they are split over, see `shares`.

Source: "Beyond Isotropy in JEPAs", arXiv 2605.20107. The projected log-det floor and the
participation ratio are taken from there; the rest is elementary.
"""

import math
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from hjepa_jax.objectives import shares
from hjepa_jax.objectives.shares import AxisName

# What a budget fixes: the mean square, or the variance alone.
BudgetOf: TypeAlias = Literal["energy", "variance"]
# Guards the quotients of the participation ratio and of the largest-eigenvalue share.
_QUOTIENT_EPS = 1e-12
# From this height on, a Gaussian matrix half as wide at most has a condition number near 6.
_MIN_CHOLESKY_DIM = 256


class LogdetStatistics(NamedTuple):
    """Statistics of a projected covariance C of rank k, ridge included; scalars or [...].

    Attributes:
        logdet_per_dim: log det(C) / k.
        pr: participation ratio tr(C)^2 / tr(C^2), between 1 and k.
        pr_norm: pr / k.
        eigmax_frac: largest eigenvalue over the trace.
        trace: tr(C).
    """

    logdet_per_dim: Float[Array, "*batch"]
    pr: Float[Array, "*batch"]
    pr_norm: Float[Array, "*batch"]
    eigmax_frac: Float[Array, "*batch"]
    trace: Float[Array, "*batch"]


def at_least_float32(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns x in float32, or as it is when it is already float32 or float64."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def budget(
    z: Float[Array, "*batch n"],
    q_target: float,
    p_target: float,
    axis_name: AxisName = None,
    *,
    of: BudgetOf = "energy",
) -> Float[Array, ""]:
    """Returns (mean(q^2) - q_target)^2 + (mean(p^2) - p_target)^2.

    Args:
        z: states [..., 2d], z = [q | p]; all leading axes are pooled.
        q_target: target of the mean square of the positions.
        p_target: target of the mean square of the momenta.
        axis_name: see `shares`.
        of: 'energy' for these means, which the mean state can meet alone; 'variance' for the means
            over dimensions of the variances, which it cannot.

    Returns:
        A scalar in float32 (float64 for a float64 input).
    """
    z = at_least_float32(z)
    half = z.shape[-1] // 2
    if of == "variance":
        z = shares.centered(z, axis_name)
    q_square = shares.mean(jnp.square(z[..., :half]), axis_name)
    p_square = shares.mean(jnp.square(z[..., half:]), axis_name)
    return jnp.square(q_square - q_target) + jnp.square(p_square - p_target)


def pooled_variance(x: Float[Array, "*batch d"], axis_name: AxisName = None) -> Float[Array, " d"]:
    """Returns the biased variance [d] of x [..., d] over all leading axes."""
    return shares.variance(at_least_float32(x), axis_name)


def variance_floor(
    x: Float[Array, "*batch d"], std_floor: float, eps: float, axis_name: AxisName = None
) -> Float[Array, ""]:
    """Returns the mean over dimensions of relu(std_floor - sqrt(var + eps))^2.

    Args:
        x: [..., d]; the biased variance is over all leading axes.
        std_floor: standard deviation below which a dimension is penalized.
        eps: added to the variance; keeps the gradient finite for a collapsed dimension.
        axis_name: see `shares`.

    Returns:
        A scalar in float32 (float64 for a float64 input).
    """
    std = jnp.sqrt(pooled_variance(x, axis_name) + eps)
    return jnp.mean(jnp.square(jax.nn.relu(std_floor - std)))


def mean_penalty(z: Float[Array, "*batch d"], axis_name: AxisName = None) -> Float[Array, ""]:
    """Returns the mean over dimensions of the squared mean of z [..., d] over leading axes."""
    return jnp.mean(jnp.square(shares.row_mean(at_least_float32(z), axis_name)))


def state_statistics(
    z: Float[Array, "views batch d"], axis_name: AxisName = None
) -> dict[str, Float[Array, ""]]:
    """Returns the logged statistics of all views' rows, without gradient.

    Args:
        z: [V, B, D]; computed in float32 (float64 stays).
        axis_name: see `shares`.

    Returns:
        'z2', the mean square; 'z_mean2', the mean square of the dimensions' means; and
        'z_std_min', the smallest deviation of a dimension.
    """
    rows = jax.lax.stop_gradient(at_least_float32(z))
    return {
        "z2": shares.mean(jnp.square(rows), axis_name),
        "z_mean2": mean_penalty(rows, axis_name),
        "z_std_min": jnp.sqrt(jnp.min(pooled_variance(rows, axis_name))),
    }


def projection_rank(proj_dim: int, dim: int, num_samples: int) -> int:
    """Returns min(proj_dim, dim, num_samples - 1), the rank a sample covariance can have.

    Args:
        proj_dim: the rank asked for.
        dim: the width of the samples.
        num_samples: how many samples there are.

    Raises:
        ValueError: fewer than two samples, or a size below one.
    """
    if num_samples < 2:
        raise ValueError(
            f"the log-det floor needs at least 2 samples for a covariance, got {num_samples}: "
            "raise data.batch_size or set loss.logdet_weight = 0"
        )
    if proj_dim < 1 or dim < 1:
        raise ValueError(f"proj_dim and dim must be at least 1, got {proj_dim} and {dim}")
    return min(proj_dim, dim, num_samples - 1)


def orthonormal_projection(
    key: PRNGKeyArray, dim: int, rank: int, dtype: jax.typing.DTypeLike = jnp.float32
) -> Float[Array, "{dim} {rank}"]:
    """Draws a Haar-distributed matrix [dim, rank] with orthonormal columns.

    The Q factor of a Gaussian matrix G is Haar only once the signs of R's diagonal are moved into
    it (Mezzadri, arXiv math-ph/0609050). That Q is G R^-1 with R^T R = G^T G, which large matrices
    use where G is well conditioned: the same to rounding in a fraction of the time.

    Args:
        key: PRNG key.
        dim: the width of what is projected.
        rank: the number of columns.
        dtype: floating-point dtype of the result.

    Raises:
        ValueError: rank is not in 1..dim.
    """
    if not 1 <= rank <= dim:
        raise ValueError(f"rank must lie in 1..dim = 1..{dim}, got {rank}")
    gaussian = jax.random.normal(key, (dim, rank), dtype)
    if dim >= _MIN_CHOLESKY_DIM and 2 * rank <= dim:
        gram = jnp.matmul(gaussian.T, gaussian, precision=jax.lax.Precision.HIGHEST)
        lower = jax.lax.linalg.cholesky(gram)
        return jax.lax.linalg.triangular_solve(
            lower, gaussian, left_side=False, lower=True, transpose_a=True
        )
    q, r = jnp.linalg.qr(gaussian)
    return q * jnp.where(jnp.diagonal(r) < 0, -1, 1).astype(q.dtype)


def projected_covariance(
    x: Float[Array, "*batch d"],
    projection: Float[Array, "d k"],
    eps: float,
    axis_name: AxisName = None,
) -> Float[Array, "k k"]:
    """Returns the sample covariance of projected samples, plus a ridge.

    Args:
        x: samples [..., d]; all leading axes are pooled, n samples in all.
        projection: [d, k].
        eps: ridge; eps I is added.
        axis_name: see `shares`.

    Returns:
        The covariance [k, k], with the factor 1/(n - 1), in float32 (float64 for a float64 x).

    Raises:
        ValueError: fewer than two samples, or sizes that do not fit.
    """
    x = at_least_float32(x)
    if projection.ndim != 2 or projection.shape[0] != x.shape[-1]:
        raise ValueError(
            f"the projection has shape {projection.shape}; its first axis must be x's last, "
            f"{x.shape[-1]}"
        )
    samples = tuple(range(x.ndim - 1))
    count = math.prod(x.shape[:-1]) * shares.count(axis_name)
    if count < 2:
        raise ValueError(f"a covariance needs at least 2 samples, got {count}")
    highest = jax.lax.Precision.HIGHEST
    centered = shares.centered(x, axis_name)
    projected = jnp.matmul(centered, projection.astype(x.dtype), precision=highest)
    own = jnp.tensordot(projected, projected, axes=(samples, samples), precision=highest)
    covariance = shares.sum_shares(own, axis_name)
    return covariance / (count - 1) + eps * jnp.eye(projection.shape[1], dtype=x.dtype)


def _eigenvector_weights(covariance: Float[Array, "*batch k k"]) -> Float[Array, "*batch k k"]:
    """Returns v v^T for the eigenvector v of the largest eigenvalue of each matrix."""
    matrices = covariance.reshape(-1, *covariance.shape[-2:])
    # One at a time, for the reason given in `_logdet_statistics`.
    top = [jnp.linalg.eigh(matrices[i])[1][:, -1] for i in range(matrices.shape[0])]
    return jnp.stack([jnp.outer(v, v) for v in top]).reshape(covariance.shape)


def _power_weights(covariance: Float[Array, "*batch k k"]) -> Float[Array, "*batch k k"]:
    """Returns C^s / tr(C^s) for a power s so large that its tr(W C) is the largest eigenvalue.

    tr(C^(s+1)) / tr(C^s) is a mean of the eigenvalues with weights r^s, r being their ratio to the
    largest. It is too small by at most (log(k) + 1) / s of it: by (k - 1) r^s (1 - r) /
    (1 + (k - 1) r^s) in the worst case, k - 1 equal others. With s of 2 / eps that is rounding.
    """
    for _ in range(-(-jnp.finfo(covariance.dtype).nmant // 3)):
        covariance = covariance / jnp.trace(covariance, axis1=-2, axis2=-1)[..., None, None]
        # The largest eigenvalue is 1/k or more, so that its 8th power does not underflow.
        for _ in range(3):
            covariance = jnp.matmul(covariance, covariance, precision=jax.lax.Precision.HIGHEST)
    return covariance / jnp.trace(covariance, axis1=-2, axis2=-1)[..., None, None]


def _largest_weights(covariance: Float[Array, "*batch k k"]) -> Float[Array, "*batch k k"]:
    """Returns W of trace 1 such that tr(W C) is the largest eigenvalue of each matrix C.

    Accelerators have no fast eigenvalues of small matrices, but matrix products.
    """
    return jax.lax.platform_dependent(covariance, cpu=_eigenvector_weights, default=_power_weights)


def logdet_statistics(covariance: Float[Array, "*batch k k"]) -> LogdetStatistics:
    """Returns the statistics of symmetric positive definite covariances [..., k, k].

    The log-determinant goes through Cholesky. The largest eigenvalue is tr(W C) with W constant,
    see `_largest_weights`: its gradient W is finite even for repeated eigenvalues, where that of
    `eigvalsh` divides by zero gaps.
    """
    weights = _largest_weights(jax.lax.stop_gradient(covariance))
    return _logdet_statistics(covariance, weights)


def _logdet_statistics(
    covariance: Float[Array, "*batch k k"], weights: Float[Array, "*batch k k"]
) -> LogdetStatistics:
    """`logdet_statistics` with the weights of the largest eigenvalue."""
    if covariance.ndim > 2:
        # One matrix at a time: on the CPU a batched factorization waits inside the thread pool for
        # its parts, so that two of them at once (Cholesky and eigh) hang a pool of two threads.
        lead = covariance.shape[:-2]
        pairs = zip(*(x.reshape(-1, *x.shape[-2:]) for x in (covariance, weights)))
        each = [_logdet_statistics(*pair) for pair in pairs]
        return jax.tree.map(lambda *values: jnp.stack(values).reshape(lead), *each)
    rank = covariance.shape[-1]
    factor_diagonal = jnp.diagonal(jnp.linalg.cholesky(covariance), axis1=-2, axis2=-1)
    logdet = 2.0 * jnp.sum(jnp.log(factor_diagonal), axis=-1) / rank
    trace = jnp.trace(covariance, axis1=-2, axis2=-1)
    square = jnp.sum(jnp.square(covariance), axis=(-2, -1))
    pr = jnp.square(trace) / (square + _QUOTIENT_EPS)
    largest = jnp.sum(weights * covariance, axis=(-2, -1))
    return LogdetStatistics(logdet, pr, pr / rank, largest / (trace + _QUOTIENT_EPS), trace)


def logdet_penalty(
    statistics: LogdetStatistics,
    *,
    logdet_floor: float,
    pr_floor: float | None = None,
    eigmax_ceiling: float | None = None,
    pr_weight: float = 1.0,
    eigmax_weight: float = 1.0,
) -> Float[Array, "*batch"]:
    """Returns the penalty of `logdet_floor` from given statistics.

    Args:
        statistics: from `logdet_statistics`.
        logdet_floor: see `logdet_floor`, as for all other arguments.
        pr_floor: floor of the participation ratio over k.
        eigmax_ceiling: ceiling of the largest eigenvalue's share.
        pr_weight: weight of the participation-ratio term.
        eigmax_weight: weight of the largest-eigenvalue term.
    """
    loss = jnp.square(jax.nn.relu(logdet_floor - statistics.logdet_per_dim))
    if pr_floor is not None:
        loss += pr_weight * jnp.square(jax.nn.relu(pr_floor - statistics.pr_norm))
    if eigmax_ceiling is not None:
        loss += eigmax_weight * jnp.square(jax.nn.relu(statistics.eigmax_frac - eigmax_ceiling))
    return loss


def logdet_floor(
    x: Float[Array, "*batch d"],
    projection: Float[Array, "d k"],
    *,
    logdet_floor: float,
    eps: float,
    pr_floor: float | None = None,
    eigmax_ceiling: float | None = None,
    pr_weight: float = 1.0,
    eigmax_weight: float = 1.0,
    axis_name: AxisName = None,
) -> tuple[Float[Array, ""], LogdetStatistics]:
    """Penalizes a low-volume, low-rank or one-directional projected covariance.

    With C the projected sample covariance + eps I, of rank k:
    relu(logdet_floor - log det(C)/k)^2 + pr_weight relu(pr_floor - PR/k)^2
    + eigmax_weight relu(lambda_max/tr(C) - eigmax_ceiling)^2.

    Args:
        x: [..., d]; all leading axes are samples.
        projection: [d, k], orthonormal columns.
        logdet_floor: floor of the log-determinant per dimension.
        eps: ridge; counts in every statistic. It must stay above the rounding error of C
            (about 1e-7 of its largest eigenvalue in float32), or Cholesky gives NaN.
        pr_floor: floor of the participation ratio over k; None disables the term.
        eigmax_ceiling: ceiling of the largest eigenvalue's share; None disables the term.
        pr_weight: weight of the participation-ratio term.
        eigmax_weight: weight of the largest-eigenvalue term.
        axis_name: see `shares`.

    Returns:
        (loss, statistics), scalars in float32 (float64 for a float64 input).

    Raises:
        ValueError: fewer than two samples, or sizes that do not fit.
    """
    statistics = logdet_statistics(projected_covariance(x, projection, eps, axis_name))
    loss = logdet_penalty(
        statistics,
        logdet_floor=logdet_floor,
        pr_floor=pr_floor,
        eigmax_ceiling=eigmax_ceiling,
        pr_weight=pr_weight,
        eigmax_weight=eigmax_weight,
    )
    return loss, statistics
