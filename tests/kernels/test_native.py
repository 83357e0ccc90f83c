"""The native CPU kernels: against float64, to the bit on any number of threads, or told away."""

import functools
import hashlib
import logging
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hjepa_jax.evaluation import knn
from hjepa_jax.kernels import batch_norm, build, characteristic_function, convolution, top_k
from hjepa_jax.kernels.batch_norm import batch_norm_native, normalize_batch
from hjepa_jax.kernels.characteristic_function import characteristic_means, means_native
from hjepa_jax.kernels.convolution import conv2d, conv2d_native, conv2d_plain
from hjepa_jax.kernels.top_k import merge_top_k_native
from hjepa_jax.models.resnet import ResNet
from hjepa_jax.objectives.sigreg import SIGRegSettings, random_slices, sigreg

EPSILON = 1e-5


@pytest.fixture(autouse=True)
def lone_cpu_with_a_compiler() -> None:
    """Not at import, where every worker would compile. A compiler that fails is a failure."""
    if jax.device_count() > 1:
        pytest.skip("the kernels are for a lone CPU device")
    if not build.kernels():
        assert " fails: " not in build.kernels().description
        pytest.skip(build.kernels().description)


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_close(got, expected, tolerance, name=""):
    expected = np.asarray(expected, np.float64)
    limit = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=limit, err_msg=name)


