"""The train step: a pure function (state, batch) -> (state, metrics)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree

from hjepa_jax.config.sections.projection import evaluated_split
from hjepa_jax.data.augmentation.device import with_images
from hjepa_jax.methods import held
from hjepa_jax.methods.base import Method, Metrics, Randomness
from hjepa_jax.methods.clipping import part_norms
from hjepa_jax.objectives import shares
from hjepa_jax.objectives.shares import AxisName
from hjepa_jax.runtime.arithmetic import products
from hjepa_jax.runtime.sharding import (
    DATA_AXIS,
    batch_sharding,
    join_slices,
    own_slices,
    slice_specs,
    sum_packed,
    sum_slices,
)
from hjepa_jax.training.accumulation import cached_gradient, split_microbatches
from hjepa_jax.training.encoding.batch import Batch, Parts
from hjepa_jax.training.encoding.row_keys import encoder_key, numbered
from hjepa_jax.training.encoding.views import encode_views
from hjepa_jax.training.online_probe import update_online_probe
from hjepa_jax.training.optimizer import MAIN
from hjepa_jax.training.setup import StepSetup
from hjepa_jax.training.state import TrainState

_Result = TypeVar("_Result")

_WHOLE, _STATES = PartitionSpec(), PartitionSpec(None, DATA_AXIS)


class StepLoss(NamedTuple):
    """The loss of a batch and the other results of its forward pass.

    `probed` holds the states that the online probe sees if they are not z, see `encode_views`.
    """

    total: jax.Array
    gradient: Parts
    batch_stats: Parts
    metrics: Metrics
    z: jax.Array
    randomness: Randomness
    probed: tuple[jax.Array, ...] = ()


def loss_and_gradient(
    setup: StepSetup,
    state: TrainState,
    batch: Batch,
    randomness: Randomness | None = None,
    *,
    mesh: Mesh | None = None,
) -> StepLoss:
    """Returns loss, gradient, new batch statistics, metrics and states of one batch.

    With train.accumulation above 1 the encoder sees a part of the batch at a time; everything
    except batch normalization stays the same, see `hjepa_jax.training.accumulation`.

    Args:
      setup: static.
      state: see `train_step`.
      batch: see `train_step`.
      randomness: replaces what the step would draw (numerical checks against recorded values).
      mesh: the devices that the batch is split over, each of which takes its share by
        `jax.shard_map`; None = the batch is whole, or XLA splits the work. Both give the same
        result to rounding.
    """
    sliced = _slicing_mesh(setup, mesh)
    gradient = _WHOLE if sliced is None else slice_specs(sliced, state.params)
    given = state.replace(opt_state=())
    share = _split(
        functools.partial(_loss_and_gradient, setup),
        mesh,
        in_specs=(_WHOLE, _batch_specs(mesh, batch), _WHOLE),
        out_specs=StepLoss._make([_WHOLE, gradient, _WHOLE, _WHOLE, _STATES, _WHOLE, _STATES]),
    )
    with products(setup.settings.runtime.matmul_precision):
        return share(given, batch, randomness)


def _slicing_mesh(setup: StepSetup, mesh: Mesh | None) -> Mesh | None:
    """Returns the mesh if each device updates a slice of the parameters, else None."""
    return mesh if setup.settings.train.shard_optimizer else None


def _batch_specs(mesh: Mesh | None, batch: Batch) -> dict[str, PartitionSpec]:
    """Returns how the entries of a batch are split."""
    return {} if mesh is None else {name: batch_sharding(mesh, name).spec for name in batch}


def _split(
    function: Callable[..., _Result], mesh: Mesh | None, in_specs: PyTree, out_specs: PyTree
) -> Callable[..., _Result]:
    """Returns a function that runs on each device's share, or on whole arrays without a mesh."""
    if mesh is None:
        return function
    shared = functools.partial(function, axis_name=DATA_AXIS)
    return jax.shard_map(shared, mesh=mesh, in_specs=in_specs, out_specs=out_specs)


def _loss_and_gradient(
    setup: StepSetup,
    state: TrainState,
    batch: Batch,
    randomness: Randomness | None,
    axis_name: AxisName = None,
) -> StepLoss:
    """`loss_and_gradient` of a share of the batch."""
    batch, key = with_images(batch), None
    if setup.encoder.takes_keys:
        batch, key = numbered(batch, axis_name), encoder_key(state.rng, state.step)
    encode = functools.partial(encode_views, setup, axis_name=axis_name, key=key)
    method, number = setup.method, shares.count(axis_name)

    def loss_of_states(params: Parts, z: jax.Array) -> tuple[jax.Array, tuple[Metrics, Randomness]]:
        drawn = randomness
        if drawn is None:
            num_views, num_images = z.shape[0], z.shape[1] * number
            drawn = held.draw(
                method,
                state.held,
                jax.random.wrap_key_data(state.rng),
                state.step,
                num_rows=num_views * num_images,
                num_images=num_images,
                dtype=z.dtype,
            )
        total, metrics = _method_loss(
            method, params, state.method_state, z, drawn, state.step, axis_name
        )
        return total, (metrics, drawn)

    def loss(params: Parts) -> tuple[jax.Array, PyTree]:
        z, stats, probed = encode(params, state.batch_stats, batch)
        total, extras = loss_of_states(params, z)
        return total, (stats, extras, jax.lax.stop_gradient(z), probed)

    # Marked as its own: each device differentiates by its share, without a collective.
    params = shares.own(state.params, axis_name)
    count = setup.settings.train.accumulation
    if count == 1:
        (total, rest), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        stats, (metrics, drawn), z, probed = rest
    else:
        parts = split_microbatches(batch, count)
        total, gradient, stats, (metrics, drawn), z, probed = cached_gradient(
            encode, loss_of_states, params, state.batch_stats, parts
        )
    add = sum_slices if setup.settings.train.shard_optimizer else sum_packed
    gradient = add(gradient, axis_name)
    if setup.settings.model.batch_norm == "local":
        stats = shares.mean_shares(stats, axis_name)
    return StepLoss(total, gradient, stats, metrics, z, drawn, probed)


