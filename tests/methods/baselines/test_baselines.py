"""VICReg, Barlow Twins and VISReg as methods: loss, weights, configuration, short trainings."""

from __future__ import annotations

from typing import Any

import forked
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hjepa_jax.config import base_config
from hjepa_jax.config.checks import typed
from hjepa_jax.config.flags import resolve_arguments
from hjepa_jax.errors import ConfigError
from hjepa_jax.methods.base import Method
from hjepa_jax.methods.baselines.vicreg import VICReg
from hjepa_jax.models.base import StateShape
from hjepa_jax.objectives.baselines.barlow import cross_correlation_terms
from hjepa_jax.objectives.baselines.vicreg import variance_covariance, view_distance
from hjepa_jax.objectives.baselines.visreg import visreg_terms
from hjepa_jax.objectives.lejepa import lejepa_prediction
from hjepa_jax.storage.metrics_file import read_metrics
from hjepa_jax.training.setup import build_method

DIM = 6
NAMES = ("vicreg", "barlow", "visreg")


def views() -> jax.Array:
    return jax.random.normal(jax.random.key(2), (3, 10, DIM)) * 0.6 + 0.2


def method(name: str, **fields: Any) -> Method:
    config = base_config()
    config.method = name
    config.data.num_global_views = 2
    config[name].update(fields)
    built = build_method(typed(config), 4)
    return type(built)(built.settings, StateShape(DIM), 4)


def loss_of(built: Method, step: int = 3) -> Any:
    drawn = built.draw(
        jax.random.key(0), jnp.int32(step), num_rows=30, num_images=10, dtype=jnp.float32
    )
    return jax.jit(lambda z: built.loss({}, {}, z, drawn, jnp.int32(step)))(views()), drawn


def test_vicreg_is_its_terms_by_their_weights() -> None:
    fields = {"invariance_weight": 3.0, "variance_weight": 5.0, "covariance_weight": 7.0}
    (total, metrics), _ = loss_of(method("vicreg", gamma=1.5, eps=0.1, **fields))
    hinge, covariance = variance_covariance(views(), gamma=1.5, eps=0.1)
    np.testing.assert_allclose(metrics["hinge"], hinge, rtol=1e-5)
    expected = 3 * view_distance(views()) + 5 * hinge + 7 * covariance
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["total"], total)


def test_barlow_is_its_terms_by_their_weights() -> None:
    (total, _), drawn = loss_of(method("barlow", redundancy_weight=0.5, eps=0.1))
    invariance, redundancy = cross_correlation_terms(views(), eps=0.1)
    np.testing.assert_allclose(total, invariance + 0.5 * redundancy, rtol=1e-5)
    assert not drawn


def test_visreg_is_its_terms_by_their_weights() -> None:
    fields = {"mean_weight": 2.0, "scale_weight": 3.0, "shape_weight": 5.0}
    built = method("visreg", weight=0.5, num_slices=4, **fields)
    (total, metrics), drawn = loss_of(built)
    center, scale, shape = visreg_terms(views(), drawn["visreg_slices"])
    expected = lejepa_prediction(views(), 2) + center + 1.5 * scale + 2.5 * shape
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["shape"], shape, rtol=1e-5)
    assert built.weights() == {"pred": 1.0, "center": 1.0, "scale": 1.5, "shape": 2.5}
    assert built.targets() == {"z": 1.0}
    assert method("visreg", weight=0.0).targets() == {}


def test_the_directions_of_visreg_change_as_told_and_are_its_own() -> None:
    built = method("visreg", refresh_interval=2, num_slices=3)
    drawn = [loss_of(built, step)[1]["visreg_slices"] for step in range(3)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[2] - drawn[1]).max() > 0.1
    np.testing.assert_allclose(np.linalg.norm(drawn[0], axis=0), 1, rtol=1e-5)
    assert built.redraw() == {"visreg_slices": 2}


@pytest.mark.parametrize("name", NAMES)
def test_the_report_of_a_failure_names_every_term(name: str) -> None:
    built = method(name)
    (_, metrics), _ = loss_of(built)
    assert set(built.weights()) == set(built.suspects()) <= metrics.keys()
    assert {"z2", "z_std_min", "z_mean2", "total"} <= metrics.keys()
    settings = built.settings.values()
    for suspect in built.suspects().values():
        assert set(suspect.fields) <= settings.keys()
    for term in ("mean", "logdet", "var"):
        field = built.remedy("z", term).split()[1]
        assert field in settings


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.num_global_views=1"], "compares views: set it to 2 or more"),
        (["data.batch_size=1"], "one image has no variance"),
        (["sigreg.weight=3"], "sigreg.weight is set to 3.0 but has no effect"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_what_they_cannot_take_is_refused(name: str, overrides: list[str], words: str) -> None:
    given = [f"--config.{text}" for text in (f"method={name}", *overrides)]
    with pytest.raises(ConfigError, match=words):
        resolve_arguments(["--config=cifar100:sigreg-smoke", *given])


@pytest.mark.parametrize("name", ["vicreg", "visreg"])
def test_hjepa_takes_their_regularizers(name: str) -> None:
    given = ["--config=quickstart:smoke", f"--config.loss.regularizer={name}"]
    built = build_method(resolve_arguments(given), 4)
    assert {"pred", "energy"} < built.weights().keys()
    assert {"pred", *built.weights()} - {"energy"} <= set(type(built).losses)
    if name == "vicreg":
        with pytest.raises(ConfigError, match=r"invariance_weight is set .*method='vicreg'"):
            resolve_arguments([*given, "--config.vicreg.invariance_weight=3"])


@pytest.mark.parametrize("name", NAMES)
def test_a_short_training_runs_and_logs_every_term(name: str, tmp_path: Any) -> None:
    given = ["--config=quickstart:smoke", f"--config.method={name}", "--mode=train"]
    done = forked.run("-m", "hjepa_jax.main", *given, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    curves = read_metrics(tmp_path / "run")
    terms = {"vicreg": VICReg.losses, "visreg": ("pred", "shape")}.get(name, ("redundancy",))
    for term in terms:
        values = curves["loss/prediction" if term == "pred" else f"loss/{term}"][1]
        assert np.all(np.isfinite(values))
