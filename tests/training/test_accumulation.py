"""Micro-batches: the gradient of the whole batch's loss, to 1e-10 where nothing else couples."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hjepa_jax.config.checks import typed
from hjepa_jax.recipes import cifar100
from hjepa_jax.runtime import devices
from hjepa_jax.runtime.devices import UNOPTIMIZED
from hjepa_jax.tools.layout_check import float64_setup
from hjepa_jax.training import accumulation
from hjepa_jax.training.accumulation import (
    cached_gradient,
    join_states,
    split_microbatches,
    split_states,
)
from hjepa_jax.training.step import loss_and_gradient

MICRO_BATCHES = 4


def assert_close(got: Any, expected: Any, tolerance: float) -> None:
    """Compares trees, relative to the largest entry of the whole tree."""
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=str(path))


def test_cut_takes_every_nth_image_and_states_come_back_in_order() -> None:
    views = np.arange(2 * 12 * 3).reshape(2, 12, 3)
    batch = {"global_views": jnp.asarray(views), "label": jnp.arange(12)}
    parts = split_microbatches(batch, 4)
    for i in range(4):
        np.testing.assert_array_equal(parts["global_views"][i], views[:, i::4])
        np.testing.assert_array_equal(parts["label"][i], np.arange(12)[i::4])
    np.testing.assert_array_equal(join_states(parts["global_views"]), views)
    np.testing.assert_array_equal(split_states(jnp.asarray(views), 4), parts["global_views"])


@pytest.mark.parametrize(
    ("variant", "scanned"), [("hjepa-smoke", True), ("ham_learnable-smoke", False)]
)
def test_equals_the_whole_batch_for_an_encoder_without_batch_coupling(
    variant, scanned, monkeypatch
) -> None:
    """The losses of a configuration on a dense encoder; the loop unrolled, and as a scan."""
    if scanned:
        monkeypatch.setattr(accumulation, "_unroll", jax.lax.scan)
        monkeypatch.setattr(devices, "_depend", lambda *both: jax.lax.optimization_barrier(both)[0])
    with jax.enable_x64(True):
        config = cifar100.get_config(variant)
        setup, state = float64_setup(typed(config), total=4, per_epoch=2)
        method = setup.method
        width = setup.encoder.shape(config.data.image_size).dim
        rng = np.random.default_rng(0)
        batch = {"global_views": jnp.asarray(rng.normal(size=(2, config.data.batch_size, 5)))}
        params = state.params | {"encoder": {"kernel": jnp.asarray(rng.normal(size=(5, width)))}}
        # The schedules start from zero: a later step counts every term.
        step = jnp.asarray(3)

        def encode(params: Any, stats: Any, part: Any) -> tuple[jax.Array, Any, Any]:
            before = part["global_views"] @ params["encoder"]["kernel"]
            return jnp.tanh(before), stats, (before,)

        def loss(params: Any, z: jax.Array) -> tuple[jax.Array, Any]:
            key = jax.random.wrap_key_data(state.rng)
            views, images = z.shape[:2]
            drawn = method.draw(
                key, step, num_rows=views * images, num_images=images, dtype=z.dtype
            )
            return method.loss(params, state.method_state, z, drawn, step)

        @functools.partial(jax.jit, compiler_options=UNOPTIMIZED)
        def both(params: Any) -> tuple[Any, Any]:
            parts = split_microbatches(batch, MICRO_BATCHES)
            cached = cached_gradient(encode, loss, params, {"mean": jnp.ones(3)}, parts)
            whole = jax.value_and_grad(lambda p: loss(p, encode(p, {}, batch)[0]), has_aux=True)
            return cached, whole(params)

        cached, ((total, metrics), gradient) = both(params)
        assert_close(cached.total, total, 1e-12)
        assert_close(cached.extras, metrics, 1e-12)
        assert_close(cached.gradient, gradient, 1e-10)
        np.testing.assert_array_equal(cached.batch_stats["mean"], np.ones(3))
        assert_close(cached.others, encode(params, {}, batch)[2], 1e-12)
        assert min(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient["encoder"])) > 1e-6


def test_a_step_on_copies_equals_the_whole_batch_and_needs_less_memory() -> None:
    """The whole step, batch norm included: micro-batches that are copies have its statistics."""
    with jax.enable_x64(True):
        config = cifar100.get_config("identity-smoke")
        config.resnet.width = 4
        compiled, count = {}, 2
        size, images = config.data.image_size, config.data.batch_size // count
        rng = np.random.default_rng(0)
        few = rng.integers(0, 256, (2, images, size, size, 3), dtype=np.uint8)
        copies = {"global_views": jnp.asarray(few.repeat(count, axis=1))}
        setup, state = float64_setup(typed(config), total=4, per_epoch=2)
        for accumulate in (1, count):
            settings = setup.settings.replace({"train.accumulation": accumulate})
            one = dataclasses.replace(setup, settings=settings)
            step = jax.jit(functools.partial(loss_and_gradient, one))
            compiled[accumulate] = step.lower(state, copies).compile(compiler_options=UNOPTIMIZED)
        whole, parts = (compiled[i](state, copies) for i in (1, count))
        assert_close(parts.total, whole.total, 1e-12)
        assert_close(parts.metrics, whole.metrics, 1e-10)
        assert_close(parts.gradient, whole.gradient, 1e-10)
        assert_close(parts.z, whole.z, 1e-10)
        means = [
            {path: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(s.batch_stats)}
            for s in (parts, whole)
        ]
        for path, leaf in means[0].items():
            # The unbiased variances of 2n and n values differ: by 1/n at the most here.
            tolerance = 1e-10 if path[-1].key == "mean" else 1e-2
            np.testing.assert_allclose(leaf, means[1][path], rtol=tolerance, atol=tolerance)
        # Different images: batch norm is over a micro-batch, the documented difference.
        other = {"global_views": copies["global_views"].at[:, 0].set(0)}
        totals = [float(compiled[i](state, other).total) for i in (1, count)]
        assert 1e-9 < abs(totals[0] - totals[1]) < 0.5 * abs(totals[0])
        memory = {i: c.memory_analysis().temp_size_in_bytes for i, c in compiled.items()}
        assert memory[count] < 0.7 * memory[1], memory


def test_what_an_encoder_draws_depends_on_seed_and_step_alone() -> None:
    """Stochastic depth skips the same branches in micro-batches as in the whole batch."""
    with jax.enable_x64(True):
        config = cifar100.get_config("sigreg-smoke")
        config.model.encoder = "vit"
        config.vit.update(width=8, depth=2, heads=2, head="mean", stochastic_depth=0.7)
        size, images = config.data.image_size, config.data.batch_size
        rng = np.random.default_rng(0)
        batch = {
            "global_views": jnp.asarray(
                rng.integers(0, 256, (2, images, size, size, 3), dtype=np.uint8)
            )
        }
        setup, state = float64_setup(typed(config), total=4, per_epoch=2)

        def run(accumulation: int) -> Any:
            settings = setup.settings.replace({"train.accumulation": accumulation})
            one = dataclasses.replace(setup, settings=settings)
            step = jax.jit(functools.partial(loss_and_gradient, one))
            return step.lower(state, batch).compile(compiler_options=UNOPTIMIZED)

        whole, parts = run(1), run(4)
        first, again = whole(state, batch), parts(state, batch)
        assert_close(again.z, first.z, 1e-12)
        assert_close(again.gradient, first.gradient, 1e-10)
        for other in (state.replace(step=state.step + 1), state.replace(rng=state.rng + 1)):
            changed = np.abs(whole(other, batch).z - first.z).max(axis=-1)
            # The first block has none to skip, and half of the images skip the same as before.
            assert 0.2 < np.mean(changed > 1e-6) < 0.9
