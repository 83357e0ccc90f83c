"""The cost of a step: hand calculations, and the command."""

import re

import forked
import jax
import numpy as np
import pytest
from image_files import OneByOne, data_config

from hjepa_jax.config.checks import typed
from hjepa_jax.data.batches import BatchMaker
from hjepa_jax.data.sources.base import ArraySource
from hjepa_jax.errors import ConfigError
from hjepa_jax.recipes import cifar100
from hjepa_jax.runtime import sharding
from hjepa_jax.tools.plan import step_cost
from hjepa_jax.training.feed import resident_images
from hjepa_jax.training.prepare import prepare


def test_native_kernels_are_not_asked_for(monkeypatch) -> None:
    """XLA does not count the operations of foreign calls."""

    settings = typed(cifar100.get_config("sigreg-smoke"))
    run = prepare(settings, settings.data.batch_size, sharding.data_mesh())
    batch = step_cost.abstract_batch(settings.data, run.mesh)

    def asked() -> None:
        raise AssertionError("the kernels were asked for")

    monkeypatch.setattr("hjepa_jax.kernels.build.kernels", asked)
    monkeypatch.setattr("hjepa_jax.kernels.convolution._MIN_NATIVE", 0)
    monkeypatch.setattr("hjepa_jax.kernels.batch_norm._MIN_VALUES", 0)
    with pytest.raises(AssertionError, match="were asked for"):
        run.step.lower(run.abstract_state, batch)
    assert step_cost.step_cost(settings, sharding.data_mesh()).flops > 1e8


@pytest.mark.parametrize(
    ("name", "backend", "resident_mb", "others"),
    [
        ("folder", "host", 1024, {"index", "label"}),
        ("folder", "device", 1024, {"index", "label"}),
        ("cifar100", "device", 100, {"index", "label"}),
        ("cifar100", "device", 1024, {"label"}),
    ],
)
def test_the_batch_has_the_shapes_of_a_real_one(
    name: str, backend: str, resident_mb: int, others: set[str]
) -> None:
    """50,000 images of CIFAR take 147 MiB, so that 100 do not hold them."""
    fields = dict(backend=backend, image_size=24, num_local_views=3, local_size=16, batch_size=8)
    data = typed(data_config(name=name, resident_mb=resident_mb, **fields)).data
    images = np.zeros((50_000, 32, 32, 3), np.uint8)
    source = ArraySource("test", images, np.zeros(50_000, np.int32), ["a"])
    read = OneByOne(source) if name == "folder" else source
    real = BatchMaker(data, 7, read)(0)[0] | resident_images(data, read, sharding.data_mesh())
    found = step_cost.abstract_batch(data, sharding.data_mesh())
    wanted = {name: entry for name, entry in real.items() if name not in others}
    assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(
        lambda x: (x.shape, x.dtype), wanted
    )


def test_seconds_of_a_step() -> None:
    cost = step_cost.Cost(flops=4e12, bytes=3e9, state=1, temporary=1, peak=2, reduced=2e9)
    seconds = step_cost.step_seconds(cost, step_cost.Hardware(1e13, 1e12, 1e11), efficiency=0.5)
    assert seconds == pytest.approx(
        {"compute": 0.8, "memory": 0.003, "communication": 0.02, "step": 0.82}
    )
    slow = step_cost.step_seconds(cost, step_cost.Hardware(1e13, 1e9, 1e11), efficiency=0.5)
    assert slow["step"] == pytest.approx(3.02)


def test_options_in_use_are_not_offered() -> None:
    config = cifar100.get_config("smoke")
    assert len(step_cost.options(typed(config), 8)) == 4
    assert "train.shard_optimizer=True" not in step_cost.options(typed(config), 1)
    config.resnet.remat = "blocks"
    config.train.update(accumulation=2, shard_optimizer=True)
    assert list(step_cost.options(typed(config), 8)) == ["as configured"]
    assert step_cost.options(typed(config), 4)["train.accumulation=4"].train.accumulation == 4
    assert config.train.accumulation == 2


def test_flags_out_of_range_are_one_sentence() -> None:
    step_cost.check_positive({"devices": 1, "peak_tflops": None})
    with pytest.raises(ConfigError, match="--efficiency is 0: it must be above 0"):
        step_cost.check_positive({"efficiency": 0})


def test_machine_is_measured() -> None:
    flops, moved = step_cost.measure_machine(size=64, megabytes=1)
    assert 1e6 < flops < 1e15
    assert 1e6 < moved < 1e14


def test_command_plans_for_eight_devices() -> None:
    """Each option saves what it should, and the numbers in the table are consistent."""
    command = ["-m", "hjepa_jax.tools.cli", "plan"]
    command.append("--config=configs/cifar100.py:sigreg-smoke")
    # Several blocks, since recomputation saves the insides of all but one; and enough images that
    # activations are most of the memory: what else is kept differs between versions of jax.
    command += ["--config.resnet.stage_blocks=(2, 2, 2, 2)", "--config.data.batch_size=64"]
    hardware = ["--peak_tflops=1", "--bandwidth_gbs=10", "--interconnect_gbs=1"]
    done = forked.run(*command, "--devices=8", "--efficiency=0.5", *hardware)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {
        name: [float(cell.strip(" %")) for cell in cells.split("|")]
        for name, cells in re.findall(r"^\| ([\w. =]+) \| ([^a-z]+) \|$", done.stdout, re.MULTILINE)
    }
    plain, remat, parts, split = rows.values()
    flops, moved, state, temporary, peak, saving, sent, rate = range(8)
    # Of these, 0.099 GFLOP are multiply-adds of the encoder's convolutions and head, by hand.
    assert 1.1 < plain[flops] / 0.099 < 1.4
    assert remat[flops] > 1.1 * plain[flops]
    assert parts[flops] > 1.1 * plain[flops]
    assert remat[temporary] < 0.5 * plain[temporary]
    assert parts[temporary] < 0.6 * plain[temporary]
    assert split[state] < 0.6 * plain[state]
    assert remat[saving] < 0
    assert split[sent] == plain[sent]
    assert plain[peak] == pytest.approx(plain[state] + plain[temporary], rel=0.02)
    # 64 images; 0.5 TFLOP/s is more than enough here, so it is bound by 10 GB/s of memory.
    seconds = plain[moved] / 10 + plain[sent] / 1e3
    assert plain[rate] == pytest.approx(64 / seconds, rel=0.01)
