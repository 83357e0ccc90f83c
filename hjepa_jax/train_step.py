"""The train step: a pure function (state, batch) -> (state, metrics)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from hjepa_jax.build import Modules, settings_from
from hjepa_jax.objectives.floors import orthonormal_projection, projection_rank
from hjepa_jax.objectives.hjepa import HJEPASettings, hjepa_objective
from hjepa_jax.objectives.lejepa import sigreg_objective
from hjepa_jax.objectives.sigreg import SIGRegSettings, random_slices
from hjepa_jax.train_state import Schedule, TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
Randomness = dict[str, jax.Array]

# Streams derived from the state's key, so that adding one never changes another.
_PROJECTIONS, _SLICES, _SUBSAMPLE = range(3)


@dataclasses.dataclass(frozen=True)
class Method:
    """All that a train step needs beside its arguments; built once from the configuration."""

    config: ConfigDict
    modules: Modules
    optimizer: optax.GradientTransformation
    rates: dict[str, Schedule]
    steps_per_epoch: int

    def residual_scale(self, step: jax.Array) -> jax.Array:
        """Returns the potential's residual scale at `step`, after its linear warm-up."""
        dynamics = self.config.dynamics
        warmup_steps = dynamics.residual_scale_warmup_epochs * self.steps_per_epoch
        done = (jnp.asarray(step, jnp.result_type(float)) + 1) / max(warmup_steps, 1e-9)
        return dynamics.residual_scale * jnp.minimum(1.0, done)


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
            new_stats[part] = updates["batch_stats"]
    return output, new_stats


def draw_randomness(
    config: ConfigDict, key: jax.Array, step: jax.Array, *, dim: int, num_rows: int, dtype: Any
) -> Randomness:
    """Draws what is random in the losses of a step: a function of key and step alone.

    Args:
      config: gives sizes and refresh intervals.
      key: typed PRNG key of the run.
      step: int32 scalar.
      dim: D, the width of z.
      num_rows: N = V*B over all devices.
      dtype: of the projections.
    """
    if config.objective == "hjepa":
        loss = config.loss
        rank = projection_rank(loss.logdet_dim, dim // 2, num_rows)
        key = jax.random.fold_in(
            jax.random.fold_in(key, _PROJECTIONS), step // loss.logdet_refresh_interval
        )
        key_q, key_p = jax.random.split(key)
        return {
            "q": orthonormal_projection(key_q, dim // 2, rank, dtype),
            "p": orthonormal_projection(key_p, dim // 2, rank, dtype),
        }
    sigreg = config.sigreg
    slices_key = jax.random.fold_in(
        jax.random.fold_in(key, _SLICES), step // sigreg.refresh_interval
    )
    drawn = {"slices": random_slices(slices_key, dim, sigreg.num_slices, dtype)}
    if sigreg.subsample is not None:
        rows = num_rows if sigreg.statistics == "flattened" else config.data.batch_size
        subsample_key = jax.random.fold_in(jax.random.fold_in(key, _SUBSAMPLE), step)
        drawn["subsample"] = jax.random.permutation(subsample_key, rows)[: sigreg.subsample]
    return drawn


def objective(
    method: Method, params: Any, z: jax.Array, randomness: Randomness, step: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Returns (total loss, metrics) of the states z [V, B, D]."""
    config = method.config
    num_global = config.data.num_global_views
    if config.objective == "sigreg":
        return sigreg_objective(
            z,
            randomness["slices"],
            settings_from(SIGRegSettings, config.sigreg),
            num_global,
            subsample_index=randomness.get("subsample"),
            weight=config.sigreg.weight,
            loss_form=config.sigreg.loss_form,
        )
    predictor, scale = method.modules.predictor, method.residual_scale(step)
    variables = {"params": params.get("predictor", {})}

    def flow(state: jax.Array, direction: Any) -> jax.Array:
        return predictor.apply(variables, state, direction, scale)

    def energy(state: jax.Array) -> jax.Array:
        return predictor.apply(variables, state, scale, method="energy")

    has_energy = hasattr(predictor, "energy")
    settings = settings_from(HJEPASettings, config.loss)
    total, metrics = hjepa_objective(
        z, flow, energy if has_energy else None, randomness, settings, num_global
    )
    if hasattr(predictor, "potential"):
        q = jax.lax.stop_gradient(z[..., : z.shape[-1] // 2])
        potential = predictor.apply(variables, q, scale, method="potential")
        metrics["V_var"] = jnp.var(jax.lax.stop_gradient(potential))
    return total, metrics


def loss_and_gradient(
    method: Method, state: TrainState, batch: Batch, randomness: Randomness | None = None
) -> tuple[tuple[jax.Array, tuple[Any, Metrics]], Any]:
    """Returns ((loss, (new batch statistics, metrics)), gradient) of one batch.

    `randomness` replaces what the step would draw (numerical checks against recorded values).
    """

    def loss(params: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
        z, stats = encode_views(method, params, state.batch_stats, batch)
        drawn = randomness
        if drawn is None:
            key = jax.random.wrap_key_data(state.rng)
            num_rows = z.shape[0] * z.shape[1]
            drawn = draw_randomness(
                method.config, key, state.step, dim=z.shape[-1], num_rows=num_rows, dtype=z.dtype
            )
        total, metrics = objective(method, params, z, drawn, state.step)
        return total, (stats, metrics)

    return jax.value_and_grad(loss, has_aux=True)(state.params)


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
        sharded over B; other entries are ignored.
      randomness: replaces the step's own draw.

    Returns:
      (new state, scalar metrics).
    """
    (total, (stats, metrics)), gradients = loss_and_gradient(method, state, batch, randomness)
    norm = optax.global_norm(gradients)
    updates, opt_state = method.optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    good = jnp.isfinite(total) & jnp.isfinite(norm) & (state.failed_step < 0)
    keep: Callable[[Any, Any], Any] = lambda new, old: jax.tree.map(  # noqa: E731
        lambda n, o: jnp.where(good, n, o), new, old
    )
    failed = jnp.where(good | (state.failed_step >= 0), state.failed_step, state.step)
    new_state = state.replace(
        step=state.step + 1,
        params=keep(params, state.params),
        batch_stats=keep(stats, state.batch_stats),
        opt_state=keep(opt_state, state.opt_state),
        failed_step=failed,
    )
    metrics = {
        **metrics,
        "total": total,
        "grad_norm": norm,
        "lr": method.rates["main"](state.step),
        "failed_step": failed,
    }
    return new_state, metrics
