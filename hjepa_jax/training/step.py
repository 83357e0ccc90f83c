"""The train step: a pure function (state, batch) -> (state, metrics)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hjepa_jax.config import Config
from hjepa_jax.data.augmentation.device import augment_batch
from hjepa_jax.kernels.characteristic_function import characteristic_means
from hjepa_jax.objectives.hjepa import HJEPASettings, hjepa_objective
from hjepa_jax.objectives.lejepa import effective_weights, sigreg_objective
from hjepa_jax.objectives.regularizers import orthonormal_projection, projection_rank
from hjepa_jax.objectives.sigreg import SIGRegSettings, random_slices
from hjepa_jax.training.accumulation import cached_gradient, cut
from hjepa_jax.training.hamsigreg import (
    has_learnable_spectrum,
    spectral_schedule,
    spectral_terms,
    transform,
    update_spectral,
)
from hjepa_jax.training.method import Modules, settings_from
from hjepa_jax.training.online_probe import update_online_probe
from hjepa_jax.training.state import Schedule, TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
Randomness = dict[str, jax.Array]

# Streams derived from the state's key, so that adding one never changes another.
_PROJECTIONS, _SLICES, _SUBSAMPLE, _SPECTRAL_SLICES = range(4)


@dataclasses.dataclass(frozen=True)
class Method:
    """All that a train step needs beside its arguments; built once from the configuration."""

    config: Config
    modules: Modules
    optimizer: optax.GradientTransformation
    rates: dict[str, Schedule]
    steps_per_epoch: int

    def residual_scale(self, step: jax.Array) -> jax.Array:
        """Returns the potential's residual scale at `step`, after its linear warm-up."""
        dynamics = self.config.dynamics
        warmup_steps = dynamics.residual_scale_warmup_epochs * self.steps_per_epoch
        if self.config.parity.epochwise_residual_warmup:
            step = step // self.steps_per_epoch * self.steps_per_epoch + self.steps_per_epoch - 1
        done = (jnp.asarray(step, jnp.result_type(float)) + 1) / max(warmup_steps, 1e-9)
        return dynamics.residual_scale * jnp.minimum(1.0, done)

    def sigreg_weight(self, step: jax.Array) -> jax.Array | float:
        """Returns the weight of SIGReg at `step`, after its linear warm-up."""
        sigreg = self.config.sigreg
        if sigreg.weight_warmup_epochs == 0:
            return sigreg.weight
        warmup_steps = sigreg.weight_warmup_epochs * self.steps_per_epoch
        done = (jnp.asarray(step, jnp.result_type(float)) + 1) / warmup_steps
        return sigreg.weight * jnp.minimum(1.0, done)


def normalise(images: jax.Array, mean: Any, std: Any, dtype: Any) -> jax.Array:
    """Scales uint8 images to [0, 1] and normalises each channel; float images pass unchanged."""
    if not jnp.issubdtype(images.dtype, jnp.integer):
        return images.astype(dtype)
    scale = jnp.asarray([1 / (255 * s) for s in std], jnp.float32)
    shift = jnp.asarray([m / s for m, s in zip(mean, std)], jnp.float32)
    return (images.astype(jnp.float32) * scale - shift).astype(dtype)


def encode_views(
    method: Method, params: Any, batch_stats: Any, batch: Batch
) -> tuple[jax.Array, Any]:
    """Encodes all views of a batch in training mode.

    Views of one size go through the encoder together, so batch statistics are over all of them;
    local crops of another size make a second pass.

    Returns:
      (z [V, B, D] in float32 or float64, new batch statistics).
    """
    batch = augment_batch(batch, method.config.data)
    views = [batch[name] for name in ("global_views", "local_views") if name in batch]
    if len(views) == 2 and views[0].shape[2:] == views[1].shape[2:]:
        views = [jnp.concatenate(views)]
    data, modules = method.config.data, method.modules
    states = []
    for group in views:
        num_views, num_images = group.shape[:2]
        # Images first: merging [B, V] keeps the batch sharded, merging [V, B] would not.
        images = jnp.swapaxes(group, 0, 1).reshape(num_views * num_images, *group.shape[2:])
        images = normalise(images, data.mean, data.std, modules.encoder.dtype)
        z, batch_stats = apply_encoder(modules, params, batch_stats, images)
        states.append(jnp.swapaxes(z.reshape(num_images, num_views, -1), 0, 1))
    return jnp.concatenate(states), batch_stats


def apply_encoder(
    modules: Modules, params: Any, batch_stats: Any, images: jax.Array
) -> tuple[jax.Array, Any]:
    """Applies encoder and projector in training mode to [N, H, W, 3] -> (z [N, D], statistics)."""
    new_stats = dict(batch_stats)
    output = images
    for part in ("encoder", "projector"):
        variables = {"params": params.get(part, {}), "batch_stats": batch_stats.get(part, {})}
        output, updates = getattr(modules, part).apply(
            variables, output, train=True, mutable=["batch_stats"]
        )
        if updates.get("batch_stats"):
            # No loss depends on them; a second pass (local crops) must not differentiate them.
            new_stats[part] = jax.lax.stop_gradient(updates["batch_stats"])
    return output, new_stats


