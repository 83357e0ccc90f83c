"""Layer normalization with the sum of a branch: both forms against float64, and when it serves."""

import functools

import jax
import jax.numpy as jnp
import kernel_arrays
import numpy as np
import pytest

from hjepa_jax.kernels import layer_norm
from hjepa_jax.kernels.layer_norm import add_layer_norm, add_layer_norm_native

EPSILON = 1e-3


def reference(x, branch, scale, bias, bar_stream, bar):
    """Values and gradients in NumPy's float64, from the Jacobian of a row."""
    wide = [np.asarray(array, np.float64) for array in (x, branch, scale, bias, bar_stream, bar)]
    x, branch, scale, bias, bar_stream, bar = wide
    stream = x + branch
    channels = stream.shape[-1]
    rows = stream.reshape(-1, channels)
    to_stream, to_scale = np.zeros_like(rows), np.zeros(channels)
    y = np.zeros_like(rows)
    for i, row in enumerate(rows):
        centered = row - row.mean()
        deviation = np.sqrt(centered @ centered / channels + EPSILON)
        normal = centered / deviation
        y[i] = normal * scale + bias
        center = np.eye(channels) - 1 / channels
        jacobian = center / deviation - np.outer(normal, normal) / channels / deviation
        given = bar.reshape(-1, channels)[i]
        to_stream[i] = jacobian @ (given * scale)
        to_scale += given * normal
    to_stream = to_stream.reshape(x.shape) + bar_stream
    to_bias = bar.reshape(-1, channels).sum(0)
    return (stream, y.reshape(x.shape)), (to_stream, to_stream, to_scale, to_bias)


SHAPES = [(3, 5, 48), (1, 1, 1), (70, 37), (2, 65, 6, 16), (129, 100)]


@pytest.mark.parametrize("form", ["native", "plain"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("native_kernels")
def test_value_and_gradients_are_those_of_float64(form, shape) -> None:
    x, branch, bar_stream, bar = (kernel_arrays.draw(i, *shape) for i in range(4))
    x = x + np.float32(3)
    scale, bias = (kernel_arrays.draw(i, shape[-1]) for i in (4, 5))
    function = add_layer_norm_native if form == "native" else add_layer_norm
    out, pullback = jax.vjp(
        functools.partial(function, epsilon=EPSILON), *map(jnp.asarray, (x, branch, scale, bias))
    )
    got = pullback((jnp.asarray(bar_stream), jnp.asarray(bar)))
    values, gradients = reference(x, branch, scale, bias, bar_stream, bar)
    for a, b in zip((*out, *got), (*values, *gradients), strict=True):
        assert a.shape == b.shape
        kernel_arrays.assert_close(a, b, 1e-5, form)


@pytest.mark.usefixtures("native_kernels")
def test_without_a_branch_x_goes_on() -> None:
    x, bar_stream, bar = (jnp.asarray(kernel_arrays.draw(i, 9, 33)) for i in range(3))
    scale, bias = (jnp.asarray(kernel_arrays.draw(i, 33)) for i in (4, 5))
    (stream, _), pullback = jax.vjp(
        lambda x, s, b: add_layer_norm_native(x, None, s, b, EPSILON), x, scale, bias
    )
    np.testing.assert_array_equal(stream, x)
    _, expected = reference(x, 0 * x, scale, bias, bar_stream, bar)
    for a, b in zip(pullback((bar_stream, bar)), (expected[0], *expected[2:]), strict=True):
        kernel_arrays.assert_close(a, b, 1e-5, "")


def test_bfloat16_is_normalized_in_float32() -> None:
    x = jnp.asarray(100 + kernel_arrays.draw(1, 6, 256), jnp.bfloat16)
    stream, y = add_layer_norm(x, None, jnp.ones(256), jnp.zeros(256), 0.0)
    assert (stream.dtype, y.dtype) == (jnp.bfloat16, jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    exact = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=2**-8, atol=1e-3)


@pytest.mark.usefixtures("native_kernels")
def test_chosen_for_large_float32(monkeypatch) -> None:
    def chosen(dtype=jnp.float32):
        x, ones = jnp.zeros((4, 32), dtype), jnp.ones(32)
        return "hjepa_layer_norm" in str(
            jax.make_jaxpr(lambda x: add_layer_norm(x, x, ones, ones, EPSILON))(x)
        )

    assert not chosen()
    monkeypatch.setattr(layer_norm, "_MIN_VALUES", 1)
    assert chosen()
    assert not chosen(jnp.bfloat16)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert not chosen()
