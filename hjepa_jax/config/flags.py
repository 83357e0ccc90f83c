"""Parsing of command lines: configuration files, overrides, and one-sentence errors.

A program defines `--config` by `define_config`; see `hjepa_jax.config.command_line.program`.
"""

from __future__ import annotations

import collections
import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from hjepa_jax.config import checks, files
from hjepa_jax.config.fields import AUTO, Row
from hjepa_jax.config.load import load_config
from hjepa_jax.config.parts import TABLES
from hjepa_jax.config.settings import Schema, Settings, schema
from hjepa_jax.config.unknown import field_of_word, unknown_field
from hjepa_jax.config.values import TRUTH, coerce, parse, problems_of
from hjepa_jax.errors import UserError, first_line

# Flags defined here belong to the calling program and appear in its --help.
flags.disclaim_key_flags()

# Flags that stand for several fields, with the value of each; {} is that of the flag.
_SHORT = {"data": {"data.name": "folder", "data.root": "{}", "data.test_holdout": AUTO}}
_OVERRIDE = re.compile(r"--?(no)?config\.([^=\s]*)(?:[=\s](.*))?", re.DOTALL)


def define_config(
    default: str | None, meaning: str, *, values: flags.FlagValues = flags.FLAGS
) -> flags.FlagHolder[Any]:
    """Defines `--config`, whose parsed value is the configuration with overrides, and `--data`."""
    # For the help: `split_overrides` takes it out of the command line.
    flags.DEFINE_string(
        "data", None, "Folder of images, instead of other data.", flag_values=values
    )
    return flags.DEFINE_string("config", default, meaning, flag_values=values)


def field_of(path: str, of: Schema | None = None) -> Row:
    """Returns the row of a field.

    Args:
      path: dotted name of the field.
      of: schema to search; None = that of the built-in parts.

    Raises:
      UserError: if it does not exist; the message suggests the nearest one.
    """
    of = of or schema()
    if path in of.sections:
        example = next(name for name in of.rows if name.startswith(f"{path}."))
        raise UserError(
            f"config.{path} is a section: set its fields, for example --config.{example}."
        )
    if sentence := unknown_field(of, path):
        raise UserError(sentence)
    return of.rows[path]


def parse_override(path: str, text: str, of: Schema | None = None) -> object:
    """Parses a text as the value of a field; arguments as in `field_of`.

    Raises:
      UserError: if the field does not exist or the value is invalid.
    """
    row = field_of(path, of)
    value = coerce(row, parse(row, text))
    for sentence in problems_of(row, value):
        raise UserError(sentence)
    return value


def _is_value(argument: str, kind: type) -> bool:
    """Returns whether the argument that follows `--config.field` is its value."""
    if kind is bool:
        return argument.strip().lower() in (*TRUTH, "none", "null")
    return not re.match(r"--?[A-Za-z]", argument)


def _schema_for(argv: list[str], given: str | ConfigDict | None) -> Schema:
    """Returns the schema of the parts named on a command line or in its `--config`."""
    named, paths = {}, []
    for argument, following in zip(argv, [*argv[1:], ""]):
        if argument == "--":
            break
        name, equals, text = argument.lstrip("-").partition("=")
        text = text if equals else following
        if argument.startswith("-") and name == "config":
            given = text
        elif match := _OVERRIDE.fullmatch(argument):
            paths.append(match[2])
            if match[2] in TABLES:
                named[match[2]] = text.strip("'\"")
    of = schema(named)
    if given is None or all(path in of.rows for path in paths):
        return of
    config = load_config(given) if isinstance(given, str) else given
    return schema(files.named_parts(config) | named)


def _written_out(argv: Sequence[str]) -> Iterator[str]:
    """Yields the arguments, with `--data=DIR` as the overrides of the fields that it stands for.

    Raises:
      UserError: if it has no value.
    """
    rest = collections.deque(argv)
    while rest:
        argument = rest.popleft()
        if argument == "--":
            yield argument
            yield from rest
            return
        name, equals, text = argument.partition("=")
        fields = _SHORT.get(name.lstrip("-")) if argument.startswith("-") else None
        if fields is None:
            yield argument
            continue
        if not equals:
            text = rest.popleft() if rest and _is_value(rest[0], str) else ""
        if not text:
            raise UserError(f"{name} has no value: write {name}=FOLDER.")
        for path, value in fields.items():
            yield f"--config.{path}={value.format(text)}"


def split_overrides(
    argv: list[str], given: str | ConfigDict | None = None
) -> tuple[list[str], list[tuple[str, object]]]:
    """Takes the overrides out of a command line.

    An override is `--config.section.field=value` or `--config.section.field value`; for booleans
    also `--config.section.field` and `--noconfig.section.field`. `--data=DIR` is short for
    `--config.data.name=folder --config.data.root=DIR`, with a test set held out if there is none.

    Args:
      argv: the arguments.
      given: the configuration or its name, if the arguments have no `--config`.

    Returns:
      (the other arguments, (dotted name, value) of each override in order).

    Raises:
      UserError: if an overridden field does not exist or the value is invalid.
    """
    argv = list(_written_out(argv))
    kept, overrides, rest = [], [], collections.deque(argv)
    of = _schema_for(argv, given)
    while rest:
        argument = rest.popleft()
        match = _OVERRIDE.fullmatch(argument)
        if argument == "--":
            kept += [argument, *rest]
            break
        if match is None:
            kept.append(argument)
            continue
        negated, path, text = match.groups()
        row = field_of(path, of)
        if negated or (text is None and row.kind is bool and row.length is None):
            text = "false" if negated else "true"
            if not negated and rest and _is_value(rest[0], bool):
                text = rest.popleft()
        elif text is None:
            if not rest or not _is_value(rest[0], row.kind):
                raise UserError(f"--config.{path} has no value: write --config.{path}=VALUE.")
            text = rest.popleft()
        if negated and row.kind is not bool:
            raise UserError(f"--noconfig.{path}: config.{path} is not True or False.")
        overrides.append((path, parse_override(path, text, of)))
    return kept, overrides


