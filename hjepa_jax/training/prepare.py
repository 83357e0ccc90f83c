"""A run made ready: modules, optimiser, and the compiled functions of a configuration."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from hjepa_jax.config import Config, steps_per_epoch, total_steps
from hjepa_jax.errors import ConfigError
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.sharding import sharded_optimizer
from hjepa_jax.training.hamsigreg import init_spectral
from hjepa_jax.training.method import build_modules
from hjepa_jax.training.state import TrainState, init_state, learning_rates, make_optimizer
from hjepa_jax.training.step import Method, normalise, train_step

# For what runs once: optimising its code takes longer than running it unoptimised.
UNOPTIMISED: Any = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
}


def compiler_options(config: Config) -> Any:
    """Returns the options that the train step, and what must agree with it, compile with."""
    return UNOPTIMISED if config.train.fast_compile else None


class Run(NamedTuple):
    """A run made ready: method, abstract state, and the compiled functions."""

    method: Method
    mesh: Any
    num_steps: int
    init: Callable[[], TrainState]
    step: Any  # a jitted function (state, batch) -> (state, metrics), which donates the state
    encode: Any  # a jitted function (encoder's variables, images) -> states, frozen
    abstract_state: Any


def prepare(config: Config, num_images: int, mesh: Any, num_classes: int | None = None) -> Run:
    """Builds modules, optimiser, and the jitted, donated init and step functions.

    Args:
      config: a validated configuration.
      num_images: of the training split; what an epoch is follows from it.
      mesh: of `sharding.data_mesh`.
      num_classes: of the training labels; None = the state has no online probe.

    Raises:
      ConfigError: if the batch does not split over the devices or exceeds the data set.
    """
    sentence = sharding.divisibility_error(
        config.data.batch_size,
        mesh,
        "config.data.batch_size",
        accumulation=config.train.accumulation,
    )
    if sentence:
        raise ConfigError(sentence)
    if config.data.batch_size > num_images:
        raise ConfigError(
            f"config.data.batch_size is {config.data.batch_size} but the training split has only "
            f"{num_images} images: set it to {num_images} or less."
        )
    epoch_steps = steps_per_epoch(num_images, config.data.batch_size)
    num_steps = total_steps(config, num_images)
    rates = learning_rates(config, total_steps=num_steps, steps_per_epoch=epoch_steps)
    optimizer = make_optimizer(config, rates)
    if config.train.shard_optimizer:
        optimizer = sharded_optimizer(optimizer, mesh)
    groups = mesh.devices.size if config.model.batch_norm == "local" else 1
    modules = build_modules(config, norm_groups=groups)
    method = Method(config, modules, optimizer, rates, epoch_steps)
    init = functools.partial(
        init_state, config, method.modules, method.optimizer, init_spectral(config), num_classes
    )
    key = jax.random.key(config.seed)
    everywhere = sharding.replicated(mesh)
    shapes = jax.eval_shape(init, key)
    placement = sharding.state_shardings(mesh, shapes, shard_optimizer=config.train.shard_optimizer)
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        placement,
    )
    jitted = jax.jit(
        functools.partial(train_step, method),
        donate_argnums=0,
        out_shardings=(placement, everywhere),
        compiler_options=compiler_options(config),
    )

    def initialise() -> TrainState:
        lowered = jax.jit(init, out_shardings=placement).lower(key)
        # It runs once: optimising its many small random draws takes ten times as long as they do.
        return lowered.compile(compiler_options=UNOPTIMISED)(key)

    encode = jax.jit(functools.partial(frozen_encoder, method), out_shardings=everywhere)
    return Run(method, mesh, num_steps, initialise, jitted, encode, abstract)


def frozen_encoder(method: Method, variables: Any, images: jax.Array) -> Any:
    """Returns the states float32 [N, D] of uint8 images [N, S, S, 3], by running statistics."""
    data, encoder = method.config.data, method.modules.encoder
    inputs = normalise(images, data.mean, data.std, encoder.dtype)
    return encoder.apply(variables, inputs, train=False)


def make_encode(run: Run, params: Any, batch_stats: Any) -> Callable[[Any], jax.Array]:
    """Returns the frozen encoder: uint8 images [N, S, S, 3] -> float32 [N, D].

    All that are made of one run share its compiled function. N must split evenly over the devices
    of the run's mesh. All processes must call it together, with the same images.
    """
    variables = {"params": params["encoder"], "batch_stats": batch_stats.get("encoder", {})}

    def encode(images: Any) -> jax.Array:
        return run.encode(variables, sharding.put_whole(run.mesh, "image", images))

    return encode
