"""From a section of the configuration to the keyword arguments of a numeric function."""

from __future__ import annotations

import dataclasses
from typing import Any


def settings_from(kind: Any, section: Any, **extra: Any) -> Any:
    """Fills the fields of the dataclass `kind` from the config section of the same names."""
    names = {field.name for field in dataclasses.fields(kind)} - set(extra)
    return kind(
        **{name: getattr(section, name) for name in names if hasattr(section, name)}, **extra
    )
