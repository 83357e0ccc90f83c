"""Run by test_kernel_choice.py in a process with two devices: native kernels in `jax.shard_map`."""

import functools
import itertools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from kernel_arrays import EPSILON, draw, numpy_batch_norm

from hjepa_jax.kernels import (
    batch_norm,
    build,
    characteristic_function,
    convolution,
    max_pool,
    top_k,
)
from hjepa_jax.objectives.characteristic_function import characteristic_function as waves
from hjepa_jax.runtime import sharding
from hjepa_jax.tools.plan.program_text import count_program

SPLIT, WHOLE = PartitionSpec("data"), PartitionSpec()
CALL = 'custom_call_target="hjepa_'


def set_thresholds(native: float, grouped: float) -> None:
    convolution._MIN_NATIVE, convolution._MIN_GROUPED = native, grouped
    for module in (batch_norm, characteristic_function, top_k):
        module._MIN_VALUES = native


def block(x: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """A loss of a residual block and its moments, and of a characteristic function."""
    y = convolution.conv2d(x, kernel, 1, 1)
    y, means, variances = batch_norm.normalize_batch(y, scale, bias, x, relu=True)
    rows = y.reshape(-1, y.shape[-1])
    cosines, sines = waves(rows, 0.3, 0.3, 4, characteristic_function.characteristic_means)
    own = jnp.sum(jnp.sin(y)) + jnp.sum(cosines * sines) + jnp.sum(means * variances)
    return jax.lax.psum(own, "data")


def convolved(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.psum(jnp.sum(jnp.sin(convolution.conv2d(x, kernel, 1, 1))), "data")


def pooled(form: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    return jax.lax.psum(jnp.sum(jnp.sin(form(x))), "data")


def check_normalization_of_all_shares(relu: bool, added: bool) -> None:
    """Kernels on each share and statistics of all are the normalization of the whole batch.

    The shares' means are ten standard deviations apart.
    """
    x = draw(1, 6, 8, 8, 16) + np.repeat([0, 10], 3).reshape(-1, 1, 1, 1).astype(np.float32)
    scale, bias, bar = draw(2, 16), draw(3, 16), draw(4, *x.shape)
    residual = draw(5, *x.shape) if added else None
    given = [x, scale, bias, *([residual] if added else [])]
    where = [SPLIT, WHOLE, WHOLE, *[SPLIT] * added]

    def both(bar: jax.Array, shift: jax.Array, *arrays: jax.Array) -> Any:
        def normalized(*arrays: jax.Array) -> Any:
            y, *moments = batch_norm.normalize_batch(
                *arrays, relu=relu, epsilon=EPSILON, axis_name="data", shift=shift
            )
            return y, moments

        y, pull_back, moments = jax.vjp(normalized, *arrays, has_aux=True)
        return (y, *moments), pull_back(bar)

    specs = {"in_specs": (SPLIT, WHOLE, *where), "out_specs": ((SPLIT, WHOLE, WHOLE), tuple(where))}
    text, (values, gradients) = compiled(both, (bar, np.full(16, 4, np.float32), *given), **specs)
    assert text.count(CALL) == 4
    assert count_program(text).collectives.total() == 2
    expected, to_arrays = numpy_batch_norm(x, scale, bias, residual, bar, relu)
    assert_close([np.squeeze(a) for a in values], [np.squeeze(a) for a in expected])
    assert_close(gradients, to_arrays)


def neighbors(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows = x.reshape(x.shape[0], -1)
    best = jnp.full((len(rows), 3), -jnp.inf), jnp.full((len(rows), 3), -1, jnp.int32)
    return top_k.merge_top_k(best, rows, jnp.arange(rows.shape[1], dtype=jnp.int32))


def loss_and_gradients(loss: Callable[..., jax.Array], arrays: list[jax.Array]) -> tuple[str, Any]:
    """Compiles and runs it with the first array split, the others whole."""
    where = (SPLIT, *[WHOLE] * (len(arrays) - 1))
    gradient = jax.value_and_grad(loss, tuple(range(len(arrays))))
    return compiled(gradient, arrays, in_specs=where, out_specs=(WHOLE, where))


def compiled(function: Callable[..., Any], arrays: Any, **specs: Any) -> tuple[str, Any]:
    shared = jax.shard_map(function, mesh=sharding.data_mesh(), **specs)
    program = jax.jit(shared).lower(*arrays).compile()
    return program.as_text(), program(*arrays)


def assert_close(got: Any, expected: Any) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


def main() -> None:
    assert jax.device_count() == 2
    assert build.kernels(), build.kernels().description
    random = np.random.default_rng(0)
    shapes = (6, 8, 8, 16), (3, 3, 16, 16), (16,), (16,)
    arrays = [jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes]
    programs = (
        (8, lambda: loss_and_gradients(block, arrays)),
        (1, lambda: compiled(neighbors, arrays[:1], in_specs=SPLIT, out_specs=SPLIT)),
    )
    for calls, program in programs:
        set_thresholds(np.inf, np.inf)
        text, expected = program()
        assert CALL not in text
        set_thresholds(1, np.inf)
        text, got = program()
        assert text.count(CALL) == calls
        assert "conditional" not in text
        assert_close(got, expected)
    for relu, added in itertools.product((False, True), repeat=2):
        check_normalization_of_all_shares(relu, added)
    # Outside, where an array has shares on both devices, XLA's form is used.
    split = jax.device_put(arrays[0], jax.NamedSharding(sharding.data_mesh(), SPLIT))
    assert CALL not in jax.jit(neighbors).lower(split).compile().as_text()

    forms = (max_pool._plain, max_pool.max_pool_3x3)
    assert_close(*(loss_and_gradients(functools.partial(pooled, f), arrays[:1])[1] for f in forms))

    set_thresholds(np.inf, np.inf)
    text, expected = loss_and_gradients(convolved, arrays[:2])
    assert " while(" not in text
    set_thresholds(np.inf, 1)
    convolution._PATCH_BYTES = 1
    text, got = loss_and_gradients(convolved, arrays[:2])
    assert " while(" in text  # over each image of a device
    assert_close(got, expected)
    print("the shares agree")


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.exit(main())
