"""From a configuration to the modules and settings of a method."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from hjepa_jax.config import Config, Settings
from hjepa_jax.config.checks import typed
from hjepa_jax.config.parts import ENCODERS, load_part
from hjepa_jax.errors import ConfigError
from hjepa_jax.models.base import Encoder
from hjepa_jax.models.predictor import build_predictor
from hjepa_jax.models.projector import Projector
from hjepa_jax.objectives.hamsigreg import GRID_KINDS, SpectralSettings
from hjepa_jax.objectives.hamsigreg_spectrum import LearnableSettings


class Modules(NamedTuple):
    """The trained parts of a method; `predictor` is None for the SIGReg baselines."""

    encoder: Encoder
    projector: Projector
    predictor: nn.Module | None


def settings_from(kind: Any, section: Config, **extra: Any) -> Any:
    """Fills the fields of the dataclass `kind` from the config section of the same names."""
    names = {field.name for field in dataclasses.fields(kind)} - set(extra)
    return kind(**{name: section[name] for name in names if name in section}, **extra)


def build_encoder(config: Config, *, dtype: Any = None, norm_groups: int = 1) -> Encoder:
    """Returns the encoder of a configuration; arguments as `build_modules`.

    Raises:
      ConfigError: if there is no such encoder.
    """
    settings = config if isinstance(config, Settings) else typed(config)
    name = settings.model.encoder
    kind = load_part(ENCODERS, name)
    if not issubclass(kind, Encoder):
        raise ConfigError(
            f"config.model.encoder is {name!r}, which is no encoder: derive it from "
            "hjepa_jax.models.base.Encoder."
        )
    numbers = jnp.dtype(settings.model.compute_dtype) if dtype is None else dtype
    return kind.build(settings, numbers, norm_groups)


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
    shape = build_encoder(config).shape(config.data.image_size)
    side = shape.token_grid
    if side is None:
        raise ConfigError(
            f"config.spectral.kind is {spectral.kind!r}, which acts on the token grid, but the "
            f"states of config.model.encoder={config.model.encoder!r} have none: set it to 'chain'."
        )
    learnable = None
    if spectral.kind == "learnable":
        learnable = settings_from(LearnableSettings, spectral, h=side, w=side)
    return settings_from(
        SpectralSettings,
        spectral,
        h=side,
        w=side,
        token_dim=shape.token_dim,
        split_qp=config.model.split_qp,
        reference_layout=config.parity.reference_layout,
        learnable=learnable,
    )
