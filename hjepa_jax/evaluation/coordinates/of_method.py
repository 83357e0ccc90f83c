"""The coordinates H^{1/2} z of a method whose loss acts on them, as HamSIGReg's.

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
from hjepa_jax.evaluation.coordinates.transformed import Coordinates, Fit, in_chunks
from hjepa_jax.evaluation.features import Encode
from hjepa_jax.methods.base import HasCoordinates, Method
from hjepa_jax.runtime import sharding

Compose: TypeAlias = Callable[[Encode, PyTree[jax.Array], int], Encode]


def _transforming(method: Method) -> HasCoordinates:
    """Returns the method.

    Raises:
      ConfigError: if its loss acts on the states as they are.
    """
    if not isinstance(method, HasCoordinates):
        raise ConfigError(
            "config.evaluation.coordinates is not 'raw', but the loss of "
            f"{type(method).__name__} acts on the states as they are: set it to 'raw', or set "
            "config.evaluation.posthoc."
        )
    return method


def fit_of_method(method: Method, method_state: PyTree[jax.Array], step: int) -> Fit:
    """Returns what gives every encoder the H of a checkpoint: only the encoder differs.

    Args:
      method: the method, with the epochs of training, which the spectrum's ramps depend on.
      method_state: its state after `step` steps; the coordinates are those of the last step.
      step: steps of training.

    Raises:
      ConfigError: if the method's loss acts on the states as they are.
    """
    transforming = _transforming(method)
    last = jnp.asarray(max(step - 1, 0))
    coordinates = jax.device_get(transforming.coordinates(method_state, last))
    transform = jax.jit(transforming.transform)
    found = Coordinates(in_chunks(lambda z: transform(coordinates, z)))
    return lambda states: found


def coordinates_of(settings: Evaluation, method: Method, mesh: Mesh) -> Compose:
    """Returns a function that makes encoders use the coordinates of online evaluation.

    These are the method's with config.evaluation.coordinates='sqrt_h', else the state itself: an H
    that is fitted afterwards does not exist yet.

    Args:
      settings: the section `evaluation`.
      method: see `fit_of_method`.
      mesh: the devices that hold the encoder's output.

    Returns:
      A function (encode, method state, step) -> encode; see `fit_of_method`.

    Raises:
      ConfigError: see `fit_of_method`.
    """
    if settings.coordinates != "sqrt_h" or settings.posthoc is not None:
        return lambda encode, method_state, step: encode
    transforming = _transforming(method)
    apply = jax.jit(transforming.transform, out_shardings=sharding.replicated(mesh))

    def compose(encode: Encode, method_state: PyTree[jax.Array], step: int) -> Encode:
        last = jnp.asarray(max(step - 1, 0))
        coordinates = jax.device_get(transforming.coordinates(method_state, last))
        return lambda images: apply(coordinates, encode(images))

    return compose
