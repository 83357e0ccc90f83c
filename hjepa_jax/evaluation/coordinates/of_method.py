"""Coordinates in which states are evaluated: as encoded, or as HamSIGReg's H^{1/2} z.

SIGReg makes H^{1/2} z isotropic, so distances between raw states give directions with a small
spectrum more weight than training did. Source: arXiv 2605.20107, evaluation protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

from hjepa_jax.config.sections.evaluation import Evaluation
from hjepa_jax.errors import ConfigError
from hjepa_jax.evaluation.features import Encode
from hjepa_jax.methods.base import HasCoordinates, Method
from hjepa_jax.runtime import sharding

Compose: TypeAlias = Callable[[Encode, PyTree[jax.Array], int], Encode]


def coordinates_of(settings: Evaluation, method: Method, mesh: Mesh) -> Compose:
    """Returns a function that makes encoders use config.evaluation.coordinates.

    Args:
      settings: the section `evaluation`.
      method: the method, with the epochs of training, which the spectrum's ramps depend on.
      mesh: the devices that hold the encoder's output.

    Returns:
      A function (encode, method state, step) -> encode. The method state is that after `step`
      steps; the coordinates are those of the last step.

    Raises:
      ConfigError: if the method's loss acts on the states as they are.
    """
    if settings.coordinates == "raw":
        return lambda encode, method_state, step: encode
    if not isinstance(method, HasCoordinates):
        raise ConfigError(
            f"config.evaluation.coordinates is {settings.coordinates!r}, but the loss "
            f"of {type(method).__name__} acts on the states as they are: set it to 'raw'."
        )
    apply = jax.jit(method.transform, out_shardings=sharding.replicated(mesh))

    def compose(encode: Encode, method_state: PyTree[jax.Array], step: int) -> Encode:
        last = jnp.asarray(max(step - 1, 0))
        coordinates = jax.device_get(method.coordinates(method_state, last))
        return lambda images: apply(coordinates, encode(images))

    return compose
