"""HJEPA with another regularizer than its floors: SIGReg, or a class of the user's own."""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import assert_gradient

from hjepa_jax.config import base_config, resolve, settings
from hjepa_jax.config.checks import typed
from hjepa_jax.config.files import from_json
from hjepa_jax.config.flags import resolve_arguments
from hjepa_jax.errors import ConfigError, UserError
from hjepa_jax.methods.hjepa import HJEPA
from hjepa_jax.methods.lejepa import LeJEPA
from hjepa_jax.models.base import StateShape
from hjepa_jax.recipes import cifar100

DIM = 6
OWN = "own_regularizer_of_a_test:Norms"
MODULE = """
import dataclasses
import jax.numpy as jnp
from hjepa_jax.config.fields import field
from hjepa_jax.methods.regularizers.base import Regularizer
from hjepa_jax.objectives import shares

@dataclasses.dataclass(frozen=True)
class Section:
    \"\"\"Own settings.\"\"\"
    weight: float = field(2.0, "Weight.", at_least=0)

class Norms(Regularizer):
    sections = {"norms": Section}

    @classmethod
    def problems(cls, settings):
        if settings.section(Section).weight == 13:
            yield "config.norms.weight is 13: set another."

    def terms(self, z, randomness, step, axis_name=None):
        value = jnp.square(shares.mean(jnp.square(z), axis_name) - 1)
        return [self.settings.section(Section).weight * value], {"norms": value}

    def weights(self):
        return {"norms": self.settings.section(Section).weight}
"""


@pytest.fixture
def own_module(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "own_regularizer_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    settings._schema.cache_clear()
    sys.modules.pop("own_regularizer_of_a_test", None)


def method(regularizer: str, **fields: Any) -> HJEPA:
    config = base_config(regularizer=regularizer) if ":" in regularizer else base_config()
    config.loss.regularizer = regularizer
    config.dynamics.predictor = "identity"
    config.loss.update(match="qp", detach_target=False)
    config.sigreg.update(fields)
    return HJEPA(typed(config), StateShape(DIM), 4)


def views() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((2, 10, DIM)) * 1.3 + 0.2


def numpy_sigreg(z: np.ndarray, slices: np.ndarray, t_max: float, n_points: int) -> float:
    t = np.linspace(0, t_max, n_points)
    weights = np.full(n_points, 2 * t[1]) * np.exp(-(t**2) / 2)
    weights[[0, -1]] /= 2
    angle = (z @ slices)[..., None] * t
    error = (np.cos(angle).mean(1) - np.exp(-(t**2) / 2)) ** 2 + np.sin(angle).mean(1) ** 2
    return float(z.shape[1] * (error * weights).sum(-1).mean())


def test_the_loss_is_prediction_and_sigreg_of_the_whole_state() -> None:
    fields: dict[str, Any] = {"weight": 0.3, "num_slices": 5, "n_points": 7}
    with jax.enable_x64(True):
        own = method("sigreg", **fields)
        drawn = own.draw(
            jax.random.key(0), jnp.int32(3), num_rows=20, num_images=10, dtype=jnp.float64
        )
        assert drawn.keys() == {"slices"}
        z = views()

        def loss(z: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            return own.loss({}, {}, z, drawn, jnp.int32(3))

        total, metrics = jax.jit(loss)(jnp.asarray(z))
        prediction = np.mean((z[0] - z[1]) ** 2)
        expected = numpy_sigreg(z, np.asarray(drawn["slices"]), 3.0, 7)
        np.testing.assert_allclose(metrics["sigreg"], expected, rtol=1e-10)
        np.testing.assert_allclose(metrics["pred"], prediction, rtol=1e-10)
        np.testing.assert_allclose(total, prediction + 0.3 * expected, rtol=1e-10)
        np.testing.assert_allclose(metrics["z2"], np.mean(z**2), rtol=1e-10)
        assert not {"budget", "q_std_min"} & metrics.keys()
        assert_gradient(lambda z: loss(z)[0], z)
    assert own.weights() == {"pred": 1.0, "energy": 0.0, "sigreg": 0.3}
    assert own.targets() == {"z": 1.0}
    assert own.remedy("z", "mean") == "raise sigreg.weight"
    assert own.remedy("z", "pred").startswith("the flow moves")
    assert {"sigreg", "pred"} < own.suspects().keys()


def test_it_draws_the_slices_of_lejepa() -> None:
    fields: dict[str, Any] = {"num_rows": 20, "num_images": 10, "dtype": jnp.float32}
    config = cifar100.get_config("sigreg")
    config.sigreg.update(subsample=4, refresh_interval=3)
    lejepa = LeJEPA(typed(config), StateShape(DIM), 4)
    ours = method("sigreg", subsample=4, refresh_interval=3)
    for step in (0, 4):
        found = [m.draw(jax.random.key(1), jnp.int32(step), **fields) for m in (ours, lejepa)]
        assert found[0].keys() == {"slices", "subsample"}
        jax.tree.map(np.testing.assert_array_equal, *found)
    assert ours.redraw() == lejepa.redraw() == {"slices": 3}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["loss.budget_weight=0.3"], r"budget_weight is set to 0.3 .*loss.regularizer='floors'"),
        (["parity.q_variance_floor_only=True"], r"floor_only is set .*loss.regularizer='floors'"),
        (["sigreg.loss_form=convex"], "HJEPA adds SIGReg to its prediction"),
        (["sigreg.prediction_weight=8"], "HJEPA's prediction has weight 1"),
        (["sigreg.t_min=4"], "sigreg.t_min is 4.0, but it must be below"),
    ],
)
def test_fields_that_do_not_fit_are_refused(overrides: list[str], words: str) -> None:
    given = ["--config=imagenet100:smoke", "--config.loss.regularizer=sigreg"]
    resolve_arguments(given)
    with pytest.raises(UserError, match=words):
        resolve_arguments([*given, *(f"--config.{text}" for text in overrides)])


