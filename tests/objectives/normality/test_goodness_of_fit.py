"""Goodness of fit of states: which samples are tested, and how often Gaussian ones are rejected."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from finite_differences import quick_jit

from hjepa_jax.objectives.normality.goodness_of_fit import (
    MULTIVARIATE,
    SLICED,
    goodness_of_fit,
)
from hjepa_jax.objectives.normality.multivariate import bhep
from hjepa_jax.objectives.sigreg import epps_pulley

COUNT, DIM = 60, 3
TRIALS, CALIBRATION = 2000, 20_000
# Asymptotic 5 % points of a simple hypothesis: M. A. Stephens, JASA 69 (1974), table 1, case 0.
KNOWN = {"anderson_darling": 2.492, "cramer_von_mises": 0.461, "watson": 0.187}
quick = quick_jit(goodness_of_fit, static_argnames=("test", "flattened", "beta"))


def states() -> np.ndarray:
    return np.random.default_rng(0).standard_t(4, (2, 8, 5))


def directions(dim: int = 5) -> np.ndarray:
    found = np.random.default_rng(1).standard_normal((dim, 4))
    return found / np.linalg.norm(found, axis=0)


@pytest.mark.parametrize("test", [*SLICED, *MULTIVARIATE])
def test_the_samples_are_those_of_views_or_of_all_rows_and_of_a_subsample(test: Any) -> None:
    rows = np.asarray([6, 1, 4, 3, 0, 7, 2])
    with jax.enable_x64(True):
        z, slices = jnp.asarray(states()), jnp.asarray(directions())

        def expected(samples: jax.Array) -> jax.Array:
            if test in SLICED:
                return SLICED[test](samples @ slices)
            return goodness_of_fit(samples, None, test)

        for index in (None, rows):
            found = quick(z, slices, test, subsample_index=index)
            own = z if index is None else z[:, index]
            each = jnp.stack([expected(view) for view in own])
            np.testing.assert_allclose(found, each, rtol=1e-8)
            flat = jnp.swapaxes(z, 0, 1).reshape(16, 5)
            own = flat if index is None else flat[index]
            found = quick(z, slices, test, flattened=True, subsample_index=index)
            np.testing.assert_allclose(found, expected(own), rtol=1e-8)


def test_bfloat16_is_computed_in_float32_and_beta_reaches_bhep() -> None:
    z = jnp.asarray(states(), jnp.bfloat16)
    found = quick(z, None, "bhep", beta=0.3)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, bhep(z.astype(jnp.float32), 0.3), rtol=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"sigreg\.test must be one of anderson_darling"):
        goodness_of_fit(jnp.zeros((4, 5)), None, "kolmogorov")
    with pytest.raises(ValueError, match="'watson' needs directions"):
        goodness_of_fit(jnp.zeros((4, 5)), None, "watson")


@functools.cache
def null(test: str, trials: int, seed: int) -> np.ndarray:
    """Statistics of `trials` Gaussian samples."""
    random = np.random.default_rng(seed)
    if test in MULTIVARIATE:
        vectors = jnp.asarray(random.standard_normal((trials, COUNT, DIM)), jnp.float32)
        return np.asarray(jax.jit(goodness_of_fit, static_argnums=2)(vectors, None, test))
    numbers = jnp.asarray(random.standard_normal((COUNT, trials)), jnp.float32)
    epps = functools.partial(epps_pulley, t_max=3.0, n_points=9, weight_type="gaussian")
    statistic = epps if test == "epps_pulley" else SLICED[test]
    return np.asarray(jax.jit(statistic)(numbers))


def critical(test: str) -> float:
    """The 5 % point: a known one, else by simulation with another seed."""
    if test in KNOWN:
        return KNOWN[test]
    if test == "shapiro_wilk":
        # P. Royston, "Algorithm AS R94", Applied Statistics 44 (1995): log(1 - W) is normal.
        log = np.log(COUNT)
        mean = 0.0038915 * log**3 - 0.083751 * log**2 - 0.31082 * log - 1.5861
        deviation = np.exp(0.0030302 * log**2 - 0.082676 * log - 0.4803)
        return float(COUNT * np.exp(mean + deviation * scipy.stats.norm.ppf(0.95)))
    return float(np.quantile(null(test, CALIBRATION, 1), 0.95))


@pytest.mark.parametrize("test", ["epps_pulley", *SLICED, *MULTIVARIATE])
def test_five_percent_of_gaussian_samples_are_rejected(test: str) -> None:
    rejected = int((null(test, TRIALS, 0) > critical(test)).sum())
    # The simulated point has an error of its own, a tenth of the variance.
    low, high = scipy.stats.binom.interval(0.999, TRIALS, 0.05)
    assert low <= rejected <= high, (rejected / TRIALS, low / TRIALS, high / TRIALS)


def test_jarque_bera_is_chi_squared_for_many_samples() -> None:
    numbers = np.random.default_rng(3).standard_normal((20_000, 300))
    for test, degrees in (("jarque_bera", 2), ("extended_jarque_bera", 4)):
        values = np.asarray(SLICED[test](jnp.asarray(numbers, jnp.float32)))
        assert scipy.stats.kstest(values, scipy.stats.chi2(degrees).cdf).pvalue > 0.001
