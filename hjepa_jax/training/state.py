"""The training state, one pytree."""

from __future__ import annotations

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from hjepa_jax.config.sections.projection import evaluated_split, evaluates_projection
from hjepa_jax.methods.held import Held, init_held
from hjepa_jax.training.online_probe import init_online_probe
from hjepa_jax.training.setup import StepSetup


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes.

    Attributes:
      step: int32 scalar, the number of optimizer steps done.
      params: parameter trees of 'encoder', 'projector' and the method's parts (absent if a part has
        none).
      batch_stats: {'encoder', 'projector'} running batch-norm statistics.
      opt_state: the optimizer's state.
      method_state: state that the method itself updates, {} if there is none.
      probe: {'params', 'opt_state'} of the online probe, {} if there is none.
      held: random arrays that several steps use, {} if there are none, see `methods.held`.
      rng: uint32 key data; each step uses `fold_in(rng, step)`.
      failed_step: int32 scalar, the first step whose loss or gradient was not finite, else -1.
        From then on the state stays as it was before that step.
    """

    step: jax.Array
    params: Mapping[str, PyTree[jax.Array]]
    batch_stats: Mapping[str, PyTree[jax.Array]]
    opt_state: optax.OptState
    method_state: PyTree[jax.Array]
    probe: dict[str, PyTree[jax.Array]]
    held: Held
    rng: jax.Array
    failed_step: jax.Array


def init_state(setup: StepSetup, num_classes: int | None, key: jax.Array) -> TrainState:
    """Returns the initial state.

    Args:
      setup: the parts to initialize.
      num_classes: number of classes, for the online probe; None = no probe.
      key: a typed PRNG key, from which parameters and the training stream derive.
    """
    settings, encoder, projector = setup.settings, setup.encoder, setup.projector
    encoder_key, projector_key, method_key, stream = jax.random.split(key, 4)
    size = settings.data.image_size
    images = jnp.zeros((2, size, size, 3), encoder.dtype)
    variables = encoder.init(encoder_key, images, train=False)
    encoded = jax.eval_shape(lambda v: encoder.apply(v, images, train=False), variables)
    projected = projector.init(projector_key, jnp.zeros(encoded.shape, encoded.dtype), train=False)
    z = jax.eval_shape(lambda v, x: projector.apply(v, x, train=False), projected, encoded)
    parts = {"encoder": variables, "projector": projected}
    params = {part: tree["params"] for part, tree in parts.items() if tree.get("params")}
    params |= setup.method.init(method_key, jnp.zeros(z.shape, z.dtype))
    stats = {part: tree["batch_stats"] for part, tree in parts.items() if tree.get("batch_stats")}
    probe = {}
    if settings.evaluation.online_probe and num_classes is not None:
        probe = init_online_probe(
            settings.evaluation,
            evaluated_split(settings),
            (z if evaluates_projection(settings) else encoded).shape[-1],
            num_classes,
            jax.random.fold_in(key, 4),
        )
    data = settings.data
    views = data.num_global_views + data.num_local_views
    held = init_held(
        setup.method,
        stream,
        num_rows=views * data.batch_size,
        num_images=data.batch_size,
        dtype=z.dtype,
    )
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=stats,
        opt_state=setup.optimizer.init(params),
        method_state=setup.method.init_state(),
        probe=probe,
        held=held,
        rng=jax.random.key_data(stream),
        failed_step=jnp.full((), -1, jnp.int32),
    )
