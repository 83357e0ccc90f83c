"""Values of one field: checks against its row, and parsing of command-line text."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from typing import Any

from hjepa_jax.config.fields import AUTO, Row
from hjepa_jax.errors import ConfigError

_WORDS = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "of True or False"),
    str: ("text", "texts"),
}
TRUTH = {"true": True, "yes": True, "on": True, "1": True, "y": True, "t": True}
TRUTH |= {"false": False, "no": False, "off": False, "0": False, "n": False, "f": False}
_EXAMPLES = {int: (1, 5), float: (0.01, 0.1), str: ("gray", "blur")}
_NONE = ("none", "null")
# Above this, not every integer is a float.
_EXACT = 2**53


def shown(value: object) -> str:
    """Returns the repr of a value, truncated."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits.
        text = "a number of thousands of digits"
    return text if len(text) <= 120 else f"{text[:120]}..."


def expected(row: Row) -> str:
    """Returns the end of 'it must be ...' for a field's value."""
    one, several = _WORDS[row.kind]
    if row.length is None:
        text = one
    elif row.spec.ordered:
        text = f"two {several} (low, high)"
    elif row.length == "any":
        text = f"a tuple of {several}, for example {row.default or _EXAMPLES[row.kind]}"
    else:
        text = f"{row.length} {several}, for example {row.default}"
    return f"{text}, or None" if row.optional else text


def coerce(row: Row, value: object) -> Any:
    """Returns the value converted to the field's type if that is unambiguous (lists, int to float).

    Other values are returned unchanged, for `problems_of` to reject.
    """
    if isinstance(value, list):
        value = tuple(value)
    if row.length is not None and isinstance(value, tuple):
        return tuple(_coerce_one(row.kind, part) for part in value)
    return _coerce_one(row.kind, value)


def _coerce_one(kind: type, value: object) -> object:
    if kind is float and type(value) is int and abs(value) <= _EXACT:
        return float(value)
    return value


def _has_type(kind: type, value: object) -> bool:
    """Returns whether a value has a field's type; a bool is not a number, but an int is a float."""
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) and not value.is_integer() else f"{value:.0f}"


def _hint(row: Row) -> str:
    return f" ({row.spec.hint})" if row.spec.hint else ""


def _range_problem(row: Row, value: float) -> str | None:
    """Returns what a number violates ('it must be ...'), else None."""
    spec = row.spec
    whose = "each of its numbers must" if row.length is not None else "it must"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{whose} be finite"
    low = (spec.above is not None and value <= spec.above) or (
        spec.at_least is not None and value < spec.at_least
    )
    high = spec.at_most is not None and value > spec.at_most
    if not low and not high:
        return "it must be odd" if spec.odd and value % 2 == 0 else None
    hint = f" ({spec.too_large})" if high and spec.too_large else ""
    if spec.at_least is not None and spec.at_most is not None and spec.at_most <= 255:
        return f"{whose} lie between {_number(spec.at_least)} and {_number(spec.at_most)}{hint}"
    if high:
        assert spec.at_most is not None
        return f"{whose} be {_number(spec.at_most)} or less{hint}"
    if spec.above is not None:
        return f"{whose} be above {_number(spec.above)}"
    assert spec.at_least is not None
    if value <= 0 < spec.at_least < 1e-3:
        return f"{whose} be above 0"
    return f"{whose} be {_number(spec.at_least)} or more"


def _text_problem(row: Row, value: str) -> str | None:
    """Returns what is wrong with a string, else None."""
    options = row.choices
    if options and value not in options:
        nearest = difflib.get_close_matches(value, options, 1, 0.0)[0]
        return f"it must be one of {', '.join(map(repr, options))}; did you mean {nearest!r}?"
    if not value.strip() or not value.isprintable():
        return "it must be a non-empty string without control characters"
    return None


def _element_problem(row: Row, value: Any) -> str | None:
    if not _has_type(row.kind, value):
        return f"it must be {expected(row)}{_hint(row)}"
    if row.kind is str:
        return _text_problem(row, value)
    return None if row.kind is bool else _range_problem(row, value)


def _shape_problem(row: Row, value: object) -> str | None:
    if not isinstance(value, tuple):
        return f"it must be {expected(row)}{_hint(row)}"
    if row.length != "any" and len(value) != row.length:
        return f"it must be {expected(row)}{_hint(row)}"
    if row.spec.nonempty and not value:
        return "it must have at least one element"
    return None


def problems_of(row: Row, value: Any) -> Iterator[str]:
    """Yields a sentence if the row does not allow the value."""
    if (value is None and row.optional) or (row.spec.auto and value == AUTO):
        return
    value = coerce(row, value)
    parts = (value,)
    found = None
    if row.length is not None:
        found = _shape_problem(row, value)
        parts = () if found else value
    for part in parts:
        found = found or _element_problem(row, part)
    if found is None and row.length is not None:
        if row.spec.ordered and value[0] > value[1]:
            found = "it must be (low, high) with low <= high"
        elif row.length == "any" and not row.spec.repeats and len(set(value)) < len(value):
            found = "it must not repeat an element"
    if found is not None:
        end = "" if found.endswith("?") else "."
        yield f"config.{row.path} is {shown(value)}: {found}{end}"


def parse(row: Row, text: str) -> object:
    """Parses a command-line text as a field's value.

    'auto' stays as it is for a field that may be chosen. Integers may be written as 1e3, booleans
    as yes, no, on and off, tuples as (1, 2), [1, 2] or 1,2, and None in upper or lower case.

    Raises:
      ConfigError: one sentence that names the field.
    """
    bare = text.strip()
    if row.spec.auto and bare == AUTO:
        return AUTO
    if bare.lower() in _NONE and (row.optional or row.kind is not str):
        if not row.optional:
            raise ConfigError(f"config.{row.path} may not be None: give it a value.")
        return None
    try:
        if row.length is None:
            return _parse_one(row.kind, text)
        if bare[:1] + bare[-1:] in ("()", "[]"):
            bare = bare[1:-1]
        parts = [part.strip() for part in bare.split(",")]
        if parts[-1] == "":
            del parts[-1]
        return tuple(_parse_one(row.kind, part) for part in parts)
    except ValueError:
        raise ConfigError(
            f"config.{row.path} is {shown(text)}: it must be {expected(row)}{_hint(row)}."
        ) from None


def _parse_one(kind: type, text: str) -> bool | int | float | str:
    if kind is str:
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        return text[1:-1] if quoted else text
    text = text.strip()
    if kind is bool:
        if text.lower() not in TRUTH:
            raise ValueError(text)
        return TRUTH[text.lower()]
    if kind is float:
        return float(text)
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not abs(number) <= _EXACT or not number.is_integer():
            raise ValueError(text) from None
        return int(number)
