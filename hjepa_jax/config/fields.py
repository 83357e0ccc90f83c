"""How a field of the configuration is declared: one row with everything that is known of it.

A section is a frozen dataclass whose attributes are made by `field`: the annotation is the type (a
`Literal` where the text is one of several), and the arguments are the default, a one-line meaning,
bounds, the condition under which the field has an effect, and whether a resumed run or another host
may have another value.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hjepa_jax.config.settings import Settings

# Numbers above these are mistakes wherever a row does not say otherwise.
LARGEST = {int: 2**31 - 1, float: 1e6}

FIXED, FREE, FREE_WITHOUT_PROBE = "fixed", "free", "free without online probe"


@dataclasses.dataclass(frozen=True)
class Condition:
    """When a field has an effect, and what to set (the end of a sentence) so that it has."""

    holds: Callable[[Settings], bool]
    remedy: str


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a declaration says beside type and default; `field` explains the attributes."""

    meaning: str
    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    ordered: bool = False
    odd: bool = False
    nonempty: bool = False
    hint: str = ""
    too_large: str = ""
    used: Condition | None = None
    resume: str | None = None
    own: bool = False
    aliases: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Row:
    """One field: its declaration with path and type.

    Attributes:
      path: dotted name, 'train.lr'.
      kind: int, float, bool or str; of each element for a tuple.
      length: elements of a tuple: a number, 'any', or None for a field that is no tuple.
      optional: whether it may be None.
      choices: the texts that it may be, those of a `Literal`; () = any.
      default: in the base configuration.
      spec: the rest of the declaration.
      conditions: of its sections and its own, all of which must hold for it to have an effect.
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
      meaning: one line for people.
      **details: any of
        above, at_least, at_most: bounds of the number, or of each element of a tuple; a number
          needs a lower bound, and finite is what it must be in any case.
        ordered: a tuple (low, high) with low <= high.
        odd: a whole number that must be odd.
        nonempty: a tuple of any length that needs an element.
        hint: added to the sentence about a value of another type or length.
        too_large: added to the sentence about a number above its bound.
        used: the `Condition` under which it has an effect; None = always.
        resume: whether a resumed run may change it; FIXED unless its section says otherwise.
        own: whether each of several processes may have its own value.
        aliases: words of other programs for it, for suggestions.
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
      kind: the dataclass, whose attributes are declared by `field` and `section`.
      prefix: of the dotted names, '' or with a point at its end.
      conditions: that hold for all of its fields.
      resume: the policy of fields that declare none.
      only: the attribute to walk; None = all.
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
