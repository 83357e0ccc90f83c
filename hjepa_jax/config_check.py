"""Validation of a configuration: unknown, unused, out-of-range and contradictory fields.

Every problem is one sentence that names the field and what to do.
"""

from __future__ import annotations

import difflib
import functools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from hjepa_jax.config import Config, base_config
from hjepa_jax.config_rules import (
    CHOICES,
    ELEMENT_CHOICES,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_ELEMENTS,
    PROBABILITIES,
    USED_WHEN,
)
from hjepa_jax.errors import ConfigError
from hjepa_jax.files import write_atomically


def flatten(config: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) for every leaf field."""
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differences(there: Config, here: Config, counts: Callable[[str], bool]) -> list[str]:
    """Returns each field that `counts` and has another value here, with both values, for people."""
    old = dict(flatten(there))
    return [
        f"config.{name} ({old[name]!r} there, {value!r} here)"
        for name, value in flatten(here)
        if counts(name) and old[name] != value
    ]


@functools.cache
def valid_fields() -> tuple[str, ...]:
    """Returns the dotted names of all fields."""
    return tuple(name for name, _ in flatten(base_config()))


def unknown_field(path: str) -> str | None:
    """Returns a sentence naming the nearest valid field if `path` is none, else None."""
    valid = valid_fields()
    sections = {name.rpartition(".")[0] for name in valid} - {""}
    if path in valid or path in sections:
        return None
    nearest = difflib.get_close_matches(path, valid, 1, 0.0)[0]
    same_leaf = [name for name in valid if name.split(".")[-1] == path.split(".")[-1]]
    return (
        f"config.{path} is not a field of the configuration: "
        f"did you mean config.{(same_leaf or [nearest])[0]}?"
    )


def problems(config: Config) -> Iterator[str]:
    """Yields a sentence for each problem of the configuration."""
    fields = dict(flatten(config))
    base = dict(flatten(base_config()))
    unknown = [sentence for path in fields if (sentence := unknown_field(path))]
    missing = [
        f"config.{path} is missing: start from hjepa_jax.config.base_config()."
        for path in base
        if path not in fields
    ]
    yield from unknown + missing
    if unknown or missing:
        return
    bad_values = list(_value_problems(fields))
    yield from bad_values
    if bad_values:
        return  # what is unused or contradictory depends on the values meant
    yield from _unused(config, fields, base)
    yield from _contradictions(config)


def _value_problems(fields: dict[str, Any]) -> Iterator[str]:
    chosen = [(path, fields[path], options) for path, options in CHOICES.items()]
    chosen += [(p, value, options) for p, options in ELEMENT_CHOICES.items() for value in fields[p]]
    for path, value, options in chosen:
        if value not in options:
            nearest = difflib.get_close_matches(str(value), options, 1, 0.0)[0]
            yield (
                f"config.{path} is {value!r}, which is none of {', '.join(map(repr, options))}: "
                f"did you mean {nearest!r}?"
            )
    for path in POSITIVE_ELEMENTS:
        if any(not value > 0 for value in fields[path]):
            yield f"config.{path} is {fields[path]}: each of its numbers must be above 0."
    for path in POSITIVE:
        if fields[path] is not None and not fields[path] > 0:
            yield f"config.{path} is {fields[path]}: it must be above 0."
    for path in NOT_NEGATIVE:
        if fields[path] < 0:
            yield f"config.{path} is {fields[path]}: it must not be negative."
    for path in PROBABILITIES:
        if not 0 <= fields[path] <= 1:
            yield f"config.{path} is {fields[path]}: a probability lies between 0 and 1."
    for path in ("data.global_scale", "data.local_scale", "data.augment.crop_aspect"):
        low, high = fields[path]
        if not 0 < low <= high:
            yield f"config.{path} is {fields[path]}: it must be (low, high) with 0 < low <= high."
    for path in ("data.global_scale", "data.local_scale"):
        if fields[path][1] > 1:
            yield f"config.{path} is {fields[path]}: a crop cannot be larger than the image (1.0)."
    if fields["evaluation.probe_folds"] < 2:
        yield (
            f"config.evaluation.probe_folds is {fields['evaluation.probe_folds']}: "
            "cross-validation needs 2 or more."
        )
    if fields["sigreg.n_points"] < 3 or fields["sigreg.n_points"] % 2 == 0:
        yield f"config.sigreg.n_points is {fields['sigreg.n_points']}: it must be odd, 3 or more."
    if len(fields["model.stage_blocks"]) != 4:
        yield (
            f"config.model.stage_blocks is {fields['model.stage_blocks']}: give the blocks of all "
            "four stages, for example (2, 2, 2, 2)."
        )
    kernel = fields["data.augment.blur_kernel"]
    if kernel % 2 == 0:
        yield f"config.data.augment.blur_kernel is {kernel}: it must be odd."


def _unused(config: Config, fields: dict[str, Any], base: dict[str, Any]) -> Iterator[str]:
    for path, value in fields.items():
        if value == base[path]:
            continue
        for prefix, (used, remedy) in USED_WHEN.items():
            exact = prefix in fields
            applies = path == prefix if exact else path.startswith(prefix)
            if applies and not used(config):
                yield (
                    f"config.{path} is set to {value!r} but has no effect here: "
                    f"leave it at {base[path]!r}, or set {remedy}."
                )
                break


def _contradictions(config: Config) -> Iterator[str]:
    data, model, hjepa = config.data, config.model, config.objective == "hjepa"
    if hjepa and not model.split_qp:
        yield (
            "config.model.split_qp is False but config.objective='hjepa' needs the state as "
            "[q | p]: set config.model.split_qp=True."
        )
    if hjepa and model.projector != "identity":
        yield (
            f"config.model.projector is {model.projector!r}, which would mix q and p: "
            "set config.model.projector='identity' for config.objective='hjepa'."
        )
    if hjepa and data.num_global_views < 2:
        yield (
            f"config.data.num_global_views is {data.num_global_views}: HJEPA predicts one global "
            "view from another and needs 2 or more."
        )
    width_field = "token_dim" if model.mode == "tokens" else "embed_dim"
    if model.split_qp and model[width_field] % 2:
        yield (
            f"config.model.{width_field} is {model[width_field]}: with config.model.split_qp=True "
            "it must be even, half for q and half for p."
        )
    if hjepa and config.dynamics.learn_dt:
        yield (
            "config.dynamics.learn_dt is True, but a learned dt collapses to zero in training "
            "(the prediction loss is smallest when nothing moves): set it to False."
        )
    if hjepa and config.loss.energy_weight > 0 and config.dynamics.predictor != "hamiltonian":
        yield (
            f"config.loss.energy_weight is {config.loss.energy_weight}, but predictor "
            f"{config.dynamics.predictor!r} has no energy: set it to 0."
        )
    if hjepa and config.loss.pairing == "local_to_global" and data.num_local_views == 0:
        yield (
            "config.loss.pairing is 'local_to_global' but config.data.num_local_views is 0: "
            "ask for local views, for example config.data.num_local_views=6."
        )
    grid = config.spectral.kind in ("chain_grid", "learnable")
    if not hjepa and grid and model.mode != "tokens":
        yield (
            f"config.spectral.kind is {config.spectral.kind!r}, which acts on the token grid: set "
            "config.model.mode='tokens', or config.spectral.kind='chain'."
        )
    if not hjepa and grid and model.projector != "identity":
        yield (
            f"config.spectral.kind is {config.spectral.kind!r}, which acts on the token grid, but "
            "the projector mixes the tokens: set config.model.projector='identity'."
        )
    pooled = model.mode == "global" or model.token_hw is not None
    if data.num_local_views > 0 and data.local_size != data.image_size and not pooled:
        yield (
            f"config.data.local_size ({data.local_size}) differs from config.data.image_size "
            f"({data.image_size}), so their token grids differ: set config.model.token_hw."
        )
    if data.batch_size % config.train.accumulation:
        yield (
            f"config.train.accumulation is {config.train.accumulation}, which does not divide "
            f"config.data.batch_size={data.batch_size}: choose a divisor of it."
        )
    yield from _evaluation_contradictions(config)


def _evaluation_contradictions(config: Config) -> Iterator[str]:
    model = config.model
    if config.evaluation.variant != "qp" and not model.split_qp:
        yield (
            f"config.evaluation.variant is {config.evaluation.variant!r} but "
            "config.model.split_qp is False: set config.evaluation.variant='qp'."
        )
    metric, knn = config.checkpoint.best_metric, ("online/knn_top1", "online/knn_top5")
    if metric.startswith("online/knn") and metric not in knn:
        yield f"config.checkpoint.best_metric is {metric!r}: it can be {' or '.join(knn)}."
    if metric in knn and config.evaluation.online_every_epochs is None:
        yield (
            f"config.checkpoint.best_metric is {metric!r}, but there is no online evaluation: set "
            "config.evaluation.online_every_epochs, or rank by a loss, for example 'total'."
        )
    if config.evaluation.headline_k not in config.evaluation.knn_k:
        yield (
            f"config.evaluation.headline_k is {config.evaluation.headline_k}, which is not among "
            f"config.evaluation.knn_k={config.evaluation.knn_k}: add it there."
        )
    if config.evaluation.coordinates == "sqrt_h" and model.projector != "identity":
        yield (
            "config.evaluation.coordinates is 'sqrt_h', but H acts on the output of the projector "
            f"{model.projector!r} and not on the state that is evaluated: set it to 'raw', or "
            "config.model.projector='identity'."
        )
    if config.evaluation.online_probe and model.projector != "identity":
        yield (
            "config.evaluation.online_probe is True, but it sees the output of the projector "
            f"{model.projector!r} and not the state that is evaluated: set it to False, or "
            "config.model.projector='identity'."
        )


def validate(config: Config) -> None:
    """Checks the configuration.

    Raises:
      ConfigError: with one sentence per problem, one a line.
    """
    found = list(problems(config))
    if found:
        raise ConfigError("\n".join(found))


def to_json(config: Config) -> str:
    """Returns the resolved configuration as indented JSON."""
    return json.dumps(config.to_dict(), indent=2)


def save(config: Config, workdir: pathlib.Path) -> None:
    """Writes the resolved configuration to `config.json`, whole or not at all."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(workdir / "config.json", to_json(config) + "\n")


def from_json(text: str) -> Config:
    """Reads a configuration that `to_json` wrote, with its types restored from the base."""
    return merge(base_config(), json.loads(text))


def merge(config: Config, values: dict[str, Any], prefix: str = "") -> Config:
    """Sets the nested `values` in `config`, JSON lists becoming tuples.

    Raises:
      ConfigError: if a field does not exist.
    """
    for name, value in values.items():
        if name not in config:
            raise ConfigError(unknown_field(f"{prefix}{name}") or f"config.{prefix}{name} unknown")
        if isinstance(value, dict):
            merge(config[name], value, f"{prefix}{name}.")
        else:
            config[name] = tuple(value) if isinstance(value, list) else value
    return config
