"""Validated reading of JSON and other structured file content.

Content is compared with a declared structure before it is used. A mismatch is one sentence that
names the file and the field:

    SHARD = Fields({"file": Text(), "bytes": Whole(0)})
    index = read_json(path, Fields({"shards": Items(SHARD)}))
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Generic, NoReturn, TypeAlias, TypeGuard, TypeVar, cast

from hjepa_jax.storage import files

# More than our files need; even a small file can nest deeper than Python can recurse.
MAX_JSON_BYTES = 16 * 2**20
MAX_DEPTH = 64

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)


class Kind(Generic[_T_co]):
    """The declared structure of a value; the parameter is its Python type."""


@dataclasses.dataclass(frozen=True)
class Whole(Kind[int]):
    """An integer from `low` to `high` inclusive, not a boolean."""

    low: int = -(2**63)
    high: int = 2**63 - 1

    def __str__(self) -> str:
        if self.high == Whole.high:
            return f"a whole number of at least {self.low}"
        return f"a whole number from {self.low} to {self.high}"


@dataclasses.dataclass(frozen=True)
class Number(Kind[float]):
    """A number, not a boolean; infinity and NaN only if `finite` is False."""

    finite: bool = True

    def __str__(self) -> str:
        return "a finite number" if self.finite else "a number"


@dataclasses.dataclass(frozen=True)
class Truth(Kind[bool]):
    """True or false."""

    def __str__(self) -> str:
        return "true or false"


@dataclasses.dataclass(frozen=True)
class Text(Kind[str]):
    """Text that UTF-8 can encode, of at most `most` characters; one of `choices` if given."""

    most: int = 2**20
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"one of {', '.join(self.choices)}" if self.choices else "text"


@dataclasses.dataclass(frozen=True)
class Items(Kind[list[_T]]):
    """A list of `least` to `most` values of one kind."""

    kind: Kind[_T]
    least: int = 0
    most: int = 2**31

    def __str__(self) -> str:
        if self.least:
            return f"a list of at least {self.least}"
        return "a list"


@dataclasses.dataclass(frozen=True)
class Table(Kind[dict[str, _T]]):
    """A mapping from text to values of one kind."""

    kind: Kind[_T]

    def __str__(self) -> str:
        return "a mapping"


@dataclasses.dataclass(frozen=True)
class Fields(Kind[_T]):
    """A mapping with these keys; other keys are ignored. The parameter is a TypedDict of them."""

    required: Mapping[str, Kind[object]] = dataclasses.field(default_factory=dict)
    optional: Mapping[str, Kind[object]] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return "a mapping"


@dataclasses.dataclass(frozen=True)
class Maybe(Kind[_T | None]):
    """A value of the kind, or null."""

    kind: Kind[_T]

    def __str__(self) -> str:
        return f"{self.kind}, or null"


@dataclasses.dataclass(frozen=True)
class Anything(Kind[object]):
    """Any value."""

    def __str__(self) -> str:
        return "anything"


def described(value: object) -> str:
    """Describes a value briefly for messages, however large or deep it is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        # Python refuses to print integers of thousands of digits.
        huge = isinstance(value, int) and abs(value) > 10**30
        return "a number of more than 30 digits" if huge else str(value)
    if isinstance(value, str):
        short = value[:40] + ("..." if len(value) > 40 else "")
        return f"the text {readable(short)!r}"
    for kind, words in ((Mapping, "mapping"), ((list, tuple), "list"), (bytes, "byte string")):
        if isinstance(value, kind):
            return f"a {words} of length {len(value)}"
    return f"a {type(value).__name__}"


def readable(value: object) -> str:
    """Returns a name of any type as printable text."""
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")
    text = value if isinstance(value, str) else described(value)
    return text.encode("utf-8", errors="backslashreplace").decode()


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _fits(value: object, kind: Kind[object]) -> bool:
    """Returns whether a value itself is of a kind, ignoring what it contains."""
    match kind:
        case Anything():
            return True
        case Whole():
            return _is_whole(value) and kind.low <= value <= kind.high
        case Number():
            if not (_is_whole(value) or isinstance(value, float)):
                return False
            return not kind.finite or (abs(value) < 2**1023 and math.isfinite(value))
        case Truth():
            return isinstance(value, bool)
        case Text():
            return (
                isinstance(value, str)
                and len(value) <= kind.most
                and readable(value) == value
                and (not kind.choices or value in kind.choices)
            )
        case Items():
            return isinstance(value, (list, tuple)) and kind.least <= len(value) <= kind.most
        case Table() | Fields():
            return isinstance(value, Mapping)
    raise TypeError(f"{kind!r} is not a kind of value")


