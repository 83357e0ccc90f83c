"""Validation of a configuration: unknown, unused, out-of-range and contradictory fields.

Every problem is one sentence that names the field and what to do.
"""

from __future__ import annotations

import difflib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from hjepa_jax.config import Config, base_config, rows, sections
from hjepa_jax.config.renamed import RENAMED
from hjepa_jax.config.rules import RULES, TRAINING_RULES
from hjepa_jax.config.values import coerce, problems_of, shown
from hjepa_jax.errors import ConfigError
from hjepa_jax.storage.files import write_atomically
from hjepa_jax.storage.schema import Fields, parse_json, read_json


def flatten(config: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) for every leaf field."""
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def set_field(config: Config, path: str, value: Any) -> None:
    """Sets a field by its dotted name."""
    *parents, name = path.split(".")
    for parent in parents:
        config = config[parent]
    config[name] = value


def differences(there: Config, here: Config, counts: Callable[[str], bool]) -> list[str]:
    """Returns each field that `counts` and has another value here, with both values, for people."""
    old = dict(flatten(there))
    return [
        f"config.{name} ({old[name]!r} there, {value!r} here)"
        for name, value in flatten(here)
        if counts(name) and old[name] != value
    ]


def _nearest_field(path: str) -> str:
    """Returns the field that `path` most likely means: by its words, in its section first."""
    section, _, leaf = path.rpartition(".")
    leaves = {name: name.rpartition(".")[2] for name in rows()}
    inside = [name for name in rows() if name.rpartition(".")[0] == section]
    # What is asked for without its section is most often of the training.
    everywhere = sorted(rows(), key=lambda name: not name.startswith("train."))
    for names in (inside, everywhere):
        for name in names:
            if leaf == leaves[name] or leaf.lower() in rows()[name].spec.aliases:
                return name
    words = {leaves[name]: name for name in inside}
    words |= {alias: name for name in inside for alias in rows()[name].spec.aliases}
    near = difflib.get_close_matches(leaf, words, 1, 0.6)
    if near:
        return words[near[0]]
    return difflib.get_close_matches(path, tuple(rows()), 1, 0.0)[0]


def unknown_field(path: str) -> str | None:
    """Returns a sentence naming the nearest valid field if `path` is none, else None."""
    if path in rows() or path in sections():
        return None
    if path in RENAMED:
        return f"config.{path} is now config.{RENAMED[path]}: use the new name."
    return (
        f"config.{path[:100]} is not a field of the configuration: "
        f"did you mean config.{_nearest_field(path[:100])}?"
    )


def problems(config: Config, *, training: bool = True) -> Iterator[str]:
    """Yields a sentence for each problem of the configuration; arguments as `validate`."""
    fields = dict(flatten(config))
    values = [path for path in fields if path in sections()]
    if values:
        for path in values:
            yield (
                f"config.{path} is {shown(fields[path])}, but it is a section: set its fields, for "
                f"example config.{next(name for name in rows() if name.startswith(path + '.'))}."
            )
        return
    unknown = [sentence for path in fields if (sentence := unknown_field(path))]
    missing = [
        f"config.{path} is missing: start from hjepa_jax.config.base_config()."
        for path in rows()
        if path not in fields
    ]
    yield from unknown + missing
    if unknown or missing:
        return
    bad_values = [
        sentence for path, row in rows().items() for sentence in problems_of(row, fields[path])
    ]
    yield from bad_values
    if bad_values:
        return  # what is unused or contradictory depends on the values meant
    yield from _unused(config, fields)
    for rule in (*RULES, *(TRAINING_RULES if training else ())):
        yield from rule(config)


def _unused(config: Config, fields: dict[str, Any]) -> Iterator[str]:
    """Yields a sentence for each field that is set although it has no effect."""
    for path, row in rows().items():
        if fields[path] == row.default:
            continue
        for condition in row.conditions:
            if not condition.holds(config):
                yield (
                    f"config.{path} is set to {fields[path]!r} but has no effect here: "
                    f"leave it at {row.default!r}, or set {condition.remedy}."
                )
                break


def validate(config: Config, *, training: bool = True) -> None:
    """Checks the configuration.

    Args:
      config: the whole configuration.
      training: whether it is to be trained; what is evaluated may be a run that was cut short.

    Raises:
      ConfigError: with one sentence per problem, one a line.
    """
    found = list(problems(config, training=training))
    if found:
        raise ConfigError("\n".join(found))


def to_json(config: Config) -> str:
    """Returns the resolved configuration as indented JSON."""
    return json.dumps(config.to_dict(), indent=2)


def save(config: Config, workdir: pathlib.Path) -> None:
    """Writes the resolved configuration to `config.json`, whole or not at all."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(workdir / "config.json", to_json(config) + "\n")


def read(path: pathlib.Path) -> Config:
    """Reads a `config.json`, with its types restored from the base.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is no JSON, or has a field or value that cannot be.
    """
    return merge(base_config(), read_json(path, Fields(), constants=True))


def from_json(text: str, source: Any = "the configuration", field: str = "") -> Config:
    """Reads a configuration that `to_json` wrote, with its types restored from the base.

    Args:
      text: the JSON.
      source: name of the file that it stands in, for messages.
      field: where it stands there; '' = it is all of it.

    Raises:
      ConfigError: if it is no JSON, or has a field or value that cannot be.
    """
    try:
        values = parse_json(text, Fields(), source, field=field, constants=True)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return merge(base_config(), values)


def merge(config: Config, values: dict[str, Any], prefix: str = "") -> Config:
    """Sets the nested `values` in `config`, JSON lists becoming tuples.

    Raises:
      ConfigError: if a field does not exist or has a value that it cannot have.
    """
    for name, value in values.items():
        path = f"{prefix}{name}"
        if path in sections():
            if not isinstance(value, dict):
                raise ConfigError(
                    f"config.{path} is {shown(value)}, but it is a section of fields."
                )
            merge(config[name], value, f"{path}.")
            continue
        if path not in rows():
            raise ConfigError(unknown_field(path) or f"config.{path} is unknown.")
        for sentence in problems_of(rows()[path], value):
            raise ConfigError(sentence)
        config[name] = coerce(rows()[path], value)
    return config