# images, height, width, channels, features, kernel side, stride, padding
SHAPES = {
    "stem": (3, 8, 9, 3, 16, 3, 1, 1),
    "large stem": (2, 13, 12, 3, 8, 7, 2, 3),
    "block": (2, 16, 16, 64, 64, 3, 1, 1),
    "block of many images": (24, 16, 16, 16, 32, 3, 1, 1),
    "wide block": (3, 4, 4, 256, 144, 3, 1, 1),
    "odd block": (3, 9, 7, 32, 48, 3, 1, 1),
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


@pytest.mark.parametrize("name", SHAPES)
def test_convolution_and_its_gradients_are_those_of_float64(name) -> None:
    images, height, width, channels, features, side, stride, padding = SHAPES[name]
    x = draw(1, images, height, width, channels)
    kernel = draw(2, side, side, channels, features)
    native = functools.partial(conv2d_native, stride=stride, padding=padding)
    plain = functools.partial(conv2d_plain, stride=stride, padding=padding)
    out, pullback = jax.vjp(native, jnp.asarray(x), jnp.asarray(kernel))
    bar = draw(3, *out.shape)
    got = (out, *pullback(jnp.asarray(bar)))
    with jax.enable_x64(True):
        wide = [jnp.asarray(array, jnp.float64) for array in (x, kernel, bar)]
        exact, pullback = jax.vjp(plain, *wide[:2])
        expected = (exact, *pullback(wide[2]))
    for part, a, b in zip(("value", "input gradient", "kernel gradient"), got, expected):
        assert (a.dtype, a.shape) == (jnp.float32, b.shape), part
        assert_close(a, b, 2e-6, part)


def numpy_batch_norm(x, scale, bias, residual, bar, relu):
    """Value, moments and gradients in float64, as Ioffe and Szegedy write it (1502.03167)."""
    x, scale, bias, bar = (np.asarray(a, np.float64) for a in (x, scale, bias, bar))
    axes = tuple(range(x.ndim - 1))
    count = x.size / x.shape[-1]
    mean, var = x.mean(axes), x.var(axes)
    normal = (x - mean) / np.sqrt(var + EPSILON)
    y = normal * scale + bias + (0 if residual is None else residual)
    if relu:
        bar = np.where(y > 0, bar, 0)
        y = np.maximum(y, 0)
    to_bias, to_scale = bar.sum(axes), (bar * normal).sum(axes)
    inner = bar - to_bias / count - normal * to_scale / count
    gradients = [scale / np.sqrt(var + EPSILON) * inner, to_scale, to_bias]
    return (y, mean, var), gradients if residual is None else [*gradients, bar]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("shape", [(4, 5, 5, 3), (7, 3, 3, 70), (513, 33), (9, 32, 32, 16)])
def test_batch_norm_and_its_gradients_are_those_of_float64(shape, added, relu) -> None:
    """A mean of ten standard deviations, channels that fill no vector, several chunks."""
    x = draw(1, *shape) + 10
    scale, bias, bar = draw(2, shape[-1]), draw(3, shape[-1]), draw(4, *shape)
    residual = draw(5, *shape) if added else None
    arguments = [jnp.asarray(a) for a in (x, scale, bias, residual) if a is not None]

    def native(x, scale, bias, residual=None):
        y, *moments = batch_norm_native(x, scale, bias, residual, relu, EPSILON)
        return y, moments

    y, pullback, moments = jax.vjp(native, *arguments, has_aux=True)
    values, gradients = numpy_batch_norm(x, scale, bias, residual, bar, relu)
    for got, expected in zip((y, *moments), values):
        assert_close(got, expected, 1e-5)
    # Where the rectifier's input is zero but for rounding, either side is right.
    doubtful = (values[0] == 0) != (np.asarray(y) == 0)
    assert doubtful.sum() <= 2
    got = pullback(jnp.asarray(bar * ~doubtful))
    _, gradients = numpy_batch_norm(x, scale, bias, residual, bar * ~doubtful, relu)
    for a, b in zip(got, gradients, strict=True):
        assert_close(a, b, 2e-5)


def test_moments_are_outside_the_gradient() -> None:
    x, ones = jnp.asarray(draw(1, 6, 4)), jnp.ones(4)

    def moments(x):
        return sum(jnp.sum(m) for m in batch_norm_native(x, ones, ones, None, False, EPSILON)[1:])

    def plain(x):
        return sum(jnp.sum(m) for m in normalize_batch(x, ones, ones)[1:])

    assert not jnp.any(jax.grad(moments)(x))
    assert not jnp.any(jax.grad(plain)(x))


def merge_in_blocks(rows, k, width, native):
    """The k largest of rows and their columns, merged block by block by either form."""
    count = rows.shape[1]
    padded = np.pad(rows, ((0, 0), (0, -count % width)), constant_values=7e30)
    columns = np.arange(padded.shape[1], dtype=np.int32)
    columns[count:] = -1
    best = (
        jnp.full((len(rows), k), -jnp.inf, jnp.float32),
        jnp.full((len(rows), k), -1, jnp.int32),
    )
    merge = merge_top_k_native if native else top_k.merge_top_k
    for start in range(0, padded.shape[1], width):
        part = slice(start, start + width)
        best = merge(best, jnp.asarray(padded[:, part]), jnp.asarray(columns[part]))
    return best


@pytest.mark.parametrize(
    ("columns", "k", "width"),
    [(5000, 20, 5000), (5000, 1, 700), (300, 300, 128), (4096, 1500, 4096), (4096, 50, 512)],
)
def test_largest_values_are_those_of_lax(columns, k, width) -> None:
    """Many ties, infinities, both orders of rows; more candidates than are collected at once."""
    rows = draw(1, 6, columns)
    rows[1] = np.round(rows[1])
    rows[2] = np.sort(rows[2])
    rows[3] = -np.sort(-rows[3])
    rows[4, ::2] = -3e38
    rows[5] = -np.finfo(np.float32).max
    rows[5, 3::11] = np.inf
    expected = jax.lax.top_k(rows, k)
    for native in (True, False):
        for a, b in zip(merge_in_blocks(rows, k, width, native), expected, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def test_places_without_neighbours_stay_empty() -> None:
    """-inf is no neighbour, wherever it stands; by both forms."""
    rows = draw(1, 3, 40)
    rows[1, 3:] = -np.inf
    rows[2] = -np.inf
    for native in (True, False):
        values, columns = merge_in_blocks(rows, 5, 16, native)
        np.testing.assert_array_equal(columns[1, 3:], -1)
        np.testing.assert_array_equal(columns[2], -1)
        np.testing.assert_array_equal(np.sort(columns[1, :3]), [0, 1, 2])
        assert np.isneginf(values[2]).all()
        assert (columns[0] >= 0).all()


def test_not_a_number_is_the_largest() -> None:
    rows = draw(1, 2, 3000)
    rows[0, 1234] = np.nan
    values, columns = merge_in_blocks(rows, 3, 1000, native=True)
    assert np.isnan(values[0, 0])
    assert columns[0, 0] == 1234
    assert not np.isnan(values[0, 1:]).any()
    np.testing.assert_array_equal(values[1], -np.sort(-rows[1])[:3])


def test_neighbours_are_those_of_lax(monkeypatch) -> None:
    """The search itself, over blocks with padding, by both."""
    train, test = draw(1, 700, 16), draw(2, 90, 16)
    train[300] = train[20]
    found = []
    for least in (top_k._MIN_VALUES, 1):
        monkeypatch.setattr(top_k, "_MIN_VALUES", least)
        knn._best_neighbours.clear_cache()
        blocks = knn._prepare_train(train, block=128)
        traced = str(jax.make_jaxpr(functools.partial(knn._best_neighbours, k=3))(test, *blocks))
        assert ("hjepa_merge_top_k" in traced) == (least == 1)
        found.append(knn.nearest_neighbours(train, test, 9, block=128, test_block=40))
    knn._best_neighbours.clear_cache()
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_means_of_float64(y, start, step, count, tolerance) -> None:
    """Compares the native means with NumPy's in float64."""
    means = jax.jit(lambda y: means_native(y, start, step, count))(y)
    angle = (start + step * np.arange(count)).reshape(-1, *[1] * y.ndim) * y.astype(np.float64)
    for got, function in zip(means, (np.cos, np.sin), strict=True):
        np.testing.assert_allclose(got, function(angle).mean(-2), rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", [(1, 1), (7, 16), (130, 19), (2, 64, 5), (2, 3, 33, 40)])
@pytest.mark.parametrize("start", [0.2, -1.5, 0.0])
def test_characteristic_function_is_that_of_float64(shape, start) -> None:
    """Rows that fill no run, columns that fill no vector, views; the start of its own too."""
    assert_means_of_float64(3 * draw(1, *shape), start, 0.2, 9, 2e-6)


def test_angles_in_every_quadrant_and_beyond_the_reduction() -> None:
    """Multiples of pi/2 and their neighbours, up to angles that are computed one by one."""
    y = np.linspace(-2000, 2000, 64001, dtype=np.float32).reshape(1, -1)
    assert_means_of_float64(y, 1.0, 1.0, 1, 2e-7)
    quarters = np.arange(-600, 600, dtype=np.float32).reshape(1, -1) * np.float32(np.pi / 2)
    assert_means_of_float64(quarters, 1.0, 1.0, 1, 2e-7)
    large = np.float32(10.0) ** np.arange(3, 30, dtype=np.float32)
    assert_means_of_float64(np.stack([large, -large / 3], 1), 1.0, 1.0, 1, 2e-7)


def test_what_is_no_number_spoils_its_column_alone() -> None:
    y = draw(1, 50, 40)
    y[3, 5], y[49, 20] = np.nan, np.inf
    for means in means_native(jnp.asarray(y), 0.3, 0.3, 4):
        spoilt = np.flatnonzero(np.isnan(means).any(0))
        assert spoilt.tolist() == [5, 20]


def test_rounding_of_means_does_not_grow_with_the_rows() -> None:
    assert_means_of_float64(draw(1, 200_000, 16), 0.3, 0.3, 10, 2e-7)


@pytest.mark.parametrize("statistics", ["per_view", "flattened"])
def test_sigreg_and_its_gradient_are_the_plain_ones(statistics, monkeypatch) -> None:
    settings = SIGRegSettings(num_slices=24, statistics=statistics)
    z, slices = jnp.asarray(draw(1, 2, 60, 12)), random_slices(jax.random.key(0), 12, 24)

    def both(**options):
        function = jax.value_and_grad(lambda z: sigreg(z, slices, settings, **options))
        lowered = jax.jit(function).lower(z)
        return "hjepa_characteristic" in lowered.as_text(), lowered.compile()(z)

    monkeypatch.setattr(characteristic_function, "_MIN_VALUES", 1)
    (plain_is_native, plain), (is_native, fast) = both(), both(means=characteristic_means)
    assert is_native
    assert not plain_is_native
    np.testing.assert_allclose(fast[0], plain[0], rtol=1e-5)
    np.testing.assert_allclose(fast[1], plain[1], rtol=1e-4, atol=1e-6)
    assert np.abs(plain[1]).max() > 1e-4


def test_chosen_for_large_float32_work_on_a_lone_device(monkeypatch) -> None:
    x, kernel = jnp.zeros((2, 8, 8, 16)), jnp.zeros((3, 3, 16, 16))
    channel = jnp.ones(16)

    def chosen(dtype=jnp.float32, stride=1):
        operands = x.astype(dtype), kernel.astype(dtype)
        convolved = str(jax.make_jaxpr(lambda *a: conv2d(*a, stride, 1))(*operands))
        normalised = str(
            jax.make_jaxpr(lambda *a: normalize_batch(*a))(x.astype(dtype), channel, channel)
        )
        means = str(
            jax.make_jaxpr(lambda y: characteristic_means(y, 0.1, 0.1, 3))(jnp.ones((4, 5), dtype))
        )
        return (
            "hjepa_convolution" in convolved,
            "hjepa_batch_norm" in normalised,
            "hjepa_characteristic_function" in means,
        )

    assert chosen() == (False, False, False)
    monkeypatch.setattr(convolution, "_MIN_NATIVE", 1)
    monkeypatch.setattr(batch_norm, "_MIN_VALUES", 1)
    monkeypatch.setattr(characteristic_function, "_MIN_VALUES", 1)
    assert chosen() == (True, True, True)
    assert chosen(jnp.bfloat16) == (False, False, False)
    assert chosen(stride=3) == (False, True, True)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert chosen() == (False, False, False)


@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_an_encoder_has_the_gradients_and_statistics_of_xla(remat, monkeypatch) -> None:
    """Stem, blocks, downsampling and normalisation together, recomputed blocks included."""
    model = ResNet(width=16, token_dim=4, stage_blocks=(1, 1, 1, 1), remat=remat)
    x = jnp.asarray(draw(1, 8, 16, 16, 3))
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), x)

    def gradient():
        def loss(params):
            given = variables | {"params": params}
            z, updates = model.apply(given, x, train=True, mutable=["batch_stats"])
            return jnp.mean(jnp.sin(z)), updates

        compiled = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(variables["params"])
        return compiled.as_text(), compiled.compile()(variables["params"])

    text, expected = gradient()
    assert "hjepa_" not in text
    monkeypatch.setattr(convolution, "_MIN_NATIVE", 1)
    monkeypatch.setattr(batch_norm, "_MIN_VALUES", 1)
    text, got = gradient()
    for name in ("convolution", "convolution_input_gradient", "batch_norm_gradient"):
        assert f"hjepa_{name}_" in text
    for parts in zip(got, expected, strict=True):
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(parts[1]))
        for a, b in zip(*map(jax.tree.leaves, parts), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * largest)