def test_fields_of_sigreg_need_it() -> None:
    with pytest.raises(UserError, match=r"sigreg\.weight is set .*loss.regularizer='sigreg'"):
        resolve_arguments(["--config=cifar100:smoke", "--config.sigreg.weight=0.3"])
    # LeJEPA has no section `loss`, whose regularizer has no effect then.
    with pytest.raises(UserError, match=r"loss.regularizer is set .*method='hjepa'"):
        resolve_arguments(["--config=cifar100:sigreg-smoke", "--config.loss.regularizer=sigreg"])


def test_choosing_another_resets_the_floors_of_the_recipe() -> None:
    given = ["--config=imagenet100", "--config.loss.regularizer=sigreg", "--config.sigreg.weight=1"]
    found = resolve_arguments(given)
    assert (found.value("loss.var_weight"), found.value("sigreg.weight")) == (0.5, 1.0)
    assert found.value("loss.match") == "qp"
    assert resolve(from_json(found.to_json())) == found


@pytest.mark.parametrize("name", ["sigregs", "hjepa_jax.methods.lejepa:LeJEPA"])
def test_what_is_no_regularizer_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'sigreg'|is not a valid regularizer"):
        method(name)


@pytest.mark.usefixtures("own_module")
def test_a_class_of_the_users_own() -> None:
    z = jnp.asarray(views(), jnp.float32)
    own = method(OWN)
    total, metrics = own.loss({}, {}, z, {}, jnp.int32(0))
    norms = (np.mean(views() ** 2) - 1) ** 2
    np.testing.assert_allclose(total, metrics["pred"] + 2 * norms, rtol=1e-4)
    given = ["--config=cifar100:smoke", f"--config.loss.regularizer={OWN}"]
    found = resolve_arguments([*given, "--config.norms.weight=3"])
    assert found.value("norms.weight") == 3.0
    with pytest.raises(UserError, match="set another"):
        resolve_arguments([*given, "--config.norms.weight=13"])
