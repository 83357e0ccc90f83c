"""Vision Transformers by the names of their settings and attributes alike."""

from __future__ import annotations

import dataclasses
from typing import Any

from hjepa_jax.models.vit.encoder import ViT
from hjepa_jax.models.vit.section import ViTSection

_SETTINGS = {field.name for field in dataclasses.fields(ViTSection)}
TINY = {"width": 12, "depth": 2, "heads": 3, "token_dim": 6}


def vit(**fields: Any) -> ViT:
    """Returns a small encoder; fields of the section `vit` go there, others to the module."""
    settings = TINY | {name: value for name, value in fields.items() if name in _SETTINGS}
    others = {name: value for name, value in fields.items() if name not in _SETTINGS}
    return ViT(settings=ViTSection(**settings), **others)
