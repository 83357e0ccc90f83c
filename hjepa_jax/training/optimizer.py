"""AdamW and its learning-rate schedules, as functions of the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import PyTree

from hjepa_jax.config.training import Train
from hjepa_jax.methods.base import Method, Rate
from hjepa_jax.methods.clipping import clip_by_global_norm

Schedule: TypeAlias = Callable[[ArrayLike], jax.Array]
# The group of all parameters without a learning rate of their own.
MAIN = "main"


def warmup_cosine(
    peak: float, *, warmup_steps: float, total_steps: int, init_ratio: float, floor: float
) -> Schedule:
    """Linear warm-up from `init_ratio * peak` to `peak`, then cosine to `floor`.

    Step i of W warm-up and T total steps: peak*(r + (1-r)*i/W) for i < W, then
    floor + (peak-floor)*(1 + cos(pi*(i-W)/(T-W)))/2.
    """

    def schedule(step: ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.result_type(float))
        warm = peak * (init_ratio + (1 - init_ratio) * step / max(warmup_steps, 1e-9))
        progress = jnp.clip((step - warmup_steps) / max(total_steps - warmup_steps, 1e-9), 0, 1)
        cosine = floor + (peak - floor) * (1 + jnp.cos(jnp.pi * progress)) / 2
        return jnp.where(step < warmup_steps, warm, cosine)

    return schedule


def learning_rates(train: Train, method: Method, *, total_steps: int) -> dict[str, Schedule]:
    """Returns the schedule of each parameter group: MAIN and the method's own."""
    rates = {MAIN: Rate(train.lr, train.lr * train.min_lr_ratio), **method.learning_rates()}
    return {
        group: warmup_cosine(
            rate.peak,
            warmup_steps=train.warmup_epochs * method.steps_per_epoch,
            total_steps=total_steps,
            init_ratio=train.warmup_init_ratio,
            floor=rate.floor,
        )
        for group, rate in rates.items()
    }


def make_optimizer(
    train: Train, method: Method, rates: dict[str, Schedule]
) -> optax.GradientTransformationExtraArgs:
    """Returns AdamW with a learning rate for each group.

    All but the clipping acts on each entry alone. So it updates slices of arrays as well, if
    `update` gets the `norms` of the whole parts.
    """

    def groups(params: PyTree) -> PyTree[str]:
        return {
            part: jax.tree.map(lambda _, p=part: p if p in rates else MAIN, tree)
            for part, tree in params.items()
        }

    chain = []
    if train.grad_clip is not None:
        chain.append(clip_by_global_norm(train.grad_clip, skip=method.unclipped()))
    chain.append(optax.scale_by_adam(b1=train.b1, b2=train.b2, eps=train.adam_eps))
    chain.append(optax.add_decayed_weights(train.weight_decay, mask=method.decayed))
    chain.append(
        optax.partition(
            {name: optax.scale_by_learning_rate(rate) for name, rate in rates.items()}, groups
        )
    )
    return optax.chain(*chain)
