"""AdamW and LARS, and their learning-rate schedules as functions of the step."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import PyTree

from hjepa_jax.config.training import ParameterKind, Train
from hjepa_jax.methods.base import Method, Rate
from hjepa_jax.methods.clipping import array_norms, clip_by_global_norm
from hjepa_jax.objectives.shares import AxisName

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


def excluded(params: PyTree, kinds: Collection[ParameterKind]) -> PyTree[bool]:
    """Returns a tree of bool: which parameters are of these kinds, by their names.

    'norms' are the arrays of a module that has a 'scale', as normalizations do; 'biases' are the
    arrays 'bias' of all others.
    """
    named = jax.tree_util.tree_leaves_with_path(params)
    norms = {path[:-1] for path, _ in named if _leaf(path) == "scale"}

    def found(path: jax.tree_util.KeyPath, _: object) -> bool:
        if path[:-1] in norms:
            return "norms" in kinds
        return "biases" in kinds and _leaf(path) == "bias"

    return jax.tree_util.tree_map_with_path(found, params)


def _leaf(path: jax.tree_util.KeyPath) -> str:
    return jax.tree_util.keystr(path[-1:], simple=True)


def scale_by_trust_ratio(coefficient: float) -> optax.GradientTransformationExtraArgs:
    """Scales each update u of an array w by coefficient * |w| / |u|, or by 1 if either norm is 0.

    As `optax.scale_by_trust_ratio`, but `update` takes `axis_name` for slices of arrays, whose
    norms are those of the whole arrays. Source: LARS, You et al. (arXiv 1708.03888), Algorithm 1.
    """

    def init(params: optax.Params) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: PyTree[jax.Array],
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        axis_name: AxisName = None,
        **others: object,
    ) -> tuple[PyTree[jax.Array], optax.OptState]:
        del others
        sizes, weights = array_norms((updates, params), axis_name)

        def scaled(u: jax.Array, size: jax.Array, weight: jax.Array) -> jax.Array:
            usable = (size > 0) & (weight > 0)
            ratio = coefficient * weight / jnp.where(usable, size, 1.0)
            return u * jnp.where(usable, ratio, 1.0).astype(u.dtype)

        return jax.tree.map(scaled, updates, sizes, weights), state

    return optax.GradientTransformationExtraArgs(init, update)


def make_optimizer(
    train: Train, method: Method, rates: dict[str, Schedule]
) -> optax.GradientTransformationExtraArgs:
    """Returns AdamW or LARS with a learning rate for each group.

    The gradient is clipped first. AdamW then adds the decayed weights to Adam's step; LARS adds
    them to the gradient, scales by the trust ratio and the rate, and accumulates momentum, as
    `optax.lars`.

    `update` takes slices of arrays as well, if it gets the `norms` of the whole parts and the
    `axis_name` of the slices.
    """

    def groups(params: PyTree) -> PyTree[str]:
        return {
            part: jax.tree.map(lambda _, p=part: p if p in rates else MAIN, tree)
            for part, tree in params.items()
        }

    def kept(params: PyTree) -> PyTree[bool]:
        return jax.tree.map(operator.not_, excluded(params, train.decay_exclude))

    def decayed(params: PyTree) -> PyTree[bool]:
        return jax.tree.map(operator.and_, method.decayed(params), kept(params))

    decay = optax.add_decayed_weights(train.weight_decay, mask=decayed)
    rate = optax.partition(
        {name: optax.scale_by_learning_rate(rate) for name, rate in rates.items()}, groups
    )
    chain = []
    if train.grad_clip is not None:
        chain.append(clip_by_global_norm(train.grad_clip, skip=method.unclipped()))
    if train.optimizer == "adamw":
        chain += [optax.scale_by_adam(b1=train.b1, b2=train.b2, eps=train.adam_eps), decay, rate]
    else:
        trust = optax.masked(scale_by_trust_ratio(train.trust_coefficient), kept)
        chain += [decay, trust, rate, optax.trace(train.momentum, train.nesterov)]
    return optax.chain(*chain)
