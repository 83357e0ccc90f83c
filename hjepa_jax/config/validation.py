"""What code that still takes the untyped configuration calls; it goes when all takes `Settings`."""

from __future__ import annotations

from ml_collections import ConfigDict

from hjepa_jax.config import checks, unknown
from hjepa_jax.config.files import (
    differences,
    flatten,
    from_json,
    merge,
    read,
    save,
    set_field,
    to_json,
)
from hjepa_jax.config.settings import schema

__all__ = [
    "differences",
    "flatten",
    "from_json",
    "merge",
    "read",
    "save",
    "set_field",
    "to_json",
    "unknown_field",
    "validate",
]


def unknown_field(path: str) -> str | None:
    """Returns a sentence naming the nearest valid field if `path` is none, else None."""
    return unknown.unknown_field(schema(), path)


def validate(config: ConfigDict, *, training: bool = True) -> None:
    """Checks the configuration; see `resolve`."""
    checks.resolve(config, training=training)
