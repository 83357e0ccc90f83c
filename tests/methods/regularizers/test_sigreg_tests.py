"""SIGReg with another goodness-of-fit test than Epps and Pulley's."""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hjepa_jax.config.checks import typed
from hjepa_jax.config.flags import resolve_arguments
from hjepa_jax.errors import ConfigError, UserError
from hjepa_jax.methods.lejepa import LeJEPA
from hjepa_jax.methods.regularizers.sigreg import SIGRegSection
from hjepa_jax.models.base import StateShape
from hjepa_jax.objectives.lejepa import lejepa_prediction
from hjepa_jax.objectives.normality.goodness_of_fit import (
    MULTIVARIATE,
    SCALE_FREE,
    SLICED,
    goodness_of_fit,
)
from hjepa_jax.objectives.normality.multivariate import bhep
from hjepa_jax.recipes import cifar100

DIM = 4
SMOKE = "--config=cifar100:sigreg-smoke"


def method(**fields: Any) -> LeJEPA:
    config = cifar100.get_config("sigreg-smoke")
    config.sigreg.update({"num_slices": 3, **fields})
    return LeJEPA(typed(config), StateShape(DIM), 4)


def loss(own: LeJEPA) -> tuple[dict[str, jax.Array], Any, jax.Array]:
    z = jax.random.normal(jax.random.key(4), (2, 16, DIM)) * 1.5
    drawn = own.draw(jax.random.key(0), jnp.int32(2), num_rows=32, num_images=16, dtype=jnp.float32)

    def both(z: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        return own.loss({}, {}, z, drawn, jnp.int32(2))

    (_, metrics), gradient = jax.jit(jax.value_and_grad(both, has_aux=True))(z)
    assert np.all(np.isfinite(gradient))
    assert np.any(np.asarray(gradient) != 0)
    return metrics, drawn, z


def test_the_choices_are_the_tests_that_exist() -> None:
    choices = get_type_hints(SIGRegSection)["test"].__args__
    assert choices == ("epps_pulley", *SLICED, *MULTIVARIATE)
    assert {*SCALE_FREE} < {*choices}


@pytest.mark.parametrize("test", [*SLICED, *MULTIVARIATE])
def test_the_loss_has_the_statistic_of_the_drawn_directions(test: Any) -> None:
    own = method(test=test, weight=0.5)
    metrics, drawn, z = loss(own)
    assert drawn.keys() == own.redraw().keys() == ({"slices"} if test in SLICED else set())
    expected = jnp.mean(goodness_of_fit(z, drawn.get("slices"), test))
    np.testing.assert_allclose(metrics["sigreg"], expected, rtol=1e-4)
    total = lejepa_prediction(z, 2) + 0.5 * expected
    np.testing.assert_allclose(metrics["total"], total, rtol=1e-4)
    # Only a test that sees the scale drives the mean square to 1, and alone prevents a collapse.
    assert (own.targets() == {}) == (test in SCALE_FREE)
    assert ("collapsing" in " ".join(own.warnings())) == (test in SCALE_FREE)


def test_every_field_reaches_the_statistic() -> None:
    metrics, drawn, z = loss(
        method(test="watson", statistics="flattened", subsample=9, reduction="sum")
    )
    index = drawn["subsample"]
    values = goodness_of_fit(z, drawn["slices"], "watson", flattened=True, subsample_index=index)
    np.testing.assert_allclose(metrics["sigreg"], values.sum(), rtol=1e-4)
    clipped, _, _ = loss(
        method(test="watson", statistics="flattened", subsample=9, clip_value=float(values.min()))
    )
    kept = jnp.where(values < values.min(), 0, values).mean()
    np.testing.assert_allclose(clipped["sigreg"], kept, rtol=1e-4)
    metrics, _, z = loss(method(test="bhep", beta=0.3))
    np.testing.assert_allclose(metrics["sigreg"], bhep(z, 0.3).mean(), rtol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["test=watson", "n_points=7"], r"n_points is set to 7 .*test='epps_pulley'"),
        (["test=watson", "t_max=2"], r"t_max is set to 2.0 .*test='epps_pulley'"),
        (["test=watson", "t_min=-2"], r"t_min is set to -2.0 .*test='epps_pulley'"),
        (["test=watson", "beta=2"], r"beta is set to 2.0 .*test='bhep'"),
        (["test=bhep", "num_slices=8"], r"num_slices is set to 8 .*test of projections"),
        (["test=bhep", "refresh_interval=2"], r"refresh_interval is set to 2 .*of projections"),
        (["test=shapiro_wilk", "subsample=4"], "needs 6 images or more, but a statistic has 4"),
        (["test=kolmogorov"], "not one of|must be one of|did you mean"),
    ],
)
def test_fields_that_do_not_fit_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolve_arguments([SMOKE, *(f"--config.sigreg.{text}" for text in overrides)])


def test_a_singular_covariance_is_refused_before_the_training() -> None:
    settings = resolve_arguments([SMOKE, "--config.sigreg.test=henze_zirkler"])
    with pytest.raises(ConfigError, match="of 16 images in 16 dimensions is singular"):
        LeJEPA(settings, StateShape(16), 4)
    changed = dataclasses.replace(settings.section(SIGRegSection), statistics="flattened")
    parts = {**settings.parts, "sigreg": changed}
    LeJEPA(dataclasses.replace(settings, parts=parts), StateShape(16), 4)