DIGEST = """
import hashlib
import jax, jax.numpy as jnp
from hjepa_jax.kernels.batch_norm import batch_norm_native
from hjepa_jax.kernels.characteristic_function import means_native
from hjepa_jax.kernels.convolution import conv2d_native
keys = jax.random.split(jax.random.key(0), 3)
x = jax.random.normal(keys[0], (40, 16, 16, 32))
kernel = jax.random.normal(keys[1], (3, 3, 32, 96))
last = jax.random.normal(keys[2], (3, 3, 96, 72))
scale = jnp.linspace(0.5, 2, 32)
def chain(x, kernel, last, scale):
    y = batch_norm_native(x, scale, scale, x, True, 1e-5)[0]
    return conv2d_native(conv2d_native(y, kernel, 1, 1), last, 2, 1)
out, pullback = jax.vjp(chain, x, kernel, last, scale)
means = means_native(out.reshape(2, -1, 72), 0.3, 0.3, 8)
arrays = jax.device_get((out, *pullback(out), *means))
digest = hashlib.sha256(b"".join(a.tobytes() for a in arrays))
print(digest.hexdigest())
"""


def test_the_same_to_the_bit_on_any_number_of_threads() -> None:
    """One thread, two, and more than a kernel's gradient has parts."""
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "NPROC": threads},
        ).stdout
        for threads in ("1", "2", "16")
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == hashlib.sha256().digest_size * 2


