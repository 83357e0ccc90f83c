"""The train step: a pure function (state, batch) -> (state, metrics)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import PyTree

from hjepa_jax.data.augmentation.device import augment_batch
from hjepa_jax.methods.base import Metrics, Randomness
from hjepa_jax.training.accumulation import cached_gradient, split_microbatches
from hjepa_jax.training.online_probe import update_online_probe
from hjepa_jax.training.optimizer import MAIN
from hjepa_jax.training.setup import StepSetup
from hjepa_jax.training.state import TrainState

Batch: TypeAlias = Mapping[str, jax.Array]
# Parameters, or batch statistics, of each part.
Parts: TypeAlias = Mapping[str, PyTree[jax.Array]]


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
    setup: StepSetup, params: Parts, batch_stats: Parts, batch: Batch
) -> tuple[jax.Array, Parts]:
    """Encodes all views of a batch in training mode.

    Views of one size go through the encoder together, so batch statistics are over all of them;
    local crops of another size make a second pass.

    Returns:
      (z [V, B, D] in float32 or float64, new batch statistics).
    """
    batch = augment_batch(batch, setup.settings.data)
    views = [batch[name] for name in ("global_views", "local_views") if name in batch]
    if len(views) == 2 and views[0].shape[2:] == views[1].shape[2:]:
        views = [jnp.concatenate(views)]
    data = setup.settings.data
    states = []
    for group in views:
        num_views, num_images = group.shape[:2]
        # Images first: merging [B, V] keeps the batch sharded, merging [V, B] would not.
        images = jnp.swapaxes(group, 0, 1).reshape(num_views * num_images, *group.shape[2:])
        images = normalize(images, data.mean, data.std, setup.encoder.dtype)
        z, batch_stats = apply_encoder(setup, params, batch_stats, images)
        states.append(jnp.swapaxes(z.reshape(num_images, num_views, -1), 0, 1))
    return jnp.concatenate(states), batch_stats


def apply_encoder(
    setup: StepSetup, params: Parts, batch_stats: Parts, images: jax.Array
) -> tuple[jax.Array, Parts]:
    """Applies encoder and projector in training mode to [N, H, W, 3] -> (z [N, D], statistics)."""
    new_stats = dict(batch_stats)
    output = images
    for part in ("encoder", "projector"):
        variables = {"params": params.get(part, {}), "batch_stats": batch_stats.get(part, {})}
        output, updates = getattr(setup, part).apply(
            variables, output, train=True, mutable=["batch_stats"]
        )
        if updates.get("batch_stats"):
            # No loss depends on them; a second pass (local crops) must not differentiate them.
            new_stats[part] = jax.lax.stop_gradient(updates["batch_stats"])
    return output, new_stats


class StepLoss(NamedTuple):
    """The loss of a batch and the other results of its forward pass."""

    total: jax.Array
    gradient: Parts
    batch_stats: Parts
    metrics: Metrics
    z: jax.Array
    randomness: Randomness


def loss_and_gradient(
    setup: StepSetup, state: TrainState, batch: Batch, randomness: Randomness | None = None
) -> StepLoss:
    """Returns loss, gradient, new batch statistics, metrics and states of one batch.

    With train.accumulation above 1 the encoder sees a part of the batch at a time; everything
    except batch normalization stays the same, see `hjepa_jax.training.accumulation`.

    `randomness` replaces the step's own draw (for numerical checks against recorded values).
    """
    encode, method = functools.partial(encode_views, setup), setup.method

    def loss_of_states(params: Parts, z: jax.Array) -> tuple[jax.Array, tuple[Metrics, Randomness]]:
        drawn = randomness
        if drawn is None:
            num_views, num_images = z.shape[:2]
            drawn = method.draw(
                jax.random.wrap_key_data(state.rng),
                state.step,
                num_rows=num_views * num_images,
                num_images=num_images,
                dtype=z.dtype,
            )
        total, metrics = method.loss(params, state.method_state, z, drawn, state.step)
        return total, (metrics, drawn)

    def loss(params: Parts) -> tuple[jax.Array, PyTree]:
        z, stats = encode(params, state.batch_stats, batch)
        total, extras = loss_of_states(params, z)
        return total, (stats, extras, jax.lax.stop_gradient(z))

    count = setup.settings.train.accumulation
    if count == 1:
        (total, rest), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        stats, (metrics, drawn), z = rest
    else:
        parts = split_microbatches(batch, count)
        total, gradient, stats, (metrics, drawn), z = cached_gradient(
            encode, loss_of_states, state.params, state.batch_stats, parts
        )
    return StepLoss(total, gradient, stats, metrics, z, drawn)


def train_step(
    setup: StepSetup, state: TrainState, batch: Batch, randomness: Randomness | None = None
) -> tuple[TrainState, Metrics]:
    """One optimizer step.

    A loss or gradient that is not finite leaves parameters, statistics and optimizer as they were
    and marks the step in `failed_step`.

    Args:
      setup: static; the first argument to bind before `jax.jit`.
      state: the training state, replicated.
      batch: 'global_views' uint8 [Vg, B, S, S, 3] and optionally 'local_views' [Vl, B, s, s, 3],
        sharded over B, or with data.backend='device' their inputs; with an online probe
        also 'label' int [B]; other entries are ignored.
      randomness: replaces the step's own draw.

    Returns:
      (new state, scalar metrics).
    """
    step = loss_and_gradient(setup, state, batch, randomness)
    new, metrics = apply_gradient(setup, state, step)
    if state.probe:
        settings = setup.settings
        probe, scores = update_online_probe(
            settings.evaluation, settings.model.split_qp, state.probe, step.z, batch["label"]
        )
        good = new.failed_step < 0
        kept = jax.tree.map(
            lambda after, before: jnp.where(good, after, before), probe, state.probe
        )
        new, metrics = new.replace(probe=kept), metrics | scores
    return new, metrics


def apply_gradient(
    setup: StepSetup, state: TrainState, step: StepLoss
) -> tuple[TrainState, Metrics]:
    """The second half of `train_step`: from the loss and gradient of a batch to the new state."""
    norm = optax.tree.norm(step.gradient)
    updates, opt_state = setup.optimizer.update(step.gradient, state.opt_state, state.params)
    method_state = setup.method.update_state(
        state.method_state, step.z, step.randomness, state.step
    )
    good = jnp.isfinite(step.total) & jnp.isfinite(norm) & (state.failed_step < 0)
    failed = jnp.where(good | (state.failed_step >= 0), state.failed_step, state.step)
    changed = {
        "params": optax.apply_updates(state.params, updates),
        "batch_stats": step.batch_stats,
        "opt_state": opt_state,
        "method_state": method_state,
    }
    kept = {
        name: jax.tree.map(lambda new, old: jnp.where(good, new, old), tree, getattr(state, name))
        for name, tree in changed.items()
    }
    metrics = {
        **step.metrics,
        "total": step.total,
        "grad_norm": norm,
        "lr": setup.rates[MAIN](state.step),
        "failed_step": failed,
    }
    return state.replace(step=state.step + 1, failed_step=failed, **kept), metrics
