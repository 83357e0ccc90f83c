"""Builds the modules, method and optimizer of a train step from a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import cast

import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from hjepa_jax.config import Settings
from hjepa_jax.config.parts import ENCODERS, METHODS, load_subclass
from hjepa_jax.config.sections.projection import layer_widths
from hjepa_jax.methods.base import Method
from hjepa_jax.models.base import Encoder, StateShape
from hjepa_jax.models.projector import Projector
from hjepa_jax.training.optimizer import Schedule, learning_rates, make_optimizer


@dataclasses.dataclass(frozen=True)
class StepSetup:
    """Everything that a train step needs besides its arguments; built once from the configuration.

    Attributes:
      settings: the run's settings.
      encoder, projector: Flax modules; the loss sees the projector's output.
      method: the loss, and the parts trained with the encoder.
      optimizer: of encoder, projector and the method's parts.
      rates: the learning rate of each parameter group.
    """

    settings: Settings
    encoder: Encoder
    projector: Projector
    method: Method
    optimizer: optax.GradientTransformationExtraArgs
    rates: dict[str, Schedule]


def build_encoder(
    settings: Settings, *, dtype: DTypeLike | None = None, norm_groups: int = 1
) -> Encoder:
    """Returns the encoder of a configuration; arguments as in `build_setup`.

    Raises:
      ConfigError: if the encoder does not exist.
    """
    kind = load_subclass(ENCODERS, settings.model.encoder, Encoder, "encoder")
    numbers = jnp.dtype(settings.model.compute_dtype) if dtype is None else dtype
    return kind.build(settings, numbers, norm_groups)


def projected_shape(settings: Settings) -> StateShape:
    """Returns the shape of the states that the loss sees: the projector's output."""
    if widths := layer_widths(settings.model):
        return StateShape(widths[-1])
    return build_encoder(settings).shape(settings.data.image_size)


def build_method(settings: Settings, steps_per_epoch: int) -> Method:
    """Returns the method of a configuration.

    Args:
      settings: the run's settings.
      steps_per_epoch: steps per epoch of the training.
    """
    kind = load_subclass(METHODS, settings.method, Method, "method")
    build = cast(Callable[[Settings, StateShape, int], Method], kind)
    return build(settings, projected_shape(settings), steps_per_epoch)


def build_setup(
    settings: Settings,
    *,
    total_steps: int,
    steps_per_epoch: int,
    dtype: DTypeLike | None = None,
    norm_groups: int = 1,
) -> StepSetup:
    """Returns the modules, the method and the optimizer of a configuration.

    Args:
      settings: the run's settings.
      total_steps: total steps of the training, for the schedules.
      steps_per_epoch: steps per epoch of the training.
      dtype: overrides config.model.compute_dtype (float64 in numerical checks).
      norm_groups: number of parts of a batch with separate statistics: the number of devices with
        config.model.batch_norm='local', else 1.
    """
    model = settings.model
    encoder = build_encoder(settings, dtype=dtype, norm_groups=norm_groups)
    projector = Projector(
        kind=model.projector,
        widths=layer_widths(model),
        dtype=encoder.dtype,
        norm_groups=norm_groups,
    )
    method = build_method(settings, steps_per_epoch)
    rates = learning_rates(settings.train, method, total_steps=total_steps)
    optimizer = make_optimizer(settings.train, method, rates)
    return StepSetup(settings, encoder, projector, method, optimizer, rates)