@pytest.fixture
def anew():
    """Calls of `kernels` that look again; the process's own kernels stay registered."""
    build.kernels.cache_clear()
    yield build.kernels
    build.kernels.cache_clear()


def test_switched_off_is_no_warning(anew, monkeypatch, caplog) -> None:
    monkeypatch.setenv("HJEPA_JAX_NATIVE", "off")
    assert not anew()
    assert anew().description == "switched off by HJEPA_JAX_NATIVE"
    assert not caplog.records


def test_without_a_compiler_a_warning_says_what_to_do(anew, monkeypatch, caplog) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    for _ in range(2):
        assert not anew()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "no C++ compiler (no-such-compiler) is on the PATH" in record.getMessage()
    assert "HJEPA_JAX_NATIVE=off" in record.getMessage()


def test_a_compiler_that_fails_leaves_nothing_behind(anew, monkeypatch, tmp_path, caplog) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "error: no" >&2; exit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not anew()
    assert f"{compiler} fails: error: no" in caplog.records[-1].getMessage()
    assert list((tmp_path / "hjepa_jax/native").iterdir()) == []


def test_a_damaged_library_is_told(anew, monkeypatch, tmp_path, caplog) -> None:
    library = tmp_path / "library.so"
    library.write_bytes(b"no library")
    monkeypatch.setattr(build, "_library", lambda: (library, "_suffix", "compiler"))
    assert not anew()
    assert str(library) in caplog.records[-1].getMessage()
