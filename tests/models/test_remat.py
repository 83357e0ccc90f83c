"""Recomputed blocks: the same gradients and statistics from less memory."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resnets import resnet

from hjepa_jax.models.resnet import ResNet
from hjepa_jax.runtime.devices import UNOPTIMIZED, with_dependency


def compiled_gradient(model: ResNet, variables: Any, x: jax.Array) -> Any:
    @jax.jit
    def gradient(variables: Any, x: jax.Array) -> Any:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            z, updates = model.apply(
                variables | {"params": params}, x, train=True, mutable=["batch_stats"]
            )
            return jnp.mean(jnp.sin(z)), updates

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    return gradient.lower(variables, x).compile(compiler_options=UNOPTIMIZED)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_gradients_and_statistics_are_equal_and_memory_is_smaller(block) -> None:
    with jax.enable_x64(True):
        model = resnet(width=4, token_dim=4, token_layer="layer2", dtype=jnp.float64, block=block)
        shapes = jax.eval_shape(
            functools.partial(model.init, train=False),
            jax.random.key(0),
            jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float64),
        )
        rng = np.random.default_rng(0)
        variables = jax.tree.map(lambda leaf: 0.5 + 0.3 * rng.normal(size=leaf.shape), shapes)
        x = rng.normal(size=(32, 16, 16, 3))
        plain, again = (
            compiled_gradient(
                model.clone(settings=dataclasses.replace(model.settings, remat=remat)), variables, x
            )
            for remat in ("none", "blocks")
        )
        expected, got = plain(variables, x), again(variables, x)
        largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected[1]))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * largest)
        memory = [c.memory_analysis().temp_size_in_bytes for c in (again, plain)]
        assert memory[0] < 0.6 * memory[1], memory
        # What is computed again is counted: forward once more in three.
        flops = [c.cost_analysis()["flops"] for c in (again, plain)]
        assert 1.2 < flops[0] / flops[1] < 1.4, flops


def test_initialization_is_the_same() -> None:
    trees = [
        jax.eval_shape(
            functools.partial(resnet(width=4, remat=remat).init, train=True),
            jax.random.key(0),
            jnp.zeros((2, 8, 8, 3)),
        )
        for remat in ("none", "blocks")
    ]
    assert trees[0] == trees[1]


def test_unknown_remat_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown remat 'all'.*blocks"):
        jax.eval_shape(
            lambda x: resnet(remat="all").init(jax.random.key(0), x, train=False),
            jnp.zeros((2, 8, 8, 3)),
        )


@pytest.mark.parametrize("value", [0.0, -1.5, np.inf, np.nan, 3e38])
def test_waiting_changes_no_bit(value) -> None:
    values = {"image": jnp.arange(4, dtype=jnp.uint8), "x": jnp.asarray([-0.0, np.nan, 1e-40])}
    got = jax.jit(with_dependency)(values, {"a": jnp.full((2, 3), value), "b": jnp.asarray(1)})
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(values), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
