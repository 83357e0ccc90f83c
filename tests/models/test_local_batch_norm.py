"""Batch normalization by the statistics of each device's share of the batch."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hjepa_jax.config.checks import typed
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import ConfigError
from hjepa_jax.models.layers import BatchNorm
from hjepa_jax.recipes import quickstart
from hjepa_jax.tools.layout_check import compare_layouts
from hjepa_jax.training.prepare import prepare

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_groups_are_normalized_as_if_each_were_the_batch() -> None:
    x = np.random.default_rng(0).normal(2.0, 3.0, (12, 4, 4, 5)).astype(np.float32)
    layer = BatchNorm(groups=3)
    variables = layer.init(jax.random.key(0), jnp.asarray(x), train=False)
    out, updates = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    parts = np.split(x.astype(np.float64), 3)
    means = [part.mean((0, 1, 2)) for part in parts]
    expected = np.concatenate(
        [
            (part - mean) / np.sqrt(part.var((0, 1, 2)) + layer.epsilon)
            for part, mean in zip(parts, means)
        ]
    )
    np.testing.assert_allclose(out, expected, atol=1e-5)
    found = updates["batch_stats"]
    variances = [part.reshape(-1, 5).var(0, ddof=1) for part in parts]
    np.testing.assert_allclose(found["mean"], 0.1 * np.mean(means, axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["var"], 0.9 + 0.1 * np.mean(variances, axis=0), rtol=1e-5)
    # Evaluation knows no groups.
    whole = BatchNorm().apply(variables, x, train=False)
    np.testing.assert_array_equal(layer.apply(variables, x, train=False), whole)


def test_rows_that_do_not_divide_are_refused() -> None:
    layer, x = BatchNorm(groups=2), jnp.zeros((3, 2, 1))
    variables = layer.init(jax.random.key(0), x, train=False)
    with pytest.raises(ValueError, match="3 rows do not divide into 2 groups"):
        layer.apply(variables, x, train=True, mutable=["batch_stats"])


def test_comparing_layouts_needs_global_statistics() -> None:
    config = quickstart.get_config("smoke")
    config.model.batch_norm = "local"
    with pytest.raises(ConfigError, match=r"config.model.batch_norm is 'local'"):
        compare_layouts(typed(config), [1, 2])


@pytest.mark.parametrize(("choice", "devices", "groups"), [("global", 4, 1), ("local", 4, 4)])
def test_groups_are_the_devices(choice, devices, groups) -> None:
    class Mesh:
        """What `prepare` asks of a mesh before it places anything."""

    config = quickstart.get_config("smoke")
    config.model.batch_norm = choice
    mesh = Mesh()
    mesh.size = devices
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hjepa_jax.runtime.sharding.replicated", lambda mesh: None)
        modules = prepare(typed(config), len(open_split(typed(config), "train")), mesh).setup
    assert modules.encoder.norm_groups == modules.projector.norm_groups == groups


PROGRAM = """
import jax, jax.numpy as jnp, numpy as np

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_enable_x64", True)
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime import sharding
from hjepa_jax.config.checks import typed
from hjepa_jax.training.setup import build_encoder
from hjepa_jax.models.layers import BatchNorm
from hjepa_jax.runtime.devices import UNOPTIMIZED

config = quickstart.get_config("smoke")
images = np.random.default_rng(0).normal(size=(8, 16, 16, 3))


def compiled(module, devices):
    mesh = sharding.data_mesh(jax.devices()[:devices])

    def forward(variables, images):
        return module.apply(variables, images, train=True, mutable=["batch_stats"])[0]

    key = jax.random.key(0)
    init = jax.jit(lambda key: module.init(key, images, train=False)).lower(key)
    variables = init.compile(UNOPTIMIZED)(key)
    rows = sharding.batch_sharding(mesh, "image")
    placed = jax.device_put(variables, sharding.replicated(mesh)), jax.device_put(images, rows)
    function = jax.jit(forward, out_shardings=rows).lower(*placed).compile(UNOPTIMIZED)
    return "all-reduce" in function.as_text(), np.asarray(function(*placed))


encoder = build_encoder(typed(config), dtype=jnp.float64, norm_groups=2)
(waits, ours), (_, alone) = compiled(encoder, 2), compiled(encoder, 1)
print(waits, compiled(BatchNorm(), 2)[0], np.allclose(ours, alone, rtol=1e-9, atol=1e-9))
"""


def test_devices_do_not_wait_and_change_nothing() -> None:
    """On two devices, in a process of its own since devices are forced at start-up."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "True", "True"]
