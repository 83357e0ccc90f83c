"""Declarations of configuration fields: one row holds everything about a field.

A section is a frozen dataclass whose attributes are made by `field`: the annotation is the type (a
`Literal` for a fixed set of strings), and the arguments are the default, a one-line meaning,
bounds, the condition under which the field has an effect, and whether a resumed run or another host
may use another value.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hjepa_jax.config.settings import Settings

# Default upper bounds: larger numbers are surely mistakes.
LARGEST = {int: 2**31 - 1, float: 1e6}

# The value of a field that is chosen from the images and the device when a training starts.
AUTO = "auto"

FIXED, FREE, FREE_WITHOUT_PROBE = "fixed", "free", "free without online probe"


@dataclasses.dataclass(frozen=True)
class Condition:
    """When a field has an effect, and what to set to give it one (the end of a sentence)."""

    holds: Callable[[Settings], bool]
    remedy: str


@dataclasses.dataclass(frozen=True)
class Spec:
    """The declaration without type and default; `field` explains the attributes."""

    meaning: str
    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    ordered: bool = False
    odd: bool = False
    nonempty: bool = False
    repeats: bool = False
    hint: str = ""
    too_large: str = ""
    used: Condition | None = None
    resume: str | None = None
    own: bool = False
    auto: bool = False
    aliases: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """One field: its declaration with path and type.

    Attributes:
      path: dotted name, 'train.lr'.
      kind: int, float, bool or str; for a tuple, the type of each element.
      length: number of elements of a tuple, or 'any'; None if the field is not a tuple.
      optional: whether it may be None.
      choices: the allowed strings (from a `Literal`); () = any.
      default: value in the base configuration.
      spec: the rest of the declaration.
      conditions: its own and those of its sections; it has an effect only if all hold.
      resume: FIXED, FREE or FREE_WITHOUT_PROBE.
    """

    path: str
    kind: type
    length: int | str | None
    optional: bool
    choices: tuple[str, ...]
    default: Any
    spec: Spec
    conditions: tuple[Condition, ...]
    resume: str


def field(default: Any, meaning: str, **details: Any) -> Any:
    """Declares a field of a section.

    Args:
      default: its value in the base configuration.
      meaning: one line of documentation.
      **details: any of:
        above, at_least, at_most: bounds of the number, or of each element of a tuple; a number
          needs a lower bound, and must always be finite.
        ordered: a tuple (low, high) with low <= high.
        odd: whether an integer must be odd.
        nonempty: whether a tuple of any length needs at least one element.
        repeats: whether a tuple of any length may have equal elements.
        hint: added to the error about a wrong type or length.
        too_large: added to the error about a number above its bound.
        used: `Condition` under which it has an effect; None = always.
        resume: whether a resumed run may change it; FIXED unless its section says otherwise.
        own: whether processes of one run may have different values.
        auto: whether it may be AUTO in a configuration, see `training.automatic`.
        aliases: its names in other programs, separated by spaces, for suggestions.
    """
    return dataclasses.field(default=default, metadata={"spec": Spec(meaning, **details)})


def section(
    kind: type, meaning: str, *, used: Condition | None = None, resume: str | None = None
) -> Any:
    """Declares a section; its condition and resume policy hold for all its fields."""
    spec = Spec(meaning, used=used, resume=resume)
    return dataclasses.field(default_factory=kind, metadata={"spec": spec})


def _type_of(annotation: Any) -> tuple[type, int | str | None, bool, tuple[str, ...]]:
    """Returns (kind, length, optional, choices) of an annotation."""
    optional, length = type(None) in typing.get_args(annotation), None
    if optional:
        (annotation,) = (part for part in typing.get_args(annotation) if part is not type(None))
    if typing.get_origin(annotation) is tuple:
        parts = typing.get_args(annotation)
        annotation, length = parts[0], "any" if parts[-1] is Ellipsis else len(parts)
    if typing.get_origin(annotation) is typing.Literal:
        return str, length, optional, typing.get_args(annotation)
    return annotation, length, optional, ()


def walk(
    kind: Any,
    prefix: str = "",
    conditions: tuple[Condition, ...] = (),
    resume: str = FIXED,
    only: str | None = None,
) -> Iterator[Row]:
    """Yields the rows of a section's dataclass and of the sections in it, in order.

    Args:
      kind: dataclass whose attributes are declared by `field` and `section`.
      prefix: of the dotted names, '' or ending with a period.
      conditions: conditions that apply to all of its fields.
      resume: policy of fields that declare none.
      only: name of the only attribute to walk; None = all.
    """
    hints = typing.get_type_hints(kind)
    for declared in dataclasses.fields(kind):
        if "spec" not in declared.metadata or only not in (None, declared.name):
            continue
        spec: Spec = declared.metadata["spec"]
        path, annotation = f"{prefix}{declared.name}", hints[declared.name]
        both = conditions if spec.used is None else (*conditions, spec.used)
        policy = spec.resume or resume
        if dataclasses.is_dataclass(annotation):
            yield from walk(annotation, f"{path}.", both, policy)
            continue
        of, length, optional, choices = _type_of(annotation)
        if of in LARGEST:
            assert spec.above is not None or spec.at_least is not None, f"{path}: no lower bound"
            if spec.at_most is None:
                spec = dataclasses.replace(spec, at_most=LARGEST[of])
        yield Row(path, of, length, optional, choices, declared.default, spec, both, policy)
