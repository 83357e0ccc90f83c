"""The LeJEPA objective against NumPy and finite differences."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import assert_gradient, quick_jit

from hjepa_jax.objectives.lejepa import effective_weights, lejepa_prediction, sigreg_objective
from hjepa_jax.objectives.sigreg import SIGRegSettings, random_slices, sigreg

SETTINGS = SIGRegSettings(num_slices=4, n_points=5)
predict = quick_jit(lejepa_prediction, static_argnums=1)
plain_sigreg = quick_jit(functools.partial(sigreg, settings=SETTINGS))


# The weight is traced, as a schedule's is.
@functools.partial(quick_jit, static_argnums=(3, 4))
def objective(
    z: jax.Array,
    slices: jax.Array,
    weight: jax.Array | float,
    loss_form: str = "additive",
    transform: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    options: dict[str, Any] = {"weight": weight, "loss_form": loss_form, "transform": transform}
    return sigreg_objective(z, slices, SETTINGS, 2, **options)


def views(count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 10, 6))


@pytest.mark.parametrize("num_global", [1, 2, 4])
def test_prediction_matches_numpy_and_differences(num_global: int) -> None:
    with jax.enable_x64(True):
        z = views()
        center = z[:num_global].mean(0)
        expected = 0.5 * np.mean([(center - view) ** 2 for view in z])
        np.testing.assert_allclose(predict(jnp.asarray(z), num_global), expected)
        # The differences include the center's: it is not stopped.
        assert_gradient(lambda z: lejepa_prediction(z, num_global), z)


def test_prediction_of_equal_views_is_zero() -> None:
    z = jnp.broadcast_to(jnp.asarray(views(1)), (3, 10, 6))
    assert predict(z, 2) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("loss_form", ["additive", "convex"])
def test_objective_is_the_weighted_sum(loss_form: str) -> None:
    z = jnp.asarray(views(), jnp.float32)
    slices = random_slices(jax.random.key(0), 6, 4)
    total, metrics = objective(z, slices, 0.3, loss_form)
    prediction, regularizer = predict(z, 2), plain_sigreg(z, slices)
    expected = (1.0 if loss_form == "additive" else 0.7) * prediction + 0.3 * regularizer
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["total"], total)
    np.testing.assert_allclose(metrics["pred"], prediction)
    np.testing.assert_allclose(metrics["sigreg"], regularizer)
    flat = views().reshape(-1, 6)
    np.testing.assert_allclose(metrics["z2"], (flat**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["z_mean2"], (flat.mean(0) ** 2).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["z_std_min"], flat.std(0).min(), rtol=1e-5)


def test_transform_reaches_sigreg_only() -> None:
    z = jnp.asarray(views(), jnp.float32)
    slices = random_slices(jax.random.key(0), 6, 4)
    _, metrics = objective(z, slices, 1.0, "additive", lambda z: 2 * z)
    np.testing.assert_allclose(metrics["sigreg"], plain_sigreg(2 * z, slices), rtol=1e-6)
    np.testing.assert_allclose(metrics["pred"], predict(z, 2), rtol=1e-6)


def test_objective_gradient_matches_differences() -> None:
    with jax.enable_x64(True):
        slices = random_slices(jax.random.key(1), 6, 4, jnp.float64)
        assert_gradient(lambda z: sigreg_objective(z, slices, SETTINGS, 2, weight=0.5)[0], views(3))


def test_metrics_carry_no_gradient_and_bfloat16_becomes_float32() -> None:
    z = jnp.asarray(views(), jnp.bfloat16)
    slices = random_slices(jax.random.key(0), 6, 4)
    total, metrics = objective(z, slices, 0.1)
    assert {total.dtype, *(value.dtype for value in metrics.values())} == {jnp.dtype("float32")}

    def statistic(z: jax.Array) -> jax.Array:
        return sigreg_objective(z, slices, SETTINGS, 2, weight=0.1)[1]["z_std_min"]

    np.testing.assert_array_equal(quick_jit(jax.grad(statistic))(z), 0)


def test_effective_weights() -> None:
    assert effective_weights(0.02, "additive") == {
        "pred": 1.0,
        "sigreg": 0.02,
        "sigreg/pred": 0.02,
    }
    convex = effective_weights(0.2, "convex")
    assert convex == {"pred": 0.8, "sigreg": 0.2, "sigreg/pred": pytest.approx(0.25)}
    # The additive form at the convex form's ratio is the same loss up to scale.
    additive = effective_weights(convex["sigreg/pred"], "additive")
    assert additive["sigreg"] / additive["pred"] == pytest.approx(convex["sigreg/pred"])


@pytest.mark.usefixtures("unchecked")
def test_errors_name_the_cause() -> None:
    z, slices = jnp.zeros((2, 4, 6)), jnp.zeros((6, 4))
    with pytest.raises(ValueError, match="1 <= num_global_views <= V"):
        lejepa_prediction(z, 3)
    with pytest.raises(ValueError, match="additive, convex"):
        effective_weights(0.1, "sum")
    with pytest.raises(ValueError, match="at most 1"):
        effective_weights(1.5, "convex")
    with pytest.raises(ValueError, match="no scalar loss"):
        sigreg_objective(z, slices, SIGRegSettings(reduction="none"), 2, weight=1.0)
