"""Predictors with the defaults of the configuration."""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from hjepa_jax.config import base_config
from hjepa_jax.models.predictor import build_predictor


def predictor(kind: str = "hamiltonian", **fields: Any) -> nn.Module:
    """Returns a predictor; `fields` differ from the defaults of `config.dynamics`."""
    return build_predictor(kind, {**base_config().dynamics, **fields})
