"""Coordinates in which states are evaluated: as encoded, or as HamSIGReg's H^{1/2} z.

SIGReg asks for an isotropic H^{1/2} z, so that distances between raw states weigh directions in
which the spectrum is small more than training did. Source: arXiv 2605.20107, evaluation protocol.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hjepa_jax.config import Config
from hjepa_jax.evaluation.features import Encode
from hjepa_jax.runtime import sharding
from hjepa_jax.training.hamsigreg import spectral_schedule, transform

Compose = Callable[[Encode, Any, int], Encode]


def coordinates_of(config: Config, steps_per_epoch: int, mesh: Any) -> Compose:
    """Returns what puts an encoder into the coordinates of config.evaluation.coordinates.

    Args:
      config: the run's configuration; its spectral section is what the run was trained with.
      steps_per_epoch: of the training, in which the spectrum's ramps count.
      mesh: the devices that hold the encoder's output.

    Returns:
      A function (encode, spectral, step) -> encode. `spectral` is that field of the TrainState
      after `step` steps; the spectrum is the one of the last of them.
    """
    if config.evaluation.coordinates == "raw":
        return lambda encode, spectral, step: encode
    apply = jax.jit(functools.partial(transform, config), out_shardings=sharding.replicated(mesh))

    def compose(encode: Encode, spectral: Any, step: int) -> Encode:
        last = jnp.asarray(max(step - 1, 0))
        alpha, beta = jax.device_get(spectral_schedule(config, last, steps_per_epoch))
        return lambda images: apply(spectral.get("params"), encode(images), alpha, beta)

    return compose
