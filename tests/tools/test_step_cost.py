"""The plan of a step: operations against a formula, arithmetic by hand, and the script as it is."""

import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from configs import cifar100
from hjepa_jax.errors import ConfigError
from hjepa_jax.kernels import convolution
from hjepa_jax.tools import step_cost
from hjepa_jax.training.method import build_encoder

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, 16),
        ({"token_layer": "layer3", "token_hw": 4}, 33),
        ({"stem": "imagenet", "mode": "global", "embed_dim": 24, "token_layer": "layer3"}, 64),
        ({"stage_blocks": (2, 3, 1, 1)}, 16),
    ],
)
def test_formula_agrees_with_the_count_of_xla(fields, size, monkeypatch) -> None:
    """XLA also counts normalisation and activations, a few percent."""
    # XLA counts the body of a scan once, whatever its length, and nothing of a native kernel.
    for name in ("_MIN_GROUPED", "_MIN_NATIVE"):
        monkeypatch.setattr(convolution, name, float("inf"))
    config = cifar100.get_config("hjepa-smoke")
    config.model.update(width=32, **fields)
    encoder = build_encoder(config)
    images = jax.ShapeDtypeStruct((4, size, size, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda key, x: encoder.init(key, x, train=False), jax.random.key(0), images
    )

    def loss(params: Any, stats: Any, x: jax.Array) -> Any:
        variables = {"params": params, "batch_stats": stats}
        return jnp.sum(encoder.apply(variables, x, train=True, mutable=["batch_stats"])[0] ** 2)

    arguments = (variables["params"], variables["batch_stats"], images)
    counted = jax.jit(jax.grad(loss)).lower(*arguments).cost_analysis()["flops"]
    assert 1.0 < counted / step_cost.encoder_flops(config, 4, size) < 1.06


def test_seconds_of_a_step() -> None:
    cost = step_cost.Cost(flops=4e12, bytes=3e9, state=1, temporary=1, peak=2, reduced=2e9)
    seconds = step_cost.step_seconds(cost, step_cost.Hardware(1e13, 1e12, 1e11), efficiency=0.5)
    assert seconds == pytest.approx(
        {"compute": 0.8, "memory": 0.003, "communication": 0.02, "step": 0.82}
    )
    slow = step_cost.step_seconds(cost, step_cost.Hardware(1e13, 1e9, 1e11), efficiency=0.5)
    assert slow["step"] == pytest.approx(3.02)


def test_options_that_are_on_are_not_offered() -> None:
    config = cifar100.get_config("smoke")
    assert len(step_cost.options(config, 8)) == 4
    assert "train.shard_optimizer=True" not in step_cost.options(config, 1)
    config.model.remat = "blocks"
    config.train.update(accumulation=2, shard_optimizer=True)
    assert list(step_cost.options(config, 8)) == ["as configured"]
    assert step_cost.options(config, 4)["train.accumulation=4"].train.accumulation == 4
    assert config.train.accumulation == 2


def test_flags_out_of_range_are_one_sentence() -> None:
    step_cost.check_positive({"devices": 1, "peak_tflops": None})
    with pytest.raises(ConfigError, match="--efficiency is 0: it must be above 0"):
        step_cost.check_positive({"efficiency": 0})


def test_machine_is_measured() -> None:
    flops, moved = step_cost.measure_machine(size=64, megabytes=1)
    assert 1e6 < flops < 1e15
    assert 1e6 < moved < 1e14


def test_script_plans_for_eight_devices() -> None:
    """Each option saves what it is for; the figures of the table fit together."""
    command = [sys.executable, "scripts/step_cost.py", "--config=configs/cifar100.py:sigreg-smoke"]
    # Several blocks, since recomputing saves what is inside all but one.
    command.append("--config.model.stage_blocks=(2, 2, 2, 2)")
    hardware = ["--peak_tflops=1", "--bandwidth_gbs=10", "--interconnect_gbs=1"]
    done = subprocess.run(
        [*command, "--devices=8", "--efficiency=0.5", *hardware],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {
        name: [float(cell.strip(" %")) for cell in cells.split("|")]
        for name, cells in re.findall(r"^\| ([\w. =]+) \| ([^a-z]+) \|$", done.stdout, re.MULTILINE)
    }
    plain, remat, parts, split = rows.values()
    flops, moved, state, temporary, peak, saving, sent, rate = range(8)
    assert remat[flops] > 1.1 * plain[flops]
    assert parts[flops] > 1.1 * plain[flops]
    assert remat[temporary] < 0.8 * plain[temporary]
    assert parts[temporary] < 0.8 * plain[temporary]
    assert split[state] < 0.6 * plain[state]
    assert remat[saving] < 0
    assert split[sent] == pytest.approx(1.5 * plain[sent], rel=0.01)
    assert plain[peak] == pytest.approx(plain[state] + plain[temporary], rel=0.02)
    # 16 images; 0.5 TFLOP/s is more than enough here, so that 10 GB/s of memory bound it.
    seconds = plain[moved] / 10 + plain[sent] / 1e3
    assert plain[rate] == pytest.approx(16 / seconds, rel=0.01)
