"""A method with parts, a state, random numbers and schedules of its own, used as documented."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import PyTree
from ml_collections import ConfigDict

from hjepa_jax.config import Settings, base_config, resolve
from hjepa_jax.config.checks import typed
from hjepa_jax.config.fields import field
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import ConfigError
from hjepa_jax.methods.base import Method, Metrics, Randomness, Rate, Suspect
from hjepa_jax.recipes.variants.apply import smoke
from hjepa_jax.runtime import sharding
from hjepa_jax.tools.kill_test import differing_arrays, final_state
from hjepa_jax.train import train
from hjepa_jax.training.announcement import cautions
from hjepa_jax.training.nonfinite import diagnosis
from hjepa_jax.training.optimizer import MAIN
from hjepa_jax.training.prepare import prepare
from hjepa_jax.training.setup import build_method


@dataclasses.dataclass(frozen=True)
class MovingSection:
    """A head that predicts a moving average."""

    decay: float = field(0.9, "Of the moving average.", at_least=0, at_most=1)
    ramp_epochs: float = field(0.5, "Epochs of a ramp.", at_least=0)


class Moving(Method):
    """Two heads: the one of the rate zero stays as it was, the other one learns."""

    sections: ClassVar = {"moving": MovingSection}

    @classmethod
    def problems(cls, settings: Settings) -> Iterator[str]:
        if settings.section(MovingSection).decay == 1:
            yield "config.moving.decay is 1, so that nothing moves: lower it."

    @classmethod
    def unfinished(cls, settings: Settings, epochs: float) -> Iterator[tuple[str, float]]:
        ramp = settings.section(MovingSection).ramp_epochs
        if ramp >= epochs:
            yield "moving.ramp_epochs", ramp

    @classmethod
    def trains_predictor(cls, settings: Settings) -> bool:
        return True

    @classmethod
    def shrink(cls, config: ConfigDict) -> None:
        config.moving.decay = 0.5

    def warnings(self) -> Iterator[str]:
        yield "config.moving.decay may be a mistake."

    def init(self, key: jax.Array, z: jax.Array) -> dict[str, PyTree]:
        dim = z.shape[-1]
        still, moved = jax.random.normal(key, (2, dim, dim)) / dim
        return {"still": {"kernel": still}, "predictor": {"kernel": moved}}

    def init_state(self) -> PyTree:
        return {"mean": jnp.zeros(self.shape.dim), "steps": jnp.zeros((), jnp.int32)}

    def draw(
        self, key: jax.Array, step: jax.Array, *, num_rows: int, num_images: int, dtype: Any
    ) -> Randomness:
        shape = (num_rows // num_images, num_images, self.shape.dim)
        return {"noise": jax.random.normal(jax.random.fold_in(key, step), shape, dtype)}

    def loss(
        self,
        params: Mapping[str, PyTree],
        method_state: PyTree,
        z: jax.Array,
        randomness: Randomness,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics]:
        heads = params["still"]["kernel"] + params["predictor"]["kernel"]
        predicted = (z + 0.1 * randomness["noise"]) @ heads
        error = jnp.mean(jnp.square(predicted - method_state["mean"] - 1))
        return 2 * error, {"error": error}

    def update_state(
        self, method_state: PyTree, z: jax.Array, randomness: Randomness, step: jax.Array
    ) -> PyTree:
        decay = self.settings.section(MovingSection).decay
        mean = decay * method_state["mean"] + (1 - decay) * jnp.mean(z, axis=(0, 1))
        return {"mean": mean, "steps": step + 1}

    def learning_rates(self) -> dict[str, Rate]:
        return {**super().learning_rates(), "still": Rate(0.0, 0.0)}

    def suspects(self) -> dict[str, Suspect]:
        return {"error": Suspect("the moved state", ("moving.decay",))}


NAME = f"{__name__}:Moving"


def config(**train_fields: Any) -> ConfigDict:
    found = base_config(method=NAME)
    found.resnet.update(width=4, token_dim=4)
    smoke(found)
    found.train.update(max_steps=3, predictor_lr=0.1, **train_fields)
    found.checkpoint.every_steps = 1
    return found


def trained(workdir: pathlib.Path, **train_fields: Any) -> Any:
    train(config(**train_fields), workdir)
    return final_state(workdir)


def test_its_parts_and_state_are_trained_saved_and_resumed(tmp_path) -> None:
    whole = trained(tmp_path / "whole")
    run = prepare(typed(config()), len(open_split(typed(config()), "train")), sharding.data_mesh())
    first = jax.device_get(run.init())
    assert set(whole.params) == {"encoder", "still", "predictor"}
    assert int(whole.method_state["steps"]) == 3
    assert np.abs(whole.method_state["mean"]).max() > 0
    np.testing.assert_array_equal(whole.params["still"]["kernel"], first.params["still"]["kernel"])
    moved = np.abs(whole.params["predictor"]["kernel"] - first.params["predictor"]["kernel"])
    # Adam moves an entry by about its rate in a step: by the predictor's, not by the main one.
    assert moved.max() > 10 * config().train.lr
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for step in (2, 3):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / str(step))
    assert not differing_arrays(trained(tmp_path / "cut"), whole)


def test_its_rates_are_schedules_beside_the_main_one() -> None:
    run = prepare(typed(config()), 64, sharding.data_mesh())
    peaks = {
        name: max(float(rate(step)) for step in range(8)) for name, rate in run.setup.rates.items()
    }
    assert peaks == pytest.approx({MAIN: config().train.lr, "predictor": 0.1, "still": 0.0})


def test_its_sentences_are_told() -> None:
    found = config()
    assert found.moving.decay == 0.5  # the size of a smoke test
    settings = resolve(found)
    method = build_method(settings, 4)
    assert next(cautions(settings, method, 64)) == "config.moving.decay may be a mistake."
    report = {"not_finite": [], "loss_terms": {"error": "nan"}, "gradient_norms": {}}
    what, fields = diagnosis(settings, method, report, updated=False)
    assert (what, fields) == ("the moved state is not finite", "config.moving.decay (0.5)")
    found.moving.decay = 1.0
    with pytest.raises(ConfigError, match="so that nothing moves"):
        resolve(found)
    found.moving.update(decay=0.9, ramp_epochs=7.0)
    with pytest.raises(ConfigError, match=r"config\.moving\.ramp_epochs=7"):
        resolve(found)
