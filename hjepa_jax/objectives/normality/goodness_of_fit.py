"""Goodness of fit as a regularizer of states: which statistic, and of which samples."""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hjepa_jax.objectives import shares
from hjepa_jax.objectives.normality.distribution import anderson_darling, cramer_von_mises, watson
from hjepa_jax.objectives.normality.multivariate import bhep, henze_zirkler
from hjepa_jax.objectives.normality.shape import (
    extended_jarque_bera,
    jarque_bera,
    shapiro_wilk,
)
from hjepa_jax.objectives.regularizers import at_least_float32
from hjepa_jax.objectives.shares import AxisName

Sliced = Literal[
    "anderson_darling",
    "cramer_von_mises",
    "watson",
    "shapiro_wilk",
    "jarque_bera",
    "extended_jarque_bera",
]
Multivariate = Literal["bhep", "henze_zirkler"]
SLICED: dict[str, Callable[[Float[Array, "*batch n k"]], Float[Array, "*batch k"]]] = {
    "anderson_darling": anderson_darling,
    "cramer_von_mises": cramer_von_mises,
    "watson": watson,
    "shapiro_wilk": shapiro_wilk,
    "jarque_bera": jarque_bera,
    "extended_jarque_bera": extended_jarque_bera,
}
MULTIVARIATE: tuple[Multivariate, ...] = get_args(Multivariate)
# Statistics that are the same for samples of any mean and scale.
SCALE_FREE = ("shapiro_wilk", "jarque_bera", "henze_zirkler")


def goodness_of_fit(
    z: Float[Array, "*views n d"],
    slices: Float[Array, "d k"] | None,
    test: Sliced | Multivariate,
    *,
    flattened: bool = False,
    beta: float | None = None,
    subsample_index: Int[Array | np.ndarray, " rows"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, "..."]:
    """Returns the statistics of states, one for each view and direction.

    A sorted sample is that of all shares, which are gathered.

    Args:
        z: [V, B, D] or [N, D], any float dtype; computed in float32 (float64 stays).
        slices: [D, K] unit columns, which a multivariate test does not need.
        test: a key of SLICED, or one of MULTIVARIATE.
        flattened: whether there is one statistic over views x images instead of one per view.
        beta: width of the weights of 'bhep'; None = its default.
        subsample_index: [S] rows that count, see `hjepa_jax.objectives.sigreg.sigreg`; None = all.
        axis_name: see `shares`.

    Returns:
        [V, K], [K] without views or flattened; without the axis K for a multivariate test.

    Raises:
        ValueError: an unknown test, or none of the directions that it needs.
    """
    if test not in SLICED and test not in MULTIVARIATE:
        raise ValueError(
            f"sigreg.test must be one of {', '.join((*SLICED, *MULTIVARIATE))}, got {test!r}"
        )
    samples = at_least_float32(z)
    if test in SLICED:
        if slices is None:
            raise ValueError(f"sigreg.test {test!r} needs directions")
        highest = jax.lax.Precision.HIGHEST
        samples = jnp.matmul(samples, slices.astype(samples.dtype), precision=highest)
    if flattened and samples.ndim == 3:
        # Images before views, as the rows of a subsample are counted.
        samples = jnp.swapaxes(samples, 0, 1).reshape(-1, samples.shape[-1])
    samples = shares.gather(samples, axis_name, axis=samples.ndim - 2)
    if subsample_index is not None:
        samples = jnp.take(samples, subsample_index, axis=-2)
    if test in SLICED:
        values = SLICED[test](samples)
    else:
        values = bhep(samples, beta) if test == "bhep" else henze_zirkler(samples)
    # Every share has all rows; marked as the same on all, their gradients add up to one.
    return shares.mean_shares(values, axis_name)
