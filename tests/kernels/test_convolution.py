"""Convolution: the grouped and the native form against XLA's, and when each is chosen."""

import functools
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import kernel_arrays
import numpy as np
import pytest

from hjepa_jax.kernels import build, convolution
from hjepa_jax.kernels.build import Kernels
from hjepa_jax.kernels.convolution import (
    conv2d,
    conv2d_grouped_gradient,
    conv2d_native,
    conv2d_plain,
)

# (kernel side, stride, padding) of every convolution of the encoder.
KINDS = [(3, 1, 1), (3, 2, 1), (1, 1, 0), (1, 2, 0), (7, 2, 3)]
grouped: Any = functools.partial(conv2d_grouped_gradient, group=2)


def draw(count, side, channels, features, size, dtype):
    random = np.random.default_rng(count + side)
    x = random.standard_normal((count, side, side, channels))
    kernel = random.standard_normal((size, size, channels, features))
    return jnp.asarray(x.astype(dtype)), jnp.asarray(kernel.astype(dtype))


def cotangent_of(out):
    """A cotangent that is different at every output."""
    return jnp.asarray(np.cos(np.arange(out.size)).reshape(out.shape).astype(out.dtype))


def grouped_and_plain(x, kernel, stride, padding):
    """Value and both gradients of the grouped and the plain form, in one compilation."""

    def run(x, kernel):
        results = []
        for function in (grouped, conv2d_plain):
            convolve = functools.partial(function, stride=stride, padding=padding)
            out, pullback = jax.vjp(lambda x, k, convolve=convolve: convolve(x, k), x, kernel)
            results.append((out, *pullback(cotangent_of(out))))
        return results

    return jax.jit(run)(x, kernel)


def assert_same(got, expected, tolerance):
    for name, a, b in zip(("value", "input gradient", "kernel gradient"), got, expected):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(), err_msg=name)


@pytest.mark.parametrize(
    ("kind", "side", "dtype", "tolerance"),
    [(kind, 5 + kind[1], "float64", 1e-12) for kind in KINDS] + [(KINDS[0], 8, "float32", 1e-5)],
)
def test_equal_to_plain(kind, side, dtype, tolerance):
    """Three groups, odd and even sides, every kernel, stride and padding."""
    size, stride, padding = kind
    with jax.enable_x64(dtype == "float64"):
        x, kernel = draw(6, side, 3, 4, size, jnp.dtype(dtype))
        got, expected = grouped_and_plain(x, kernel, stride, padding)
        assert_same(got, expected, tolerance)


def test_bfloat16_sums_in_float32():
    """The kernel gradient is that of the float32 convolution, rounded once."""
    x, kernel = draw(6, 6, 4, 4, 3, jnp.bfloat16)
    got, plain = grouped_and_plain(x, kernel, 1, 1)
    assert_same(got[:2], plain[:2], 1e-2)
    assert got[2].dtype == jnp.bfloat16
    wide = [a.astype(jnp.float32) for a in (x, kernel, cotangent_of(got[0]))]
    _, pullback = jax.vjp(lambda kernel: conv2d_plain(wide[0], kernel, 1, 1), wide[1])
    exact = np.asarray(pullback(wide[2])[0])
    # Half a unit in the last of 8 bits of each entry.
    np.testing.assert_allclose(np.asarray(got[2], np.float32), exact, rtol=2**-8, atol=1e-4)


def test_under_vmap():
    x, kernel = draw(6, 5, 3, 4, 3, jnp.float32)
    kernels = jnp.stack([kernel, -2 * kernel])

    def gradient(function, kernel):
        return jax.grad(lambda k: jnp.sum(jnp.sin(function(x, k, 1, 1))))(kernel)

    got = jax.vmap(functools.partial(gradient, grouped))(kernels)
    expected = jnp.stack([gradient(conv2d_plain, k) for k in kernels])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))


def is_grouped(x, kernel):
    loss = jax.grad(lambda k: jnp.sum(conv2d(x, k, 1, 1) ** 2))
    return "scan[" in str(jax.make_jaxpr(loss)(kernel))


@pytest.mark.skipif(jax.device_count() > 1, reason="grouping is for a single device")
def test_chosen_by_size_and_device(monkeypatch):
    """Without native kernels a single CPU groups large work; never small work, or on a mesh."""
    monkeypatch.setattr(build, "kernels", lambda: Kernels("", "none here"))
    x, kernel = draw(9, 8, 3, 4, 3, jnp.float32)
    assert not is_grouped(x, kernel)
    monkeypatch.setattr(convolution, "_MIN_GROUPED", 1)
    assert is_grouped(x, kernel)
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert not is_grouped(x, kernel)


def test_groups_divide_the_images_and_fit_the_cache(monkeypatch):
    monkeypatch.setattr(convolution, "_PATCH_BYTES", 1000)
    assert convolution._group_size(128, 100) == 8  # the largest divisor up to 10
    assert convolution._group_size(6, 100) == 6
    assert convolution._group_size(128, 5000) == 1
    assert convolution._group_size(7, 200) == 1
    x, kernel = draw(5, 4, 3, 4, 1, jnp.float32)
    with pytest.raises(TypeError, match="reshape"):
        jax.grad(lambda k: jnp.sum(grouped(x, k, 1, 0)))(kernel)