def require(value: object, kind: Kind[_T], source: object, field: str = "") -> _T:
    """Returns a value unchanged if it has the declared structure.

    Args:
      value: content of a file, as parsed from JSON.
      kind: `Whole`, `Number`, `Truth`, `Text`, `Items`, `Table`, `Fields`, `Maybe` or `Anything`.
      source: name of the file, for messages.
      field: location of the value in the file, such as `splits.train.shards[0]`; '' = the root.

    Raises:
      ValueError: naming the file, the field, what is required and what was found.
      TypeError: if `kind` is none of the above.
    """
    if isinstance(kind, Maybe):
        if value is not None:
            _check(value, kind.kind, kind, source, field)
    else:
        _check(value, kind, kind, source, field)
    return cast(_T, value)


def _check(
    value: object, kind: Kind[object], declared: Kind[object], source: object, field: str
) -> None:
    """Checks a value and its contents; messages say that it must be `declared`."""
    if not _fits(value, kind):
        place = f"the field '{readable(field)}'" if field else "its content"
        raise ValueError(
            f"{source} is damaged: {place} must be {declared}, not {described(value)}."
        )
    prefix = f"{field}." if field else ""
    match kind, value:
        case Items(), list() | tuple():
            for number, item in enumerate(value):
                require(item, kind.kind, source, f"{field}[{number}]")
        case Table(), Mapping():
            for key, item in value.items():
                require(key, Text(), source, f"{prefix}{readable(key)[:40]}")
                require(item, kind.kind, source, f"{prefix}{readable(key)[:40]}")
        case Fields(), Mapping():
            for key in kind.required:
                if key not in value:
                    raise ValueError(f"{source} is damaged: the field '{prefix}{key}' is missing.")
            for key, inner in {**kind.required, **kind.optional}.items():
                if key in value:
                    require(value[key], inner, source, f"{prefix}{key}")


def _unique(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field '{readable(twice)[:40]}' occurs twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _check_depth(value: list[JsonValue] | dict[str, JsonValue]) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list)) and inner
        ]
        if not level:
            return
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def parse_json(
    text: bytes | str, kind: Kind[_T], source: object, *, field: str = "", constants: bool = False
) -> _T:
    """Parses JSON text with a declared structure.

    Args:
      text: the JSON; bytes must be UTF-8.
      kind: declared structure, see `require`.
      source: name of the file, for messages.
      field: location of the text in the file; '' = the root.
      constants: whether NaN and Infinity are allowed.

    Raises:
      ValueError: if it is not JSON or has another structure; names the file and the field.
    """
    try:
        if len(text) > MAX_JSON_BYTES:
            raise ValueError(f"it has {len(text)} bytes, more than {MAX_JSON_BYTES}")
        content = json.loads(
            text.decode() if isinstance(text, bytes) else text,
            object_pairs_hook=_unique,
            parse_constant=None if constants else _no_constant,
        )
        if isinstance(content, (dict, list)):
            _check_depth(content)
    except RecursionError:
        reason = f"it is nested more than {MAX_DEPTH} deep"
    except UnicodeDecodeError:
        reason = "it is not UTF-8 text"
    except ValueError as error:
        reason = str(error)
    else:
        return require(content, kind, source, field)
    place = f" (field '{field}')" if field else ""
    raise ValueError(f"{source}{place} is damaged: it cannot be read as JSON: {reason}.")


def read_json(
    path: pathlib.Path, kind: Kind[_T], *, most: int = MAX_JSON_BYTES, constants: bool = False
) -> _T:
    """Reads a JSON file with a declared structure.

    Args:
      path: the file; only a regular one of at most `most` bytes is read.
      kind: declared structure, see `require`.
      most: maximum size in bytes.
      constants: whether NaN and Infinity are allowed.

    Raises:
      OSError: if it cannot be read, is not a regular file or is too large.
      ValueError: if it is not JSON or has another structure.
    """
    return parse_json(files.read_regular(path, most), kind, path, constants=constants)
