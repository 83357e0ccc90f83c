"""The complete configuration: its sections, its rows, and the settings that code receives."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeAlias, TypeVar

from hjepa_jax.config.data import Data
from hjepa_jax.config.fields import (
    FREE,
    FREE_WITHOUT_PROBE,
    Condition,
    Row,
    field,
    section,
    walk,
)
from hjepa_jax.config.parts import TABLES, Part, is_import_path, load_part, own_fields
from hjepa_jax.config.sections.evaluation import Evaluation
from hjepa_jax.config.training import Checkpoint, Log, Model, Train
from hjepa_jax.errors import ConfigError

S = TypeVar("S")

MatmulPrecision: TypeAlias = Literal["default", "tf32", "highest"]


@dataclasses.dataclass(frozen=True)
class Runtime:
    """How the device computes."""

    matmul_precision: MatmulPrecision = field(
        "default",
        "Precision of the encoder's float32 products: 'default' is the device's own (TF32 on GPUs "
        "from Ampere on, one pass of bfloat16 on TPUs), 'tf32' (three passes on TPUs), 'highest' "
        "(float32). Losses, flow, kNN, and probes always use 'highest'.",
        aliases="tf32 allow_tf32 float32_matmul_precision set_float32_matmul_precision",
    )
    deterministic: bool = field(
        False,
        "Deterministic operations on a GPU, which a bit-exact resume needs there; slower. CPUs and "
        "TPUs are deterministic anyway.",
        resume=FREE,
        aliases="use_deterministic_algorithms cudnn_deterministic deterministic_algorithms",
    )


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every field, checked and typed; returned by `resolve`.

    Attributes:
      parts: the sections of methods, encoders and sources by name; `section` returns one.
    """

    seed: int = field(
        42,
        "Seed of parameters, data order, augmentation and random projections.",
        at_least=0,
        at_most=2**32 - 1,
        aliases="random_seed rng rng_seed manual_seed",
    )
    method: str = field(
        "hjepa",
        "'hjepa', 'lejepa' (SIGReg), 'hamsigreg', 'vicreg', 'barlow' (Barlow Twins), 'visreg', or "
        "a class of your own, 'module.path:Class'.",
        aliases="objective algorithm ssl_method",
    )
    data: Data = section(Data, "Images, views and the input pipeline.")
    model: Model = section(Model, "The encoder, its state, the projector and the arithmetic.")
    parts: Mapping[str, object] = dataclasses.field(default_factory=dict)
    train: Train = section(Train, "The optimization.")
    evaluation: Evaluation = section(Evaluation, "What is measured.", resume=FREE)
    checkpoint: Checkpoint = section(Checkpoint, "What is saved.", resume=FREE)
    log: Log = section(Log, "What is logged.", resume=FREE)
    runtime: Runtime = section(Runtime, "How the device computes.")

    def section(self, kind: type[S]) -> S:
        """Returns a part's section by its dataclass.

        Raises:
          KeyError: if no part of this configuration has this section.
        """
        for found in self.parts.values():
            if isinstance(found, kind):
                return found
        raise KeyError(kind.__name__)

    def values(self) -> dict[str, Any]:
        """Returns every field's value by dotted name, in order of declaration."""
        return {path: self.value(path) for path in schema_of(self).rows}

    def value(self, path: str) -> Any:
        """Returns the value of the field with a dotted name."""
        head, _, rest = path.partition(".")
        found = self.parts[head] if head in self.parts else getattr(self, head)
        return functools.reduce(getattr, rest.split("."), found) if rest else found

    def changed(self) -> dict[str, tuple[Any, Any]]:
        """Returns (value, default) of the fields that differ from their defaults, by name."""
        rows = schema_of(self).rows
        return {
            path: (value, rows[path].default)
            for path, value in self.values().items()
            if value != rows[path].default
        }

    def to_json(self) -> str:
        """Returns the values as indented JSON, as `config.json` has them."""
        nested: dict[str, Any] = {}
        for path, value in self.values().items():
            *parents, name = path.split(".")
            target = nested
            for parent in parents:
                target = target.setdefault(parent, {})
            target[name] = value
        return json.dumps(nested, indent=2, sort_keys=True)

    def replace(self, changes: Mapping[str, Any]) -> Settings:
        """Returns a copy with some fields changed, by dotted name; the values are not checked.

        If a change selects another part, the sections of that part are at their defaults.
        """
        named = {path: changes.get(path, self.value(path)) for path in TABLES}
        of, kept = schema(named), self.values()
        defaults = {path: row.default for path, row in of.rows.items()}
        return build(of, {**defaults, **kept, **changes})


@dataclasses.dataclass(frozen=True)
class Schema:
    """The fields of a configuration with certain parts.

    Attributes:
      rows: every field's row by dotted name, in order of declaration.
      parts: dataclass of each section that belongs to a part.
      meanings: one line about each section by dotted name; '' for top-level fields.
    """

    rows: Mapping[str, Row]
    parts: Mapping[str, type]
    meanings: Mapping[str, str]

    @functools.cached_property
    def sections(self) -> frozenset[str]:
        """The dotted names of the sections."""
        return frozenset(self.meanings) - {""}


def schema(named: Mapping[str, str] | None = None) -> Schema:
    """Returns the schema of all built-in parts and those named by import path.

    Args:
      named: values of fields in TABLES by dotted name; may be incomplete.

    Raises:
      ConfigError: if an import path leads nowhere, or its sections collide with others.
    """
    own = {
        (path, name)
        for path, name in (named or {}).items()
        if isinstance(name, str) and is_import_path(TABLES[path], name)
    }
    return _schema(tuple(sorted(own)))