def apply_overrides(config: ConfigDict, overrides: list[tuple[str, object]], source: str) -> None:
    """Applies the overrides in order; the last one of a field wins."""
    # Parts first: fields of their sections may precede them on the command line.
    for path, value in sorted(overrides, key=lambda override: override[0] not in TABLES):
        try:
            if path in TABLES:
                files.choose_part(config, path, str(value))
                continue
            files.complete(config)
            files.set_field(config, path, value)
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f"config.{path} cannot be set in --config={source}: {first_line(error)}"
            ) from error


def config_of_arguments(arguments: list[str]) -> ConfigDict:
    """Returns the configuration that another process would get from its arguments.

    Args:
      arguments: arguments that include `--config=FILE` and overrides.

    Raises:
      UserError: if there is no such configuration, or an override is wrong.
    """
    kept, overrides = split_overrides(arguments)
    (source,) = (text.partition("=")[2] for text in kept if text.startswith("--config="))
    config = load_config(source)
    apply_overrides(config, overrides, source)
    return config


def resolve_arguments(arguments: list[str]) -> Settings:
    """Returns the settings that another process would get from its arguments.

    Args:
      arguments: arguments that include `--config=FILE` and overrides.

    Raises:
      UserError: if the other process would reject them.
    """
    plain, chosen = checks.with_defaults(config_of_arguments(arguments))
    # Whether fields agree that the other process will choose, it will find itself.
    return checks.typed(plain) if chosen else checks.resolve(plain)


class CommandLine(NamedTuple):
    """A parsed command line.

    Attributes:
      arguments: the arguments that are not flags, starting with the program's name.
      source: the text of `--config`; None without one.
      overrides: (dotted name, value) of each override in order.
    """

    arguments: list[str]
    source: str | None
    overrides: list[tuple[str, object]]


def parse_command_line(values: flags.FlagValues, argv: list[str], program: str) -> CommandLine:
    """Parses flags, and loads the configuration of `--config` with its overrides, in their order.

    Args:
      values: the program's own flags; those of libraries are parsed with them.
      argv: the program's name and its arguments.
      program: the program's name, for messages.

    Raises:
      UserError: one sentence about what is wrong.
    """
    configured = "config" in list(values)
    given = values["config"].value if configured else None
    try:
        everything = _with_libraries(values)
        expanded = [argv[0], *everything.read_flags_from_files(argv[1:], force_gnu=True)]
        kept, overrides = split_overrides(expanded, given)
        rest = everything(kept)
    except flags.UnrecognizedFlagError as error:
        raise UserError(_unknown_flag(error.flagname, values, program)) from error
    except (flags.Error, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(first_line(error, 400)) from error
    for parsed in (values, flags.FLAGS):
        parsed.mark_as_parsed()
    flag: Any = values["config"] if configured else None
    if flag is None:
        return CommandLine(rest, None, overrides)
    if flag.value is None:
        if overrides:
            raise UserError(f"config.{overrides[0][0]} is set, but there is no --config.")
        return CommandLine(rest, None, [])
    source = flag.value
    # When parsed a second time (in tests), the flag already holds the configuration.
    config = load_config(source, _tell) if isinstance(source, str) else source
    apply_overrides(config, overrides, str(source))
    flag.value = config
    return CommandLine(rest, source if isinstance(source, str) else None, overrides)


def _tell(sentence: str) -> None:
    """Prints a sentence about the configuration."""
    # It takes a tenth of a second, which other command lines need not wait for.
    from hjepa_jax.console import BOARD

    BOARD.say(sentence)


def _with_libraries(values: flags.FlagValues) -> flags.FlagValues:
    """Returns a program's flags with those that libraries declare, such as absl's --verbosity."""
    found = flags.FlagValues()
    found.set_gnu_getopt()
    found.append_flag_values(values)
    for name in flags.FLAGS:
        # Not by its short name, which its name brings along.
        if name not in found and flags.FLAGS[name].name == name:
            found[name] = flags.FLAGS[name]
    return found


def _unknown_flag(name: str, values: flags.FlagValues, program: str) -> str:
    """Returns the sentence about a flag that does not exist."""
    wrong = f"--{name[:100]} is not a flag of {program}"
    own = list(values)
    near = difflib.get_close_matches(name, own, 1, 0.75)
    if "config" in own:
        of = schema()
        if name in of.rows and "." in name:
            return f"{wrong}: did you mean --config.{name}?"
        if name.partition(".")[0] in of.sections:
            return f"{wrong}, and {unknown_field(of, name) or f'config.{name} is a section'}"
        if not near and (field := field_of_word(of, name)):
            return f"{wrong}: did you mean --config.{field}?"
    if near:
        return f"{wrong}: did you mean --{near[0]}?"
    return f"{wrong}: --help lists them."
