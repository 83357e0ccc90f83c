"""Views of images become states, by the encoder and the projector in training mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hjepa_jax.config.sections.projection import evaluates_states_of_loss
from hjepa_jax.data.augmentation.device import augment_batch
from hjepa_jax.objectives.shares import AxisName
from hjepa_jax.training.encoding.batch import Batch, Parts
from hjepa_jax.training.encoding.row_keys import NUMBER, row_keys
from hjepa_jax.training.setup import StepSetup


def normalize(
    images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: DTypeLike
) -> jax.Array:
    """Scales uint8 images to [0, 1] and normalizes each channel; float images pass unchanged."""
    if not jnp.issubdtype(images.dtype, jnp.integer):
        return images.astype(dtype)
    scale = jnp.asarray([1 / (255 * s) for s in std], jnp.float32)
    shift = jnp.asarray([m / s for m, s in zip(mean, std)], jnp.float32)
    return (images.astype(jnp.float32) * scale - shift).astype(dtype)


def encode_views(
    setup: StepSetup,
    params: Parts,
    batch_stats: Parts,
    batch: Batch,
    axis_name: AxisName = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, Parts, tuple[jax.Array, ...]]:
    """Encodes all views of a batch in training mode.

    Views of one size go through the encoder together, so batch statistics are over all of them;
    local crops of another size make a second pass.

    Args:
      setup: static.
      params: of each part.
      batch_stats: of each part.
      batch: the views, and with a key the images' numbers, see `row_keys`.
      axis_name: mesh axis that the images are split over.
      key: of the step, for an encoder that `takes_keys`.

    Returns:
      (z [V, B, D] in float32 or float64, new batch statistics, the encoder's output [V, B, D'] if
      the online probe sees that in place of the projector's).
    """
    batch = augment_batch(batch, setup.settings.data)
    views = [batch[name] for name in ("global_views", "local_views") if name in batch]
    if len(views) == 2 and views[0].shape[2:] == views[1].shape[2:]:
        views = [jnp.concatenate(views)]
    data = setup.settings.data
    states, encoded, first = [], [], 0
    for group in views:
        num_views, num_images = group.shape[:2]
        # Images first: merging [B, V] keeps the batch sharded, merging [V, B] would not.
        images = jnp.swapaxes(group, 0, 1).reshape(num_views * num_images, *group.shape[2:])
        images = normalize(images, data.mean, data.std, setup.encoder.dtype)
        keys = None if key is None else row_keys(key, batch[NUMBER], first, num_views)
        first += num_views
        outputs, batch_stats = apply_encoder(setup, params, batch_stats, images, axis_name, keys)
        before, z = (jnp.swapaxes(x.reshape(num_images, num_views, -1), 0, 1) for x in outputs)
        states.append(z)
        encoded.append(jax.lax.stop_gradient(before))
    settings = setup.settings
    apart = settings.evaluation.online_probe and not evaluates_states_of_loss(settings)
    return jnp.concatenate(states), batch_stats, (jnp.concatenate(encoded),) if apart else ()


def apply_encoder(
    setup: StepSetup,
    params: Parts,
    batch_stats: Parts,
    images: jax.Array,
    axis_name: AxisName = None,
    keys: jax.Array | None = None,
) -> tuple[list[jax.Array], Parts]:
    """Applies encoder and projector in training mode to [N, H, W, 3].

    An encoder that `takes_keys` gets `keys` [N].

    Returns:
      ([the encoder's output [N, D'], the projector's z [N, D]], new statistics).
    """
    new_stats = dict(batch_stats)
    output, outputs = images, []
    for part in ("encoder", "projector"):
        variables = {"params": params.get(part, {}), "batch_stats": batch_stats.get(part, {})}
        drawn: dict[str, Any] = {} if keys is None or part != "encoder" else {"keys": keys}
        output, updates = _module(setup, part, axis_name).apply(
            variables, output, train=True, mutable=["batch_stats"], **drawn
        )
        outputs.append(output)
        if updates.get("batch_stats"):
            # No loss depends on them; a second pass (local crops) must not differentiate them.
            new_stats[part] = jax.lax.stop_gradient(updates["batch_stats"])
    return outputs, new_stats


def _module(setup: StepSetup, part: str, axis_name: AxisName) -> nn.Module:
    """Returns the encoder or the projector, as it normalizes a share of the rows."""
    module: nn.Module = getattr(setup, part)
    if axis_name is None:
        return module
    local = setup.settings.model.batch_norm == "local"
    return module.clone(norm_groups=1, axis_name=None if local else axis_name)
