"""From a configuration to the modules and settings of a method."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from hjepa_jax.models.predictor import PredictorSettings, build_predictor
from hjepa_jax.models.projector import Projector
from hjepa_jax.models.resnet import ResNet18


class Modules(NamedTuple):
    """The trained parts of a method; `predictor` is None for the SIGReg baselines."""

    encoder: ResNet18
    projector: Projector
    predictor: nn.Module | None


def settings_from(kind: Any, section: ConfigDict, **extra: Any) -> Any:
    """Fills the fields of the dataclass `kind` from the config section of the same names."""
    names = {field.name for field in dataclasses.fields(kind)} - set(extra)
    return kind(**{name: section[name] for name in names if name in section}, **extra)


def build_modules(config: ConfigDict, *, dtype: Any = None) -> Modules:
    """Returns the Flax modules of a configuration.

    Args:
      config: a validated configuration.
      dtype: overrides config.model.compute_dtype (float64 in numerical checks).
    """
    model = config.model
    dtype = jnp.dtype(model.compute_dtype) if dtype is None else dtype
    encoder = ResNet18(
        stem=model.stem,
        mode=model.mode,
        token_layer=model.token_layer,
        token_dim=model.token_dim,
        token_hw=model.token_hw,
        split_qp=model.split_qp,
        embed_dim=model.embed_dim,
        width=model.width,
        dtype=dtype,
    )
    projector = Projector(
        kind=model.projector,
        hidden_dim=model.projector_hidden,
        output_dim=model.projector_dim,
        dtype=dtype,
    )
    if config.objective != "hjepa":
        return Modules(encoder, projector, None)
    predictor = build_predictor(settings_from(PredictorSettings, config.dynamics))
    return Modules(encoder, projector, predictor)
