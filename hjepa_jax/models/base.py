"""What an encoder is: a Flax module that maps images to states."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp


class StateShape(NamedTuple):
    """What an encoder's states z [N, D] consist of.

    Attributes:
      dim: numbers D in a state.
      token_grid: side of the square grid of tokens; None for a state without tokens.
      token_dim: channels per token; None for a state without tokens.
    """

    dim: int
    token_grid: int | None = None
    token_dim: int | None = None


class Encoder(nn.Module):
    """An encoder of images; subclasses define `__call__`.

    Attributes:
      dtype: of the arithmetic. Parameters, normalization statistics and states are float32, or
        float64 for dtype float64.
      norm_groups: groups of rows with separate batch statistics, see `layers.BatchNorm`.
    """

    dtype: Any = jnp.float32
    norm_groups: int = 1

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Encodes normalized images.

        Args:
          x: [N, S, S, 3].
          train: whether batch statistics are used and running statistics updated.

        Returns:
          The states [N, D], float32 or wider; [q | p] if config.model.split_qp.
        """
        raise NotImplementedError

    def shape(self, image_size: int) -> StateShape:
        """Returns the shape of the states of square images.

        Args:
          image_size: side of the images in pixels.
        """
        images = jax.ShapeDtypeStruct((2, image_size, image_size, 3), jnp.float32)

        def encode(key: jax.Array, x: jax.Array) -> jax.Array:
            return self.init_with_output(key, x, train=False)[0]

        return StateShape(jax.eval_shape(encode, jax.random.key(0), images).shape[-1])

    def portable(self) -> Self:
        """Returns the same encoder in float32 and in operations that all exporters know."""
        return self.clone(dtype=jnp.float32)
