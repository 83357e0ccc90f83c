"""LeJEPA's prediction and weights against NumPy and finite differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import assert_gradient, quick_jit

from hjepa_jax.objectives.lejepa import (
    effective_weights,
    lejepa_prediction,
    lejepa_total,
)

predict = quick_jit(lejepa_prediction, static_argnums=1)


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


def test_effective_weights() -> None:
    assert effective_weights(0.02, "additive") == {
        "pred": 1.0,
        "sigreg": 0.02,
        "sigreg/pred": 0.02,
    }
    assert effective_weights(0.02, "additive", 8.0)["sigreg/pred"] == pytest.approx(0.0025)
    convex = effective_weights(0.2, "convex")
    assert convex == {"pred": 0.8, "sigreg": 0.2, "sigreg/pred": pytest.approx(0.25)}
    # The additive form at the convex form's ratio is the same loss up to scale.
    additive = effective_weights(convex["sigreg/pred"], "additive")
    assert additive["sigreg"] / additive["pred"] == pytest.approx(convex["sigreg/pred"])


@pytest.mark.usefixtures("unchecked")
def test_errors_name_the_cause() -> None:
    with pytest.raises(ValueError, match="1 <= num_global_views <= V"):
        lejepa_prediction(jnp.zeros((2, 4, 6)), 3)
    with pytest.raises(ValueError, match="additive, convex"):
        effective_weights(0.1, "sum")
    with pytest.raises(ValueError, match="at most 1"):
        effective_weights(1.5, "convex")
    prediction, statistics = jnp.zeros(()), jnp.zeros((2, 4))
    with pytest.raises(ValueError, match="no scalar loss"):
        lejepa_total(prediction, statistics, weight=1.0, loss_form="additive")
    with pytest.raises(ValueError, match="additive, convex"):
        lejepa_total(prediction, prediction, weight=1.0, loss_form="sum")
