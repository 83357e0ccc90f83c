"""Memory options on eight devices, in a process of their own since devices are forced there."""

import os
import pathlib
import subprocess
import sys

import pytest

from hjepa_jax.config.checks import typed
from hjepa_jax.errors import ConfigError
from hjepa_jax.recipes import cifar100
from hjepa_jax.runtime import sharding
from hjepa_jax.training.prepare import prepare

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_split_moments_micro_batches_and_checkpoints_on_eight_devices() -> None:
    """Also that the state's buffers are reused, without a warning of jax."""
    done = subprocess.run(
        [sys.executable, "tests/support/eight_devices.py"],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "8",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "eight devices agree" in done.stdout


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((3, 3, 8, 16), 3), ((3, 3, 16, 8), 2), ((8, 3, 3, 7), 0), ((3, 5), None), ((), None)],
)
def test_axis_that_is_split(shape, axis) -> None:
    assert sharding.split_axis(4, shape) == axis


def test_micro_batches_that_devices_cannot_share_are_one_sentence() -> None:
    config = cifar100.get_config("smoke")
    config.train.accumulation = 3
    with pytest.raises(ConfigError, match="accumulation=3: set it to a multiple of 3"):
        prepare(typed(config), 64, sharding.data_mesh())
