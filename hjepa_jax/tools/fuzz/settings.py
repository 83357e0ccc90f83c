"""Target `settings`: odd values of one to four fields of a tiny configuration.

Validation refuses them, or they train two steps and are evaluated: all numbers must be finite, and
a divergence must be blamed on one of the fields that were drawn.
"""

from __future__ import annotations

import json
import math
import pathlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from hjepa_jax.config import base_config, files, resolve, rows
from hjepa_jax.config.fields import Row
from hjepa_jax.errors import CheckpointError, ConfigError, TrainingError
from hjepa_jax.evaluate import evaluate
from hjepa_jax.recipes.variants.apply import chain, smoke
from hjepa_jax.recipes.variants.methods import (
    ham_chain,
    ham_diag,
    ham_learnable,
    identity_predictor,
    mlp_predictor,
)
from hjepa_jax.train import train

# Values of a numeric kind, and of others.
_NUMBERS = (math.nan, math.inf, -math.inf, -1, 0, 1, 2, 3, 1e-30, 1e12, 2**70, -(2**70), 10**9)
_OTHERS = (None, True, "", "x", "None", (), [], {}, (1,), (1, None), "0.5", b"x", 1j)
# Fields that name a method, a dataset or a folder are not tested.
_UNTESTED = ("method", "data.name", "data.root", "train.init_from")
# Fields that make a run longer, reduced after validation.
_CUT = {
    "train.max_steps": 2,
    "evaluation.probe_epochs": 2,
    "data.num_workers": 0,
}


def _sigreg(config: ConfigDict) -> None:
    config.method = "lejepa"
    config.train.grad_clip = None


_METHODS: dict[str, Callable[[ConfigDict], None]] = {
    "hjepa": lambda config: None,
    "mlp": mlp_predictor,
    "identity": identity_predictor,
    "sigreg": _sigreg,
    "ham_diag": chain(_sigreg, ham_diag),
    "ham_chain": chain(_sigreg, ham_chain),
    "ham_learnable": chain(_sigreg, ham_learnable),
}


def _tiny(method: str) -> ConfigDict:
    config = base_config()
    _METHODS[method](config)
    smoke(config)
    config.data.update(batch_size=8, max_train_images=24, max_test_images=12, image_size=8)
    config.resnet.width = 4
    config.evaluation.update(batch_size=16, knn_k=(1, 3), headline_k=3, random_baseline=False)
    config.evaluation.update(alignment_samples=8, spectrum_samples=16, max_pairs=32)
    return config


def _inside(rng: random.Random, row: Row) -> float:
    """Returns a number near a bound of the row or a multiple of its default."""
    spec = row.spec
    low = spec.above if spec.at_least is None else spec.at_least
    assert low is not None
    assert spec.at_most is not None
    step = 1 if row.kind is int else 1e-6
    near = [low, low + step, low - step]
    # A size at its upper bound may need the memory of a large machine.
    if row.kind is float or spec.at_most == 2**31 - 1:
        near += [spec.at_most, spec.at_most + step]
    first = row.default[0] if row.length is not None and row.default else row.default
    if first is not None and row.length != "any":
        near += [first * factor for factor in (0.1, 0.5, 2, 3)]
    value = rng.choice(near)
    return int(value) if row.kind is int else float(value)


def _one(rng: random.Random, row: Row) -> Any:
    if row.choices and rng.random() < 0.8:
        return rng.choice(row.choices)
    if row.kind is bool and rng.random() < 0.8:
        return rng.random() < 0.5
    if row.kind in (int, float) and rng.random() < 0.7:
        return _inside(rng, row)
    return rng.choice((*_NUMBERS, *_OTHERS))


def _odd_value(rng: random.Random, row: Row) -> object:
    if row.optional and rng.random() < 0.2:
        return None
    if row.length is None or rng.random() < 0.2:
        return _one(rng, row)
    length = rng.randrange(3) if row.length == "any" else int(row.length)
    value = [_one(rng, row) for _ in range(length)]
    if row.spec.ordered and all(type(part) in (int, float) for part in value):
        value.sort()
    if rng.random() < 0.1:
        value.append(_one(rng, row))
    return tuple(value)


def draw(rng: random.Random) -> tuple[str, ConfigDict, dict[str, object]]:
    """Returns (method, configuration, the fields that were set)."""
    method = rng.choice(list(_METHODS))
    config = _tiny(method)
    names = [name for name in rows() if name not in _UNTESTED]
    changes = {}
    for name in rng.sample(names, rng.randint(1, 4)):
        changes[name] = _odd_value(rng, rows()[name])
        try:
            files.set_field(config, name, changes[name])
        except TypeError:  # ml_collections refuses some types itself.
            _refused_as_json(name, changes[name])
            del changes[name]
    return method, config, changes


def _refused_as_json(name: str, value: object) -> None:
    """Checks that a saved configuration with a value of another type is refused as well."""
    *parents, leaf = name.split(".")
    values: dict[str, object] = {leaf: value}
    for parent in reversed(parents):
        values = {parent: values}
    said = ""
    try:
        files.merge(base_config(), values)
    except ConfigError as error:
        said = str(error)
    assert f"config.{name}" in said, f"{value!r} as JSON: {said!r}"


def _numbers(values: Any) -> Iterator[float]:
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, (dict, list)):
            yield from _numbers(value)
        elif isinstance(value, (int, float)):
            yield value


def run(config: ConfigDict, changes: dict[str, object], folder: pathlib.Path) -> None:
    """Validates, trains two steps and evaluates.

    Raises:
      UserError: if it is refused.
      TrainingError: if training diverges, blaming a changed field.
      AssertionError: if it fails without an explanation.
    """
    resolve(config)
    for name, value in _CUT.items():
        files.set_field(config, name, value)
    if config.evaluation.few_shot:
        config.evaluation.few_shot_trials = 2
    try:
        state = train(config, folder / "run")
    except TrainingError as error:
        if any(f"config.{name}" in str(error) for name in changes):
            raise
        raise AssertionError(f"another field is blamed: {error}") from error
    except CheckpointError as error:  # The folder is new and writable: no disk is to blame.
        raise AssertionError(f"the folder is blamed: {error}") from error
    assert int(state.step) == 2
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        assert np.isfinite(leaf).all(), f"{jax.tree_util.keystr(path)} is not finite"
    if any(name.startswith("evaluation.") for name in changes):
        metrics = evaluate(config, folder / "run", folder / "eval")
        assert all(map(math.isfinite, _numbers(json.loads(json.dumps(metrics))))), metrics


def make(rng: random.Random, folder: pathlib.Path) -> tuple[str, Callable[[], None]]:
    """Returns a description of an odd configuration, and a function that runs it."""
    method, config, changes = draw(rng)
    about = ", ".join(f"{name}={value!r:.40}" for name, value in changes.items())
    return f"{method}: {about}", lambda: run(config, changes, folder)