def schema_of(settings: Settings) -> Schema:
    """Returns the schema of settings."""
    return schema({path: settings.value(path) for path in TABLES})


@functools.cache
def _schema(own: tuple[tuple[str, str], ...]) -> Schema:
    owners: dict[str, tuple[type, dict[str, Condition]]] = {}
    core = {declared.name for declared in dataclasses.fields(Settings)}
    for path, table in TABLES.items():
        names = [*table, *(name for field_path, name in own if field_path == path)]
        for name in names:
            for section_name, kind in load_part(table, name).sections.items():
                known = owners.get(section_name)
                if section_name in core or (known is not None and known[0] is not kind):
                    raise ConfigError(
                        f"config.{path} is {name!r}, whose section {section_name!r} collides with "
                        f"another of the same name: rename it in {name}."
                    )
                chosen = owners.setdefault(section_name, (kind, {}))[1]
                chosen[path] = _chosen(
                    path, names, lambda part, name=section_name: name in part.sections
                )
    rows: list[Row] = []
    borrowed = _borrowed(own)
    meanings = {"": "Top-level fields."}
    for declared in dataclasses.fields(Settings):
        if declared.name == "parts":
            for name, (kind, chosen) in owners.items():
                rows += walk(kind, f"{name}.", (_any(chosen.values()),))
                meanings[name] = (kind.__doc__ or "").split("\n")[0]
                meanings |= _meanings(kind, f"{name}.")
        else:
            rows += walk(Settings, only=declared.name)
            meanings |= _meanings(Settings, only=declared.name)
    parts = {name: kind for name, (kind, _) in owners.items()}
    for index, row in enumerate(rows):
        if row.path in borrowed:
            conditions = (*row.conditions, borrowed[row.path])
            rows[index] = dataclasses.replace(row, conditions=conditions)
    return Schema({row.path: row for row in rows}, parts, meanings)


def _borrowed(own: Iterable[tuple[str, str]]) -> dict[str, Condition]:
    """Returns the conditions of fields that a regularizer uses in another part's section."""
    path = "loss.regularizer"
    names = [*TABLES[path], *(name for field_path, name in own if field_path == path)]
    fields = {name for part in names for name in own_fields(load_part(TABLES[path], part))}
    return {
        name: _chosen(path, names, lambda part, name=name: name in own_fields(part))
        for name in fields
    }


def _chosen(path: str, names: Iterable[str], having: Callable[[type[Part]], bool]) -> Condition:
    """Returns the condition that one of the named parts is selected for which `having` is true."""
    table = TABLES[path]
    suitable = [name for name in names if having(load_part(table, name))]
    return Condition(
        lambda settings: (
            is_chosen(path, settings) and having(load_part(table, settings.value(path)))
        ),
        f"config.{path}={' or '.join(map(repr, suitable))}",
    )


def _any(conditions: Iterable[Condition]) -> Condition:
    """Returns the condition that at least one of several holds."""
    found = list(conditions)
    return Condition(
        lambda settings: any(condition.holds(settings) for condition in found),
        " or ".join(condition.remedy for condition in found),
    )


def is_chosen(path: str, settings: Settings) -> bool:
    """Returns whether a field of TABLES selects a part: its section is used, if it is a part's."""
    section_name = path.partition(".")[0]
    return section_name not in settings.parts or any(
        section_name in load_part(table, settings.value(other)).sections
        for other, table in TABLES.items()
    )


def _meanings(kind: type, prefix: str = "", only: str | None = None) -> dict[str, str]:
    """Returns the meaning of each section in a dataclass by dotted name."""
    found = {}
    for declared in dataclasses.fields(kind):
        inner = declared.default_factory
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            if only not in (None, declared.name):
                continue
            path = f"{prefix}{declared.name}"
            found[path] = declared.metadata["spec"].meaning
            found |= _meanings(inner, f"{path}.")
    return found


def build(of: Schema, values: Mapping[str, object]) -> Settings:
    """Returns settings from the values of all fields by dotted name, without checks."""
    parts = {name: _section(kind, f"{name}.", values) for name, kind in of.parts.items()}
    return dataclasses.replace(_section(Settings, "", values), parts=parts)


def _section(kind: type[S], prefix: str, values: Mapping[str, object]) -> S:
    given: dict[str, object] = {}
    for declared in dataclasses.fields(kind):  # type: ignore[arg-type]
        path = f"{prefix}{declared.name}"
        inner = declared.default_factory
        if path in values:
            given[declared.name] = values[path]
        elif isinstance(inner, type) and dataclasses.is_dataclass(inner):
            given[declared.name] = _section(inner, f"{path}.", values)
    return kind(**given)


def rows() -> Mapping[str, Row]:
    """Returns the row of every built-in field by dotted name, in order of declaration."""
    return schema().rows


def sections() -> frozenset[str]:
    """Returns the dotted names of the built-in sections."""
    return schema().sections


def chosen_parts(settings: Settings) -> Iterator[Any]:
    """Yields the classes of the selected method, its regularizer, encoder and source."""
    for path, table in TABLES.items():
        if is_chosen(path, settings):
            yield load_part(table, settings.value(path))


def may_change_on_resume(path: str, settings: Settings) -> bool:
    """Returns whether a resumed run may change a field.

    Args:
      path: its dotted name.
      settings: settings of the resumed run; an online probe fixes the fields that its state depends
        on.
    """
    policy = schema_of(settings).rows[path].resume
    return policy == FREE or (policy == FREE_WITHOUT_PROBE and not settings.evaluation.online_probe)


def may_differ_between_processes(path: str, settings: Settings) -> bool:
    """Returns whether processes of a run may have different values of a field."""
    return schema_of(settings).rows[path].spec.own
