"""When the native kernels are used, the encoder with them, and any number of threads."""

import functools
import hashlib
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_arrays import draw
from resnets import resnet

from hjepa_jax.kernels import batch_norm, build, characteristic_function, convolution
from hjepa_jax.kernels.batch_norm import normalize_batch
from hjepa_jax.kernels.characteristic_function import characteristic_means
from hjepa_jax.kernels.convolution import conv2d

pytestmark = pytest.mark.usefixtures("native_kernels")
ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_chosen_for_large_work_on_a_single_device(monkeypatch) -> None:
    x, kernel = jnp.zeros((2, 8, 8, 16)), jnp.zeros((3, 3, 16, 16))
    channel = jnp.ones(16)

    def chosen(dtype=jnp.float32, stride=1):
        operands = x.astype(dtype), kernel.astype(dtype)
        convolved = str(jax.make_jaxpr(lambda *a: conv2d(*a, stride, 1))(*operands))
        normalized = str(
            jax.make_jaxpr(lambda *a: normalize_batch(*a))(x.astype(dtype), channel, channel)
        )
        means = str(
            jax.make_jaxpr(lambda y: characteristic_means(y, 0.1, 0.1, 3))(jnp.ones((4, 5), dtype))
        )
        return (
            "hjepa_convolution" in convolved,
            "hjepa_batch_norm" in normalized,
            "hjepa_characteristic_function" in means,
        )

    assert chosen() == (False, False, False)
    monkeypatch.setattr(convolution, "_MIN_NATIVE", 1)
    monkeypatch.setattr(batch_norm, "_MIN_VALUES", 1)
    monkeypatch.setattr(characteristic_function, "_MIN_VALUES", 1)
    assert chosen() == (True, True, True)
    # Normalization widens narrow values, since its statistics are wide.
    assert chosen(jnp.bfloat16) == (False, True, False)
    assert chosen(stride=3) == (False, True, True)
    with monkeypatch.context() as several:
        several.setattr(jax, "device_count", lambda: 2)
        assert chosen() == (False, False, False)

    def compiled():
        raise AssertionError("a host with a GPU compiles no kernels")

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(build, "kernels", compiled)
    assert chosen() == (False, False, False)


def test_used_in_shares_of_a_mesh() -> None:
    """Inside `jax.shard_map` each device calls them for its own share."""
    done = subprocess.run(
        [sys.executable, "tests/support/kernels_in_shares.py"],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests/support'}",
            "JAX_NUM_CPU_DEVICES": "2",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the shares agree" in done.stdout


@pytest.mark.parametrize(
    ("block", "stem", "remat"),
    [
        ("basic", "cifar", "none"),
        ("basic", "cifar", "blocks"),
        ("bottleneck", "imagenet", "none"),
    ],
)
def test_an_encoder_has_the_gradients_and_statistics_of_xla(
    block, stem, remat, monkeypatch
) -> None:
    """Stem, blocks, downsampling and normalization together, with and without rematerialization."""
    fields = {"block": block, "stem": stem, "stage_blocks": (1, 1, 1, 1), "remat": remat}
    model = resnet(width=16, token_dim=4, **fields)
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


def test_bit_exact_for_any_number_of_threads() -> None:
    """One thread, two, and more threads than a kernel gradient has parts."""
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
