"""The configuration as a ConfigDict: the form of config files, command line and `config.json`."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from hjepa_jax.config.fields import AUTO, Row
from hjepa_jax.config.parts import TABLES, load_part, own_fields
from hjepa_jax.config.settings import Schema, Settings, schema
from hjepa_jax.config.unknown import unknown_field
from hjepa_jax.config.values import coerce, problems_of, shown
from hjepa_jax.errors import ConfigError
from hjepa_jax.storage.files import write_atomically
from hjepa_jax.storage.schema import Fields, parse_json, read_json


def base_config(**parts: str) -> ConfigDict:
    """Returns the base configuration, the CIFAR-100 HJEPA recipe on the embedded dataset.

    Args:
      **parts: `method`, `regularizer`, `encoder` or `source` by import path, 'module.path:Class',
        to include their sections.
    """
    fields = {
        "method": "method",
        "regularizer": "loss.regularizer",
        "encoder": "model.encoder",
        "source": "data.name",
    }
    named = {fields[kind]: name for kind, name in parts.items()}
    config = ConfigDict({})
    _add(config, schema(named).rows)
    for path, name in named.items():
        set_field(config, path, name)
    return config


class _Choosable(config_dict.FieldReference):
    """A field that may also be the word AUTO, whatever its type."""

    def set(self, value: object, type_safe: bool = True) -> None:
        """Sets the value, of the field's type or AUTO."""
        super().set(value, type_safe and value != AUTO)


def _add(config: ConfigDict, rows: Mapping[str, Row]) -> None:
    """Adds fields at their defaults."""
    for path, row in rows.items():
        *parents, name = path.split(".")
        target = config
        for parent in parents:
            if parent not in target:
                target[parent] = ConfigDict({})
            target = target[parent]
        # A field reference keeps its type even if its value is None.
        kind = tuple if row.length is not None else row.kind
        reference = _Choosable if row.spec.auto else config_dict.FieldReference
        target[name] = (
            reference(row.default, field_type=kind)
            if row.optional or row.spec.auto
            else row.default
        )


def schema_of_config(config: ConfigDict) -> Schema:
    """Returns the schema of the parts that a configuration names.

    Raises:
      ConfigError: if an import path does not resolve, or sections collide.
    """
    return schema(named_parts(config))


def named_parts(config: ConfigDict) -> dict[str, str]:
    """Returns the values of the fields that name parts, by dotted name."""
    values = dict(flatten(config))
    return {path: values[path] for path in TABLES if path in values}


def complete(config: ConfigDict) -> None:
    """Adds missing sections of parts that are named by import path."""
    found = schema_of_config(config)
    missing = {name for name in found.parts if name not in config}
    rows = {path: row for path, row in found.rows.items() if path.split(".")[0] in missing}
    with config.unlocked():
        _add(config, rows)


def choose_part(config: ConfigDict, path: str, name: str) -> None:
    """Selects another part, whose sections replace those of the previous part.

    Args:
      config: changed in place. Sections that the new part lacks are reset to their defaults, or
        removed if the previous part was named by import path. Fields that the previous part has in
        another section are reset as well.
      path: a field in TABLES.
      name: the new part.

    Raises:
      ConfigError: see `load_part`.
    """
    kept = load_part(TABLES[path], name)
    try:
        before = load_part(TABLES[path], dict(flatten(config))[path])
    except (ConfigError, KeyError):
        before = kept  # the previous name was wrong; the new one replaces it
    set_field(config, path, name)
    with config.unlocked():
        for section in set(before.sections) - set(kept.sections):
            del config[section]
    complete(config)
    rows = schema_of_config(config).rows
    for field in set(own_fields(before)) - set(own_fields(kept)):
        set_field(config, field, rows[field].default)


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) for every leaf field."""
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def set_field(config: ConfigDict, path: str, value: object) -> None:
    """Sets a field by its dotted name."""
    *parents, name = path.split(".")
    for parent in parents:
        config = config[parent]
    config[name] = value


def differences(there: Settings, here: Settings, counts: Callable[[str], bool]) -> list[str]:
    """Returns a text for each differing field for which `counts` is true, with both values."""
    old = there.values()
    return [
        f"config.{name} ({old.get(name)!r} there, {value!r} here)"
        for name, value in here.values().items()
        if counts(name) and old.get(name) != value
    ]


def save(settings: Settings, workdir: pathlib.Path) -> None:
    """Writes the settings to `config.json` atomically."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(workdir / "config.json", settings.to_json() + "\n")


def read(path: pathlib.Path) -> ConfigDict:
    """Reads a `config.json`, restoring types from the base configuration.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is not JSON, or has an unknown field or invalid value.
    """
    return from_values(read_json(path, Fields(), constants=True))


def from_json(text: str, source: object = "the configuration", field: str = "") -> ConfigDict:
    """Reads a configuration written by `Settings.to_json`, restoring types from the base one.

    Args:
      text: the JSON.
      source: name of the file that contains it, for messages.
      field: the field of the file that holds it; '' = the entire file.

    Raises:
      ConfigError: if it is not JSON, or has an unknown field or invalid value.
    """
    try:
        values = parse_json(text, Fields(), source, field=field, constants=True)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return from_values(values)


def from_values(values: Mapping[str, object]) -> ConfigDict:
    """Returns the base configuration with nested values and the sections of the named parts.

    Raises:
      ConfigError: if a field does not exist or has an invalid value.
    """
    if "objective" in values and "method" not in values:
        raise ConfigError(
            "it was written by hjepa_jax 0.1, whose runs this version cannot read: install 0.1 to "
            "use it, or start a new run in another --workdir."
        )
    config = base_config()
    for path in TABLES:
        *parents, name = path.split(".")
        found: object = values
        for parent in parents:
            found = found.get(parent) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping) and isinstance(found.get(name), str):
            with config.unlocked():
                set_field(config, path, found[name])
    complete(config)
    return merge(config, values)


def merge(
    config: ConfigDict, values: Mapping[str, object], prefix: str = "", of: Schema | None = None
) -> ConfigDict:
    """Sets the nested `values` in `config`, converting JSON lists to tuples.

    Args:
      config: the section with the name `prefix`, changed in place and returned.
      values: values by name; a section is a nested mapping.
      prefix: dotted name of the section, ending with a period; '' = the complete configuration.
      of: schema of the complete configuration; None = that of `config`.

    Raises:
      ConfigError: if a field does not exist or has an invalid value.
    """
    of = of or schema_of_config(config)
    for name, value in values.items():
        path = f"{prefix}{name}"
        if path in of.sections:
            if not isinstance(value, dict):
                raise ConfigError(
                    f"config.{path} is {shown(value)}, but it is a section of fields."
                )
            merge(config[name], value, f"{path}.", of)
            continue
        if path not in of.rows:
            raise ConfigError(unknown_field(of, path) or f"config.{path} is unknown.")
        for sentence in problems_of(of.rows[path], value):
            raise ConfigError(sentence)
        config[name] = coerce(of.rows[path], value)
    return config
