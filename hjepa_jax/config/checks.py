"""Checks of a configuration: unknown, unused, out-of-range and contradictory fields.

Every problem is one sentence that names the field and says what to do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from ml_collections import ConfigDict

from hjepa_jax.config.fields import AUTO, Condition, Row
from hjepa_jax.config.files import complete, flatten, schema_of_config, set_field
from hjepa_jax.config.rules import RULES, TRAINING_RULES
from hjepa_jax.config.settings import Runtime, Settings, build, chosen_parts, schema_of
from hjepa_jax.config.unknown import unknown_field
from hjepa_jax.config.values import coerce, problems_of, shown
from hjepa_jax.errors import ConfigError
from hjepa_jax.storage.metric_names import name_of


def problems(config: ConfigDict) -> Iterator[str]:
    """Yields a sentence for each field that is unknown, missing, or has an invalid value."""
    of = schema_of_config(config)
    rows, fields = of.rows, dict(flatten(config))
    values = [path for path in fields if path in of.sections]
    for path in values:
        yield (
            f"config.{path} is {shown(fields[path])}, but it is a section: set its fields, for "
            f"example config.{next(name for name in rows if name.startswith(path + '.'))}."
        )
    if values:
        return
    unknown = [sentence for path in fields if (sentence := unknown_field(of, path))]
    yield from unknown
    missing = [path for path in rows if path not in fields]
    for path in missing:
        yield f"config.{path} is missing: start from hjepa_jax.config.base_config()."
    if not unknown and not missing:
        for path, row in rows.items():
            yield from problems_of(row, fields[path])
        chosen = automatic(config)
        if chosen:
            yield (
                f"config.{chosen[0]} is {AUTO!r}, which only a training can choose, from its "
                "images: give it a value, or take the config.json of a run."
            )


def automatic(config: ConfigDict) -> tuple[str, ...]:
    """Returns the fields whose values are to be chosen, by dotted name in order of declaration."""
    rows, fields = schema_of_config(config).rows, dict(flatten(config))
    return tuple(path for path, row in rows.items() if row.spec.auto and fields.get(path) == AUTO)


def with_defaults(config: ConfigDict) -> tuple[ConfigDict, tuple[str, ...]]:
    """Returns a copy with the defaults of the fields that are 'auto', and their dotted names."""
    wanted, rows = automatic(config), schema_of_config(config).rows
    plain = config.copy_and_resolve_references()
    with plain.ignore_type():
        for path in wanted:
            set_field(plain, path, rows[path].default)
    return plain, wanted


def contradictions(settings: Settings, *, training: bool = True) -> Iterator[str]:
    """Yields a sentence for each field that has no effect or contradicts another.

    Args:
      settings: settings whose values are individually valid.
      training: True for training; evaluation also accepts runs that were cut short.
    """
    yield from _unused(settings)
    for rule in (*RULES, *(TRAINING_RULES if training else ())):
        yield from rule(settings)
    for part in chosen_parts(settings):
        yield from part.problems(settings)


def unused(settings: Settings) -> Iterator[tuple[Row, Condition]]:
    """Yields each field that is set although it has no effect, and the condition that fails."""
    values = settings.values()
    for path, row in schema_of(settings).rows.items():
        if values[path] != row.default:
            failing = (one for one in row.conditions if not one.holds(settings))
            yield from ((row, condition) for condition in itertools.islice(failing, 1))


def _unused(settings: Settings) -> Iterator[str]:
    """Yields a sentence for each field of `unused`."""
    values = settings.values()
    for row, condition in unused(settings):
        yield (
            f"config.{row.path} is set to {values[row.path]!r} but has no effect here: "
            f"leave it at {row.default!r}, or set {condition.remedy}."
        )


def typed(config: ConfigDict | Settings) -> Settings:
    """Returns the settings of a configuration, checking each value on its own.

    Settings are returned as they are.

    Raises:
      ConfigError: one line per problem.
    """
    if isinstance(config, Settings):
        return config
    complete(config)
    found = list(problems(config))
    if found:
        raise ConfigError("\n".join(found))
    of, values = schema_of_config(config), dict(flatten(config))
    given = {path: coerce(row, values[path]) for path, row in of.rows.items()}
    given["checkpoint.best_metric"] = name_of(given["checkpoint.best_metric"])
    return build(of, given)


def runtime_of(config: ConfigDict | Settings) -> Runtime:
    """Returns the section `runtime` of a configuration, in which other fields may be 'auto'.

    Raises:
      ConfigError: one line per problem with a value.
    """
    return typed(config if isinstance(config, Settings) else with_defaults(config)[0]).runtime


def resolve(config: ConfigDict | Settings, *, training: bool = True) -> Settings:
    """Checks a configuration; called once at each entry point of the package.

    Args:
      config: the complete configuration; settings, already checked, are returned as they are.
      training: True for training; evaluation also accepts runs that were cut short.

    Returns:
      The settings that all code below the entry points takes.

    Raises:
      ConfigError: one line per problem.
    """
    if isinstance(config, Settings):
        return config
    settings = typed(config)
    found = list(contradictions(settings, training=training))
    if found:
        raise ConfigError("\n".join(found))
    return settings
