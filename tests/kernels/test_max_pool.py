"""Max-pooling's gradient, written out, against loops and against XLA's own."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from jax.sharding import PartitionSpec
from kernel_arrays import draw

from hjepa_jax.kernels import max_pool
from hjepa_jax.kernels.max_pool import max_pool_3x3
from hjepa_jax.runtime import sharding

# Windows that end inside and outside, and a single one.
SIZES = [(6, 6), (7, 7), (6, 9), (1, 4), (2, 1)]


@functools.partial(jax.jit, static_argnums=0)
def gradient(form: Callable[[jax.Array], jax.Array], x: jax.Array, bar: jax.Array) -> jax.Array:
    return jax.vjp(form, x)[1](bar)[0]


# The two forms that platforms choose from.
FORMS = (
    (max_pool._with_places, max_pool._gathered),
    (max_pool._without_places, max_pool._scattered),
)


def arrays(height: int, width: int, ties: bool) -> tuple[npt.NDArray, npt.NDArray]:
    """Values and what comes back to the pooled ones; with ties, three values alone."""
    x = draw(1, 2, height, width, 3)
    bar = draw(2, 2, -(-height // 2), -(-width // 2), 3)
    return (np.sign(np.rint(x)) if ties else x), bar


@pytest.mark.parametrize("size", SIZES)
def test_the_gradient_goes_to_the_first_maximum(size) -> None:
    x, bar = arrays(*size, ties=True)
    bar = np.rint(4 * bar)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    expected, pooled = np.zeros_like(padded), np.zeros_like(bar)
    for n, i, j, c in np.ndindex(bar.shape):
        window = padded[n, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3, c]
        pooled[n, i, j, c] = window.max()
        # NumPy's first maximum in row-major order.
        row, column = divmod(int(window.argmax()), window.shape[1])
        expected[n, 2 * i + row, 2 * j + column, c] += bar[n, i, j, c]
    x, bar = jnp.asarray(x), jnp.asarray(bar)
    np.testing.assert_array_equal(jax.jit(max_pool._forward)(x)[0], pooled)
    np.testing.assert_array_equal(gradient(max_pool_3x3, x, bar), expected[:, 1:-1, 1:-1])


@pytest.mark.parametrize(("ties", "dtype"), [(False, np.float64), (True, np.float32)])
@pytest.mark.parametrize("size", SIZES[1:4])
def test_value_and_gradient_are_those_of_xla(size, ties, dtype) -> None:
    """To the last bit, and so is the form that TPUs get."""
    with jax.enable_x64(True):
        x, bar = (jnp.asarray(a, dtype) for a in arrays(*size, ties))
        y, to_x = max_pool._plain(x), gradient(max_pool._plain, x, bar)
        np.testing.assert_array_equal(max_pool_3x3(x), y)
        np.testing.assert_array_equal(gradient(max_pool_3x3, x, bar), to_x)
        for forward, backward in FORMS:
            found, place = jax.jit(forward)(x)
            back = jax.jit(backward)(x, place, bar)
            assert (found.dtype, back.dtype) == (dtype, dtype)
            np.testing.assert_array_equal(found, y)
            np.testing.assert_array_equal(back, to_x)


@pytest.mark.parametrize(("forward", "backward"), FORMS)
def test_bfloat16_is_rounded_once(forward, backward) -> None:
    """Up to four windows send to one value: XLA's form rounds each of these sums."""
    x, bar = (jnp.asarray(a, jnp.bfloat16) for a in arrays(9, 9, ties=False))
    wide = gradient(max_pool._plain, *(a.astype(np.float32) for a in (x, bar)))
    y, place = jax.jit(forward)(x)
    got = jax.jit(backward)(x, place, bar)
    assert (y.dtype, got.dtype) == (jnp.bfloat16, jnp.bfloat16)
    np.testing.assert_array_equal(y, max_pool._plain(x))
    np.testing.assert_array_equal(got, wide.astype(jnp.bfloat16))
    assert (got != gradient(max_pool._plain, x, bar)).any()


def test_a_gradient_of_the_gradient_is_that_of_xla() -> None:
    x = jnp.asarray(draw(1, 2, 5, 6, 3))

    def steepness(form: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        return jnp.sum(jax.grad(lambda a: jnp.sum(jnp.sin(form(a))))(x) ** 3)

    found, expected = (
        jax.jit(jax.grad(functools.partial(steepness, form)))(x)
        for form in (max_pool_3x3, max_pool._plain)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_mapped_and_in_shares() -> None:
    """Inside `jax.shard_map` of one device; tests/support/kernels_in_shares.py has two."""
    x, bar = (jnp.asarray(a) for a in arrays(6, 7, ties=True))
    expected = gradient(max_pool._plain, x, bar)
    form = functools.partial(gradient, max_pool_3x3)
    mapped = jax.jit(jax.vmap(form))(x[:, None], bar[:, None])
    np.testing.assert_array_equal(mapped[:, 0], expected)
    split = PartitionSpec(sharding.DATA_AXIS)
    mesh = sharding.data_mesh(jax.devices()[:1])
    shared = jax.shard_map(form, mesh=mesh, in_specs=(split, split), out_specs=split)
    np.testing.assert_array_equal(jax.jit(shared)(x, bar), expected)


def test_xlas_gradient_is_for_tpus_alone() -> None:
    x, bar = (jax.ShapeDtypeStruct((2, side, side, 3), np.float32) for side in (6, 3))
    function = jax.jit(functools.partial(gradient, max_pool_3x3))
    texts = {
        platform: jax.export.export(function, platforms=[platform])(x, bar).mlir_module()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert {name: "select_and_scatter" in text for name, text in texts.items()} == {
        "cpu": False,
        "cuda": False,
        "tpu": True,
    }
