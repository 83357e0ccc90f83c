"""ConvNeXts by the names of their settings and attributes alike."""

from __future__ import annotations

import dataclasses
from typing import Any

from hjepa_jax.models.convnext.encoder import ConvNeXt
from hjepa_jax.models.convnext.section import ConvNeXtSection

_SETTINGS = {field.name for field in dataclasses.fields(ConvNeXtSection)}
TINY = {"width": 6, "stage_blocks": (1, 2, 1, 1), "token_dim": 6, "token_stage": 2}


def convnext(**fields: Any) -> ConvNeXt:
    """Returns a small encoder; fields of the section `convnext` go there, others to the module."""
    settings = TINY | {name: value for name, value in fields.items() if name in _SETTINGS}
    others = {name: value for name, value in fields.items() if name not in _SETTINGS}
    return ConvNeXt(settings=ConvNeXtSection(**settings), **others)
