"""The training state, one pytree, and the optimiser and schedules as functions of the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from hjepa_jax.config import Config
from hjepa_jax.training.method import Modules
from hjepa_jax.training.online_probe import init_online_probe

Schedule = Callable[[Any], jax.Array]


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes.

    Attributes:
      step: int32 scalar, the optimiser steps done.
      params: {'encoder', 'projector', 'predictor'} parameter trees (absent where a part has none).
      batch_stats: {'encoder', 'projector'} running batch-norm statistics.
      opt_state: the optimiser's state.
      spectral: {'params', 'opt_state'} of HamSIGReg's learnable spectrum, {} where there is none.
      probe: {'params', 'opt_state'} of the online probe, {} where there is none.
      rng: uint32 key data; each step uses `fold_in(rng, step)`.
      failed_step: int32 scalar, the first step whose loss or gradient was not finite, else -1.
        From then on the state stays as it was before that step.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    spectral: Any
    probe: Any
    rng: jax.Array
    failed_step: jax.Array


def warmup_cosine(
    peak: float, *, warmup_steps: float, total_steps: int, init_ratio: float, floor: float
) -> Schedule:
    """Linear warm-up from `init_ratio * peak` to `peak`, then cosine to `floor`.

    Step i of W warm-up and T total steps: peak*(r + (1-r)*i/W) for i < W, then
    floor + (peak-floor)*(1 + cos(pi*(i-W)/(T-W)))/2.
    """

    def schedule(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.result_type(float))
        warm = peak * (init_ratio + (1 - init_ratio) * step / max(warmup_steps, 1e-9))
        progress = jnp.clip((step - warmup_steps) / max(total_steps - warmup_steps, 1e-9), 0, 1)
        cosine = floor + (peak - floor) * (1 + jnp.cos(jnp.pi * progress)) / 2
        return jnp.where(step < warmup_steps, warm, cosine)

    return schedule


def learning_rates(
    config: Config, *, total_steps: int, steps_per_epoch: int
) -> dict[str, Schedule]:
    """Returns the schedules of the 'main' and 'predictor' parameter groups."""
    train = config.train
    peaks = {"main": train.lr, "predictor": train.predictor_lr or train.lr}
    return {
        group: warmup_cosine(
            peak,
            warmup_steps=train.warmup_epochs * steps_per_epoch,
            total_steps=total_steps,
            init_ratio=train.warmup_init_ratio,
            floor=(train.lr if config.parity.shared_lr_floor else peak) * train.min_lr_ratio,
        )
        for group, peak in peaks.items()
    }


def clip_by_global_norm(
    max_norm: float, *, skip: str | None = None
) -> optax.GradientTransformation:
    """Scales gradients by min(1, max_norm / (norm + 1e-6)), as in the published recipe.

    The part named `skip` is neither scaled nor counted in the norm.
    """

    def init(params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        skipped = {} if skip is None or skip not in updates else {skip: updates[skip]}
        counted = {part: tree for part, tree in updates.items() if part not in skipped}
        factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(counted) + 1e-6))
        clipped = jax.tree.map(lambda g: g * factor.astype(g.dtype), counted)
        return {part: (clipped | skipped)[part] for part in updates}, state

    return optax.GradientTransformation(init, update)


def parameter_groups(params: Any) -> Any:
    """Labels each parameter 'predictor' or 'main'."""
    return {
        part: jax.tree.map(lambda _, p=part: "predictor" if p == "predictor" else "main", tree)
        for part, tree in params.items()
    }


def has_gradient(params: Any, *, energy_weight: float) -> Any:
    """Marks the parameters that have a gradient, which alone are decayed.

    The last bias of the potential shifts the energy and moves no trajectory: it has a gradient
    only through the energy loss.
    """
    potential = params.get("predictor", {}).get("potential", {})
    last = f"layer{len(potential) - 1}"

    def decayed(path: tuple[Any, ...], _: Any) -> bool:
        names = [entry.key for entry in path]
        shifts_energy = names[:2] == ["predictor", "potential"] and names[2:] == [last, "bias"]
        return energy_weight > 0 or not shifts_energy

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_optimizer(config: Config, rates: dict[str, Schedule]) -> optax.GradientTransformation:
    """Returns AdamW with the two learning rates, decay on all parameters that have a gradient."""
    train = config.train

    def decay_mask(params: Any) -> Any:
        return has_gradient(params, energy_weight=config.loss.energy_weight)

    skip = "predictor" if config.parity.unclipped_predictor else None
    chain = [] if train.grad_clip is None else [clip_by_global_norm(train.grad_clip, skip=skip)]
    chain.append(optax.scale_by_adam(b1=train.b1, b2=train.b2, eps=train.adam_eps))
    chain.append(optax.add_decayed_weights(train.weight_decay, mask=decay_mask))
    chain.append(
        optax.partition(
            {name: optax.scale_by_learning_rate(rate) for name, rate in rates.items()},
            parameter_groups,
        )
    )
    return optax.chain(*chain)


def init_state(
    config: Config,
    modules: Modules,
    optimizer: optax.GradientTransformation,
    spectral: Any,
    num_classes: int | None,
    key: jax.Array,
) -> TrainState:
    """Returns the initial state.

    Args:
      config: gives the crop size.
      modules: the parts to initialise.
      optimizer: the optimiser.
      spectral: the initial spectrum, see `hjepa_jax.training.hamsigreg.init_spectral`.
      num_classes: of the labels, for the online probe; None = without it.
      key: a typed PRNG key, from which parameters and the training stream derive.
    """
    encoder_key, projector_key, predictor_key, stream = jax.random.split(key, 4)
    size = config.data.image_size
    images = jnp.zeros((2, size, size, 3), modules.encoder.dtype)
    variables = modules.encoder.init(encoder_key, images, train=False)
    z = jax.eval_shape(lambda v: modules.encoder.apply(v, images, train=False), variables)
    state = jnp.zeros(z.shape, z.dtype)
    parts = {
        "encoder": variables,
        "projector": modules.projector.init(projector_key, state, train=False),
    }
    if modules.predictor is not None:
        parts["predictor"] = modules.predictor.init(predictor_key, state, 1.0, 1.0)
    params = {part: tree["params"] for part, tree in parts.items() if tree.get("params")}
    stats = {part: tree["batch_stats"] for part, tree in parts.items() if tree.get("batch_stats")}
    probe = {}
    if config.evaluation.online_probe and num_classes is not None:
        probe = init_online_probe(config, z.shape[-1], num_classes, jax.random.fold_in(key, 4))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=stats,
        opt_state=optimizer.init(params),
        spectral=spectral,
        probe=probe,
        rng=jax.random.key_data(stream),
        failed_step=jnp.full((), -1, jnp.int32),
    )