def test_forward_mode_is_refused():
    """The documented limit, in the words of JAX; the plain form has no such limit."""
    x, kernel = draw(5, 4, 3, 4, 1, jnp.float32)
    jax.jvp(lambda k: conv2d_plain(x, k, 1, 0), (kernel,), (kernel,))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda k: grouped(x, k, 1, 0), (kernel,), (kernel,))


ON_A_MESH = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from hjepa_jax.runtime import sharding
from hjepa_jax.kernels import convolution
assert jax.device_count() == 8
convolution._MIN_GROUPED = convolution._MIN_NATIVE = 1
x = jax.random.normal(jax.random.key(0), (40, 8, 8, 3))
kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
def gradient(function):
    return lambda x: jax.grad(lambda k: jnp.sum(jnp.sin(function(x, k, 1, 1))))(kernel)
split = jax.device_put(x, NamedSharding(sharding.data_mesh(), P("data")))
compiled = jax.jit(gradient(convolution.conv2d)).lower(split).compile()
assert "all-gather" not in compiled.as_text()
grouped = lambda *args: convolution.conv2d_grouped_gradient(*args, 4)
expected = gradient(convolution.conv2d_plain)(x)
for got in (compiled(split), jax.jit(gradient(grouped))(split)):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * float(abs(expected).max()))
"""


def test_on_a_mesh_of_eight():
    """On a mesh no images are gathered; the grouped form would be correct there too."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run(
        [sys.executable, "-c", ON_A_MESH], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# images, height, width, channels, features, kernel side, stride, padding
SHAPES = {
    "stem": (3, 8, 9, 3, 16, 3, 1, 1),
    "large stem": (2, 13, 12, 3, 8, 7, 2, 3),
    "block": (2, 16, 16, 64, 64, 3, 1, 1),
    "block of many images": (24, 16, 16, 16, 32, 3, 1, 1),
    "wide block": (3, 4, 4, 256, 144, 3, 1, 1),
    "odd block": (3, 9, 7, 32, 48, 3, 1, 1),
    "block of small tiles": (3, 6, 5, 32, 48, 3, 1, 1),
    "block without padding": (2, 7, 8, 16, 16, 3, 1, 0),
    "block with more padding": (2, 5, 6, 32, 16, 3, 1, 2),
    "block of one row": (2, 1, 5, 16, 16, 3, 1, 1),
    "downsampling": (3, 8, 8, 16, 32, 3, 2, 1),
    "odd downsampling": (2, 9, 7, 16, 24, 3, 2, 1),
    "shortcut": (4, 8, 8, 16, 32, 1, 2, 0),
    "odd channels and features": (2, 7, 8, 33, 65, 3, 1, 1),
    "many bands of an image": (1, 40, 40, 130, 5, 3, 1, 1),
    "no padding": (2, 6, 7, 4, 9, 2, 2, 0),
    "one pixel": (5, 1, 1, 20, 40, 1, 1, 0),
    "unused rows": (2, 8, 8, 17, 3, 3, 2, 0),
    "one image row": (40, 3, 20, 16, 16, 3, 1, 0),
}


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize("name", SHAPES)
def test_convolution_and_its_gradients_are_those_of_float64(name) -> None:
    images, height, width, channels, features, side, stride, padding = SHAPES[name]
    x = kernel_arrays.draw(1, images, height, width, channels)
    kernel = kernel_arrays.draw(2, side, side, channels, features)
    native = functools.partial(conv2d_native, stride=stride, padding=padding)
    plain = functools.partial(conv2d_plain, stride=stride, padding=padding)
    out, pullback = jax.vjp(native, jnp.asarray(x), jnp.asarray(kernel))
    bar = kernel_arrays.draw(3, *out.shape)
    got = (out, *pullback(jnp.asarray(bar)))
    with jax.enable_x64(True):
        wide = [jnp.asarray(array, jnp.float64) for array in (x, kernel, bar)]
        exact, pullback = jax.vjp(plain, *wide[:2])
        expected = (exact, *pullback(wide[2]))
    for part, a, b in zip(("value", "input gradient", "kernel gradient"), got, expected):
        assert (a.dtype, a.shape) == (jnp.float32, b.shape), part
        kernel_arrays.assert_close(a, b, 2e-6, part)


@pytest.mark.usefixtures("native_kernels")
def test_large_tiles_lose_no_more_than_rounding() -> None:
    """At the most channels that tiles of 4x4 outputs take: a few units in the last place."""
    x, bar = (kernel_arrays.draw(i, 2, 16, 16, 128) for i in (1, 3))
    kernel = kernel_arrays.draw(2, 3, 3, 128, 128)
    out, pullback = jax.vjp(functools.partial(conv2d_native, stride=1, padding=1), x, kernel)
    got = (out, *pullback(bar))
    with jax.enable_x64(True):
        wide = [jnp.asarray(array, jnp.float64) for array in (x, kernel, bar)]
        exact, pullback = jax.vjp(functools.partial(conv2d_plain, stride=1, padding=1), *wide[:2])
        expected = [np.asarray(array) for array in (exact, *pullback(wide[2]))]
    for a, b in zip(got, expected):
        assert b.dtype == np.float64
        error = np.asarray(a, np.float64) - b
        assert np.sqrt(np.mean(error**2) / np.mean(b**2)) < 1.5e-6
        assert np.abs(error).max() < 4e-6 * np.abs(b).max()