def draw_randomness(
    method: Method, key: jax.Array, step: jax.Array, *, dim: int, num_rows: int, dtype: Any
) -> Randomness:
    """Draws what is random in the losses of a step: a function of key and step alone.

    Args:
      method: gives sizes, refresh intervals and schedules.
      key: typed PRNG key of the run.
      step: int32 scalar.
      dim: D, the width of z.
      num_rows: N = V*B over all devices.
      dtype: of the projections.
    """
    config = method.config
    if config.objective == "hjepa":
        loss = config.loss
        rank = projection_rank(loss.logdet_dim, dim // 2, num_rows)
        refresh = step // loss.logdet_refresh_interval
        keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, _PROJECTIONS), refresh))
        return {
            half: orthonormal_projection(half_key, dim // 2, rank, dtype)
            for half, half_key in zip(("q", "p"), keys)
        }
    sigreg = config.sigreg

    def slices(stream: int) -> jax.Array:
        refresh = step // sigreg.refresh_interval
        slices_key = jax.random.fold_in(jax.random.fold_in(key, stream), refresh)
        return random_slices(slices_key, dim, sigreg.num_slices, dtype)

    alpha, beta = spectral_schedule(config, step, method.steps_per_epoch)
    drawn = {"slices": slices(_SLICES), "alpha": alpha, "beta": beta}
    if has_learnable_spectrum(config):
        drawn["spectral_slices"] = slices(_SPECTRAL_SLICES)
    if sigreg.subsample is not None:
        rows = num_rows if sigreg.statistics == "flattened" else config.data.batch_size
        subsample_key = jax.random.fold_in(jax.random.fold_in(key, _SUBSAMPLE), step)
        drawn["subsample"] = jax.random.permutation(subsample_key, rows)[: sigreg.subsample]
    return drawn


def objective(
    method: Method,
    params: Any,
    spectral: Any,
    z: jax.Array,
    randomness: Randomness,
    step: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """Returns (total loss, metrics) of the states z [V, B, D]."""
    if method.config.objective == "sigreg":
        return _sigreg_objective(method, spectral, z, randomness, step)
    return _hjepa_objective(method, params, z, randomness, step)


def _sigreg_objective(
    method: Method, spectral: Any, z: jax.Array, randomness: Randomness, step: jax.Array
) -> tuple[jax.Array, Metrics]:
    config = method.config
    params = spectral.get("params")
    alpha, beta = randomness["alpha"], randomness["beta"]
    total, metrics = sigreg_objective(
        z,
        randomness["slices"],
        settings_from(SIGRegSettings, config.sigreg),
        config.data.num_global_views,
        transform=lambda state: transform(config, params, state, alpha, beta),
        subsample_index=randomness.get("subsample"),
        weight=method.sigreg_weight(step),
        loss_form=config.sigreg.loss_form,
        means=characteristic_means,
    )
    terms = spectral_terms(config, params, alpha, beta)
    if terms:
        # A constant to the encoder, counted so that the total is the whole game's value.
        total = total + config.spectral.regulariser_weight * terms["spec"]
        metrics |= {**terms, "total": total, "alpha": alpha, "beta": beta}
    return total, metrics


def _hjepa_objective(
    method: Method, params: Any, z: jax.Array, randomness: Randomness, step: jax.Array
) -> tuple[jax.Array, Metrics]:
    config, predictor = method.config, method.modules.predictor
    assert predictor is not None
    scale = method.residual_scale(step)
    variables = {"params": params.get("predictor", {})}

    def flow(state: jax.Array, direction: Any) -> Any:
        return predictor.apply(variables, state, direction, scale)

    def energy(state: jax.Array) -> Any:
        return predictor.apply(variables, state, scale, method="energy")

    settings = settings_from(
        HJEPASettings,
        config.loss,
        reverse_direction_sign=1 if config.parity.forward_directions_only else -1,
        floor_p_variance=not config.parity.q_variance_floor_only,
    )
    total, metrics = hjepa_objective(
        z,
        flow,
        energy if hasattr(predictor, "energy") else None,
        randomness,
        settings,
        config.data.num_global_views,
    )
    if hasattr(predictor, "potential"):
        q = jax.lax.stop_gradient(z[..., : z.shape[-1] // 2])
        potential: Any = predictor.apply(variables, q, scale, method="potential")
        metrics["V_var"] = jnp.var(jax.lax.stop_gradient(potential))
    return total, metrics


def loss_weights(config: Config) -> dict[str, float]:
    """Returns the factor of each term in the total loss, for printing."""
    if config.objective == "sigreg":
        weights = effective_weights(config.sigreg.weight, config.sigreg.loss_form)
        if has_learnable_spectrum(config):
            weights["spec"] = config.spectral.regulariser_weight
        return weights
    loss = config.loss
    return {
        "pred": 1.0,
        "energy": loss.energy_weight,
        "budget": loss.budget_weight,
        "var": loss.var_weight,
        "logdet": loss.logdet_weight,
        "mean": loss.mean_weight,
    }


class StepLoss(NamedTuple):
    """The loss of a batch and what else its forward pass yields."""

    total: jax.Array
    gradient: Any
    batch_stats: Any
    metrics: Metrics
    z: jax.Array
    randomness: Randomness


def loss_and_gradient(
    method: Method, state: TrainState, batch: Batch, randomness: Randomness | None = None
) -> StepLoss:
    """Returns loss, gradient, new batch statistics, metrics and states of one batch.

    With train.accumulation above 1 the encoder sees a part of the batch at a time; everything but
    its batch normalisation is as without, see `hjepa_jax.training.accumulation`.

    `randomness` replaces what the step would draw (numerical checks against recorded values).
    """
    encode = functools.partial(encode_views, method)

    def loss_of_states(params: Any, z: jax.Array) -> tuple[jax.Array, Any]:
        drawn = randomness
        if drawn is None:
            key, rows = jax.random.wrap_key_data(state.rng), z.shape[0] * z.shape[1]
            drawn = draw_randomness(
                method, key, state.step, dim=z.shape[-1], num_rows=rows, dtype=z.dtype
            )
        total, metrics = objective(method, params, state.spectral, z, drawn, state.step)
        return total, (metrics, drawn)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        z, stats = encode(params, state.batch_stats, batch)
        total, extras = loss_of_states(params, z)
        return total, (stats, extras, jax.lax.stop_gradient(z))

    count = method.config.train.accumulation
    if count == 1:
        (total, rest), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        stats, (metrics, drawn), z = rest
    else:
        parts = cut(batch, count)
        total, gradient, stats, (metrics, drawn), z = cached_gradient(
            encode, loss_of_states, state.params, state.batch_stats, parts
        )
    return StepLoss(total, gradient, stats, metrics, z, drawn)


def train_step(
    method: Method, state: TrainState, batch: Batch, randomness: Randomness | None = None
) -> tuple[TrainState, Metrics]:
    """One optimiser step.

    A loss or gradient that is not finite leaves parameters, statistics and optimiser as they were
    and marks the step in `failed_step`.

    Args:
      method: static; the first argument to bind before `jax.jit`.
      state: the training state, replicated.
      batch: 'global_views' uint8 [Vg, B, S, S, 3] and optionally 'local_views' [Vl, B, s, s, 3],
        sharded over B, or with data.backend='device' what they are made of; with an online probe
        also 'label' int [B]; other entries are ignored.
      randomness: replaces the step's own draw.

    Returns:
      (new state, scalar metrics).
    """
    step = loss_and_gradient(method, state, batch, randomness)
    new, metrics = apply_gradient(method, state, step)
    if state.probe:
        probe, scores = update_online_probe(method.config, state.probe, step.z, batch["label"])
        good = new.failed_step < 0
        kept = jax.tree.map(
            lambda after, before: jnp.where(good, after, before), probe, state.probe
        )
        new, metrics = new.replace(probe=kept), metrics | scores
    return new, metrics


def apply_gradient(method: Method, state: TrainState, step: StepLoss) -> tuple[TrainState, Metrics]:
    """The second half of `train_step`: from the loss and gradient of a batch to the new state."""
    norm = optax.tree.norm(step.gradient)
    updates, opt_state = method.optimizer.update(step.gradient, state.opt_state, state.params)
    spectral = state.spectral
    if has_learnable_spectrum(method.config):
        spectral = update_spectral(
            method.config,
            spectral,
            step.z,
            step.randomness,
            step=state.step,
            weight=method.sigreg_weight(state.step),
            steps_per_epoch=method.steps_per_epoch,
        )
    good = jnp.isfinite(step.total) & jnp.isfinite(norm) & (state.failed_step < 0)
    failed = jnp.where(good | (state.failed_step >= 0), state.failed_step, state.step)
    changed = {
        "params": optax.apply_updates(state.params, updates),
        "batch_stats": step.batch_stats,
        "opt_state": opt_state,
        "spectral": spectral,
    }
    kept = {
        name: jax.tree.map(lambda new, old: jnp.where(good, new, old), tree, getattr(state, name))
        for name, tree in changed.items()
    }
    metrics = {
        **step.metrics,
        "total": step.total,
        "grad_norm": norm,
        "lr": method.rates["main"](state.step),
        "failed_step": failed,
    }
    return state.replace(step=state.step + 1, failed_step=failed, **kept), metrics
