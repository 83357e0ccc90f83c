"""The annotations of `hjepa_jax.objectives` are complete, and the tests check them at run time."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import jaxtyping
import pytest
from annotations import bare_annotations, unchecked_functions

from hjepa_jax.objectives import hamsigreg, linear_probe, regularizers
from hjepa_jax.objectives import hamsigreg_spectrum as spectrum
from hjepa_jax.objectives.hjepa import logdet_statistics_of_both, view_pairs
from hjepa_jax.objectives.lejepa import lejepa_prediction, lejepa_total
from hjepa_jax.objectives.sigreg import epps_pulley, sigreg

Z = jnp.zeros((2, 6, 4))
QUADRATURE: dict[str, Any] = {"t_max": 3.0, "n_points": 9, "weight_type": "gaussian"}
PROBE = linear_probe.ProbeParams(jnp.ones(4), jnp.ones(4), jnp.ones((4, 3)), jnp.ones(3))


def test_every_public_function_is_annotated_and_checked() -> None:
    assert unchecked_functions("hjepa_jax.objectives") == []
    assert bare_annotations("hjepa_jax.objectives") == []


@pytest.mark.parametrize(
    "call",
    [
        lambda: regularizers.budget(Z.astype(jnp.int32), 1.0, 1.0),
        lambda: regularizers.projected_covariance(Z, jnp.ones((5, 2)), 1e-4),
        lambda: regularizers.logdet_statistics(jnp.ones((3, 2))),
        lambda: sigreg(Z, jnp.ones((5, 3)), **QUADRATURE),
        lambda: sigreg(Z, jnp.ones((4, 3)), **QUADRATURE, subsample_index=jnp.ones(3)),
        lambda: epps_pulley(jnp.ones(3), t_max=3.0, n_points=5, weight_type="gaussian"),
        lambda: sigreg(Z, jnp.ones((4, 3)), **QUADRATURE, reduction="max"),  # type: ignore
        lambda: lejepa_prediction(Z[0], 1),
        lambda: lejepa_total(jnp.ones(()), jnp.ones(()), weight=jnp.ones(2), loss_form="additive"),
        lambda: logdet_statistics_of_both(Z, Z, {"q": jnp.ones((5, 2))}, {"q": 1e-4}),
        lambda: view_pairs("all", 2, 2),  # type: ignore
        lambda: hamsigreg.apply_chain(Z, jnp.ones(4)),  # one root per frequency, 4//2 + 1
        lambda: spectrum.apply_gauge(jnp.ones(3), "mean"),  # type: ignore
        lambda: linear_probe.cross_entropy(jnp.ones((6, 3)), jnp.ones(5, jnp.int32)),
        lambda: linear_probe.probe_logits(PROBE, jnp.ones((6, 4), jnp.int32)),
    ],
)
def test_wrong_arguments_raise(call: Callable[[], Any]) -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        call()


def test_a_wrong_result_raises() -> None:
    """An implementation of the means that forgets the frequencies."""
    with pytest.raises(jaxtyping.TypeCheckError, match=r"return .*characteristic_function"):
        sigreg(
            Z,
            jnp.ones((4, 3)),
            **QUADRATURE,
            means=lambda y, *_: (jnp.mean(y, -2), jnp.mean(y, -2)),
        )
