"""The online probe: the evaluation's linear probe, trained along with the encoder to monitor it.

It sees the states of the training batches (augmented views, statistics of the batch), which are the
output of the encoder or of the projector by config.evaluation.features. They are detached: no
gradient reaches the encoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from hjepa_jax.config.sections.evaluation import Evaluation
from hjepa_jax.objectives import shares
from hjepa_jax.objectives.linear_probe import (
    ProbeParams,
    cross_entropy,
    probe_logits,
)
from hjepa_jax.objectives.shares import AxisName


def _optimizer(settings: Evaluation) -> optax.GradientTransformation:
    # A constant rate, because the features change until the end of the run.
    return optax.adamw(settings.probe_lr, weight_decay=settings.probe_weight_decay)


def _evaluated_part(settings: Evaluation, split_qp: bool, z: jax.Array) -> jax.Array:
    """Returns the config.evaluation.state_part of states [..., D]: q, p or all."""
    part, half = settings.state_part, z.shape[-1] // 2
    if part == "qp" or not split_qp:
        return z
    return z[..., :half] if part == "q" else z[..., half:]


def init_online_probe(
    settings: Evaluation, split_qp: bool, width: int, num_classes: int, key: jax.Array
) -> dict[str, PyTree[jax.Array]]:
    """Returns {'params', 'opt_state'} of a new probe, float32.

    Args:
      settings: the section `evaluation`.
      split_qp: whether the states are [q | p].
      width: D of the states z.
      num_classes: labels lie in 0..num_classes-1.
      key: typed PRNG key; kernel and bias are uniform(+-1/sqrt(features)).
    """
    dim = _evaluated_part(settings, split_qp, jnp.zeros(width)).shape[0]
    bound = 1 / math.sqrt(dim)
    keys = jax.random.split(key)
    kernel, bias = (
        jax.random.uniform(k, shape, jnp.float32, -bound, bound)
        for k, shape in zip(keys, ((dim, num_classes), (num_classes,)))
    )
    params = ProbeParams(jnp.ones(dim, jnp.float32), jnp.zeros(dim, jnp.float32), kernel, bias)
    return {"params": params, "opt_state": _optimizer(settings).init(params)}


def update_online_probe(
    settings: Evaluation,
    split_qp: bool,
    probe: dict[str, PyTree[jax.Array]],
    z: jax.Array,
    labels: jax.Array,
    axis_name: AxisName = None,
) -> tuple[dict[str, PyTree[jax.Array]], dict[str, jax.Array]]:
    """Trains the probe on one batch.

    Args:
      settings: the section `evaluation`.
      split_qp: whether the states are [q | p].
      probe: {'params', 'opt_state'}.
      z: [V, B, D], the evaluated states of the step.
      labels: int [B]; images with label -1 (no label) are ignored.
      axis_name: see `hjepa_jax.objectives.shares`.

    Returns:
      The new probe, and 'online/probe_loss' and 'online/probe_top1' of the batch before the update,
      over all views of labeled images. Without labeled images the probe does not change and both
      metrics are NaN.
    """
    # On accelerators XLA might fuse the probe into the encoder, which would change its rounding.
    detached = jax.lax.optimization_barrier(jax.lax.stop_gradient(z))
    features = _evaluated_part(settings, split_qp, detached.astype(jnp.float32))
    truth = jnp.broadcast_to(jnp.maximum(labels, 0), features.shape[:-1])
    counts = jnp.broadcast_to(labels >= 0, truth.shape)
    number = shares.sum_shares(jnp.sum(counts), axis_name)

    def mean(values: jax.Array) -> jax.Array:
        total = jnp.sum(jnp.where(counts, values, 0.0))
        return shares.sum_shares(total, axis_name) / jnp.maximum(number, 1)

    def loss(params: ProbeParams) -> tuple[jax.Array, jax.Array]:
        logits = probe_logits(params, features)
        return mean(cross_entropy(logits, truth)), mean(jnp.argmax(logits, axis=-1) == truth)

    (value, top1), gradient = jax.value_and_grad(loss, has_aux=True)(probe["params"])
    updates, opt_state = _optimizer(settings).update(gradient, probe["opt_state"], probe["params"])
    trained = {"params": optax.apply_updates(probe["params"], updates), "opt_state": opt_state}
    # Momentum and decay would change it even without labels.
    kept = jax.tree.map(lambda new, old: jnp.where(number > 0, new, old), trained, probe)
    figures = {"online/probe_loss": value, "online/probe_top1": top1}
    return kept, {name: jnp.where(number > 0, f, jnp.nan) for name, f in figures.items()}


def logged_figures(values: Mapping[str, float]) -> dict[str, float]:
    """Returns a step's metrics, without the probe's if none of its images had a label."""
    if math.isnan(values.get("online/probe_top1", 0.0)):
        return {name: v for name, v in values.items() if not name.startswith("online/probe_")}
    return dict(values)
