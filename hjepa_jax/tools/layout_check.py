"""Compares loss and gradient of one step on several device layouts, in float64."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from hjepa_jax.config import Settings, view_sizes
from hjepa_jax.config.data import Data
from hjepa_jax.errors import ConfigError
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.devices import UNOPTIMIZED
from hjepa_jax.training.encoding.batch import Batch
from hjepa_jax.training.setup import StepSetup, build_setup
from hjepa_jax.training.state import TrainState, init_state
from hjepa_jax.training.step import apply_gradient, loss_and_gradient


def random_batch(data: Data, seed: int) -> dict[str, np.ndarray]:
    """Returns random views of a batch, on the host."""
    rng = np.random.default_rng(seed)
    count = data.batch_size
    return {
        name: rng.integers(0, 256, (views, count, size, size, 3), dtype=np.uint8)
        for name, (views, size) in view_sizes(data).items()
    }


def _float64(tree: PyTree[jax.Array]) -> PyTree[jax.Array]:
    return jax.tree.map(
        lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def float64_setup(
    settings: Settings,
    *,
    total: int,
    per_epoch: int,
    norm_groups: int = 1,
    num_classes: int | None = None,
) -> tuple[StepSetup, TrainState]:
    """Returns the step's setup of a configuration and its initial state, all in float64.

    Needs `jax_enable_x64`.

    Args:
      settings: the configuration.
      total: steps of the training.
      per_epoch: steps of an epoch.
      norm_groups: as in `build_setup`.
      num_classes: as in `init_state`.
    """
    setup = build_setup(
        settings,
        total_steps=total,
        steps_per_epoch=per_epoch,
        dtype=jnp.float64,
        norm_groups=norm_groups,
    )
    init = jax.jit(functools.partial(init_state, setup, num_classes))
    key = jax.random.key(settings.seed)
    compiled = init.lower(key).compile(compiler_options=UNOPTIMIZED)
    return setup, _float64(compiled(key))


def one_step(
    setup: StepSetup,
    state: TrainState,
    batch: dict[str, np.ndarray],
    devices: int,
    *,
    split: bool = True,
) -> dict[str, PyTree[np.ndarray]]:
    """Returns {'loss', 'metrics', 'gradient', 'params', 'moments', and other state} of a step.

    Args:
      setup: of `float64_setup`, as the next one.
      state: before the step.
      batch: on the host.
      devices: number of devices.
      split: whether each device takes its share by `jax.shard_map`, as in training; otherwise the
        batch is sharded under `jax.jit`, and XLA splits the work.
    """
    mesh = sharding.data_mesh(jax.devices()[:devices])
    everywhere = sharding.replicated(mesh)

    @functools.partial(jax.jit, out_shardings=everywhere)
    def both(state: TrainState, batch: Batch) -> dict[str, PyTree[jax.Array]]:
        step = loss_and_gradient(setup, state, batch, mesh=mesh if split else None)
        new_state, metrics = apply_gradient(setup, state, step, mesh=mesh if split else None)
        return {
            "loss": step.total,
            "metrics": metrics,
            "statistics": step.batch_stats,
            "gradient": step.gradient,
            "params": new_state.params,
            "moments": new_state.opt_state,
            "method_state": new_state.method_state,
        }

    arguments = (jax.device_put(state, everywhere), sharding.put_batch(mesh, batch))
    # Optimizing the code takes longer than one step saves.
    compiled = both.lower(*arguments).compile(compiler_options=UNOPTIMIZED)
    return jax.device_get(compiled(*arguments))


def compare_layouts(settings: Settings, counts: Sequence[int]) -> dict[int, dict[str, float]]:
    """Compares each layout with the step of a whole batch under `jax.jit` on one device.

    Args:
      settings: the configuration.
      counts: numbers of devices.

    Returns:
      For each number of devices, `relative_differences`.

    Raises:
      ConfigError: if config.model.batch_norm is 'local'.
    """
    if settings.model.batch_norm == "local":
        raise ConfigError(
            "config.model.batch_norm is 'local', which makes a step depend on the number of "
            "devices: compare layouts with config.model.batch_norm='global'."
        )
    setup, state = float64_setup(settings, total=10, per_epoch=2)
    batch = random_batch(settings.data, settings.seed)
    first = one_step(setup, state, batch, 1, split=False)
    return {
        count: relative_differences(one_step(setup, state, batch, count), first) for count in counts
    }


def relative_differences(
    ours: dict[str, PyTree[np.ndarray]], reference: dict[str, PyTree[np.ndarray]]
) -> dict[str, float]:
    """Returns the largest relative difference of each leaf, by its name in 'a/b'.

    Differences of gradients, parameters, and moments are relative to the largest entry of all
    leaves: a leaf whose gradient is zero up to rounding, such as a bias in front of batch
    normalization, has no scale of its own, nor has its update.
    """
    largest = {
        group: max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(reference[group]))
        for group in {"gradient", "params", "moments"} & reference.keys()
    }

    def relative(path: jax.tree_util.KeyPath, one: np.ndarray, other: np.ndarray) -> float:
        scale = largest.get(path[0].key, float(np.abs(other).max()))
        return float(np.abs(np.asarray(one) - other).max()) / max(scale, 1e-30)

    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): value
        for path, value in jax.tree_util.tree_leaves_with_path(
            jax.tree_util.tree_map_with_path(relative, ours, reference)
        )
    }
