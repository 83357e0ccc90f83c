"""From a configuration to the modules and settings of a method."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from hjepa_jax.config import Config
from hjepa_jax.config.model import ResNet as ResNetSettings
from hjepa_jax.models.predictor import build_predictor
from hjepa_jax.models.projector import Projector
from hjepa_jax.models.resnet import ResNet
from hjepa_jax.objectives.hamsigreg import GRID_KINDS, SpectralSettings
from hjepa_jax.objectives.hamsigreg_spectrum import LearnableSettings


class Modules(NamedTuple):
    """The trained parts of a method; `predictor` is None for the SIGReg baselines."""

    encoder: ResNet
    projector: Projector
    predictor: nn.Module | None


def settings_from(kind: Any, section: Config, **extra: Any) -> Any:
    """Fills the fields of the dataclass `kind` from the config section of the same names."""
    names = {field.name for field in dataclasses.fields(kind)} - set(extra)
    return kind(**{name: section[name] for name in names if name in section}, **extra)


def build_encoder(config: Config, *, dtype: Any = None, norm_groups: int = 1) -> ResNet:
    """Returns the encoder of a configuration; arguments as `build_modules`."""
    model = config.model
    return ResNet(
        settings=settings_from(ResNetSettings, config.resnet),
        split_qp=model.split_qp,
        dtype=jnp.dtype(model.compute_dtype) if dtype is None else dtype,
        norm_groups=norm_groups,
    )


def build_modules(config: Config, *, dtype: Any = None, norm_groups: int = 1) -> Modules:
    """Returns the Flax modules of a configuration.

    Args:
      config: a validated configuration.
      dtype: overrides config.model.compute_dtype (float64 in numerical checks).
      norm_groups: parts of a batch with statistics of their own: the number of devices with
        config.model.batch_norm='local', else 1.
    """
    model = config.model
    encoder = build_encoder(config, dtype=dtype, norm_groups=norm_groups)
    projector = Projector(
        kind=model.projector,
        hidden_dim=model.projector_hidden,
        output_dim=model.projector_dim,
        dtype=encoder.dtype,
        norm_groups=norm_groups,
    )
    if config.objective != "hjepa":
        return Modules(encoder, projector, None)
    predictor = build_predictor(
        config.dynamics.predictor,
        {**config.dynamics, "reference_leapfrog": config.parity.reference_leapfrog},
    )
    return Modules(encoder, projector, predictor)


def spectral_settings(config: Config) -> SpectralSettings:
    """Returns the settings of HamSIGReg's transform; kind 'identity' is plain SIGReg."""
    spectral = config.spectral
    if spectral.kind not in GRID_KINDS:
        return settings_from(SpectralSettings, spectral, learnable=None)
    side = build_encoder(config).shape(config.data.image_size).token_grid
    learnable = None
    if spectral.kind == "learnable":
        learnable = settings_from(LearnableSettings, spectral, h=side, w=side)
    return settings_from(
        SpectralSettings,
        spectral,
        h=side,
        w=side,
        token_dim=config.resnet.token_dim,
        split_qp=config.model.split_qp,
        reference_layout=config.parity.reference_layout,
        learnable=learnable,
    )
