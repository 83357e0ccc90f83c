"""Reading of one published value as the value of our field."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from hjepa_jax.config.fields import Row
from hjepa_jax.config.values import coerce, expected, problems_of, shown
from hjepa_jax.errors import ConfigError
from hjepa_jax.interop.published.scripts import NAME

# (published key, its value, our field) -> our value; raises a ConfigError that names the key.
Reader: TypeAlias = Callable[[str, object, Row], Any]


def _number(kind: type, value: object) -> object:
    """Returns a number of our type if that is unambiguous, else the value.

    YAML 1.1 reads 1e-4 as text, which the scripts convert.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return value
    if kind is float:
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)
    if kind is int and isinstance(value, float) and value == value // 1:
        return int(value)
    return value


def as_field(key: str, value: object, row: Row) -> Any:
    """Returns a value converted to the type of our field and checked against its bounds.

    Raises:
      ConfigError: if it has the wrong type or is out of bounds.
    """
    found: Any = value
    if isinstance(value, (list, tuple)):
        found = tuple(_number(row.kind, part) for part in value)
    elif row.kind is bool and isinstance(value, (int, float)) and value in (0, 1):
        found = bool(value)
    else:
        found = _number(row.kind, value)
    if isinstance(found, np.ndarray):  # a checkpoint may hold any array, which compares to none
        raise ConfigError(f"{NAME}'s {key} is {shown(value)}: it must be {expected(row)}.")
    # The scripts choose nothing from the images.
    plain = dataclasses.replace(row, spec=dataclasses.replace(row.spec, auto=False))
    for sentence in problems_of(plain, found):
        ours = f"config.{row.path} is {shown(found)}"
        raise ConfigError(sentence.replace(ours, f"{NAME}'s {key} is {shown(value)}", 1))
    return coerce(row, found)


def as_float32(key: str, value: object, row: Row) -> float:
    """Returns a number as a float32 buffer holds it."""
    return float(np.float32(as_field(key, value, row)))


def zero_is_none(key: str, value: object, row: Row) -> Any:
    """Returns a number, None for 0."""
    off = isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0
    return as_field(key, None if off else value, row)


def epoch_after(key: str, value: object, row: Row) -> Any:
    """Returns the number of the epoch, counted from 1, that follows so many epochs."""
    spec = dataclasses.replace(row.spec, above=None, at_least=0)
    return as_field(key, value, dataclasses.replace(row, spec=spec, optional=False)) + 1


def one_of(words: Mapping[str, str] | Mapping[bool, str]) -> Reader:
    """Returns a reader of words, each of which stands for one of ours."""

    def read(key: str, value: object, row: Row) -> str:
        del row
        for word, ours in words.items():
            if type(value) is type(word) and value == word:
                return ours
        listed = ", ".join(map(repr, words))
        raise ConfigError(f"{NAME}'s {key} is {shown(value)}: it can be {listed}.")

    return read
