"""ResNets by the names of their settings and attributes alike."""

from __future__ import annotations

import dataclasses
from typing import Any

from hjepa_jax.models.resnet import ResNet, ResNetSection

_SETTINGS = {field.name for field in dataclasses.fields(ResNetSection)}


def resnet(**fields: Any) -> ResNet:
    """Returns an encoder; fields of the section `resnet` go there, others to the module."""
    settings = {name: value for name, value in fields.items() if name in _SETTINGS}
    others = {name: value for name, value in fields.items() if name not in _SETTINGS}
    return ResNet(settings=ResNetSection(**settings), **others)
