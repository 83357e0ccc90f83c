"""A key for each row of a batch, for encoders that draw random numbers in training.

It depends on seed, step, image, and view alone, and so not on devices and micro-batches.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hjepa_jax.objectives.shares import AxisName
from hjepa_jax.training.encoding.batch import Batch

# Entry of a batch: its images' numbers in the whole batch.
NUMBER = "number"
# Larger than a step, which the method's draw folds into the same key.
_STREAM = 2**32 - 1


def encoder_key(rng: jax.Array, step: jax.Array) -> jax.Array:
    """Returns the key of a step, apart from the method's.

    Args:
      rng: uint32 key data of the run.
      step: int32 scalar.
    """
    stream = jax.random.fold_in(jax.random.wrap_key_data(rng), _STREAM)
    return jax.random.fold_in(stream, step)


def numbered(batch: Batch, axis_name: AxisName) -> Batch:
    """Adds to a share of a batch the numbers of its images in the whole batch."""
    views = batch.get("global_views", batch.get("global_parameters"))
    count = views.shape[1]
    begin = 0 if axis_name is None else count * jax.lax.axis_index(axis_name)
    return {**batch, NUMBER: begin + jnp.arange(count)}


def row_keys(key: jax.Array, numbers: jax.Array, first: int, num_views: int) -> jax.Array:
    """Returns a key for each row [B * num_views] by its image's number and its view, images first.

    Args:
      key: of the step.
      numbers: of the images in the batch, [B].
      first: number of the first view.
      num_views: number of views.
    """

    def one(number: jax.Array, view: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, number), view)

    of_views = jax.vmap(one, in_axes=(None, 0))
    views = jnp.arange(first, first + num_views)
    return jax.vmap(of_views, in_axes=(0, None))(numbers, views).reshape(-1)