def _method_loss(
    method: Method,
    params: Parts,
    method_state: PyTree[jax.Array],
    z: jax.Array,
    randomness: Randomness,
    step: jax.Array,
    axis_name: AxisName,
) -> tuple[jax.Array, Metrics]:
    """Returns the loss of all shares; each device differentiates it by its own share."""
    if method.takes_shares:
        return method.loss(params, method_state, z, randomness, step, axis_name=axis_name)
    whole = shares.gather(z, axis_name, axis=1)
    found = method.loss(params, method_state, whole, randomness, step)
    return shares.mean_shares(found, axis_name)


def _new_method_state(
    method: Method,
    method_state: PyTree[jax.Array],
    z: jax.Array,
    randomness: Randomness,
    step: jax.Array,
    axis_name: AxisName = None,
) -> PyTree[jax.Array]:
    """Returns the method state after the step."""
    if method.takes_shares:
        return method.update_state(method_state, z, randomness, step, axis_name=axis_name)
    whole = shares.gather(z, axis_name, axis=1)
    return shares.agreed(method.update_state(method_state, whole, randomness, step), axis_name)


def _update(
    setup: StepSetup, state: TrainState, gradient: Parts, mesh: Mesh | None
) -> tuple[jax.Array, optax.Updates, optax.OptState]:
    """Returns the gradient's norm, the updates of the parameters, and the optimizer's new state.

    With a mesh, each device has a slice of the gradient and of the optimizer's state, and the
    updates are gathered.
    """

    def update(
        gradient: Parts, opt_state: optax.OptState, params: Parts, axis_name: AxisName = None
    ) -> tuple[jax.Array, optax.Updates, optax.OptState]:
        norms = part_norms(gradient, axis_name)
        updates, opt_state = setup.optimizer.update(
            gradient,
            opt_state,
            own_slices(params, axis_name),
            norms=norms,
            axis_name=axis_name,
        )
        return optax.tree.norm(norms), join_slices(updates, params, axis_name), opt_state

    arguments = (gradient, state.opt_state, state.params)
    if mesh is None:
        return update(*arguments)
    slices, moments = slice_specs(mesh, gradient), slice_specs(mesh, state.opt_state)
    split = _split(update, mesh, (slices, moments, _WHOLE), (_WHOLE, _WHOLE, moments))
    return split(*arguments)


def train_step(
    setup: StepSetup,
    state: TrainState,
    batch: Batch,
    randomness: Randomness | None = None,
    *,
    mesh: Mesh | None = None,
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
      randomness: replaces the step's own draw, also for later steps that would use the same.
      mesh: see `loss_and_gradient`.

    Returns:
      (new state, scalar metrics).
    """
    step = loss_and_gradient(setup, state, batch, randomness, mesh=mesh)
    new, metrics = apply_gradient(setup, state, step, mesh=mesh)
    if state.probe:
        settings = setup.settings
        probe, scores = _split(
            functools.partial(
                update_online_probe,
                settings.evaluation,
                evaluated_split(settings),
            ),
            mesh,
            in_specs=(_WHOLE, _STATES, PartitionSpec(DATA_AXIS)),
            out_specs=_WHOLE,
        )(state.probe, (step.probed or (step.z,))[0], batch["label"])
        good = new.failed_step < 0
        kept = jax.tree.map(
            lambda after, before: jnp.where(good, after, before), probe, state.probe
        )
        new, metrics = new.replace(probe=kept), metrics | scores
    return new, metrics


def apply_gradient(
    setup: StepSetup, state: TrainState, step: StepLoss, *, mesh: Mesh | None = None
) -> tuple[TrainState, Metrics]:
    """The second half of `train_step`: from the loss and gradient of a batch to the new state."""
    norm, updates, opt_state = _update(setup, state, step.gradient, _slicing_mesh(setup, mesh))
    method_state = _split(
        functools.partial(_new_method_state, setup.method),
        mesh,
        in_specs=(_WHOLE, _STATES, _WHOLE, _WHOLE),
        out_specs=_WHOLE,
    )(state.method_state, step.z, step.randomness, state.step)
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
    drawn = held.hold(setup.method, state.held, step.randomness, state.step)
    return state.replace(step=state.step + 1, failed_step=failed, held=drawn, **kept), metrics
