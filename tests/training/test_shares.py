"""The train step on shares of a batch equals that of the whole batch, for every kind of run."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CIFAR = "configs/cifar100.py"
MLP = ("--config.model.projector=mlp", "--config.model.projector_dim=16")
CASES = {
    "hjepa": ("1,2,4,8", f"{CIFAR}:smoke"),
    "sigreg": ("1,2,4,8", f"{CIFAR}:sigreg-smoke"),
    "learned spectrum": ("1,2,4,8", f"{CIFAR}:ham_learnable-smoke"),
    "chain": ("2", f"{CIFAR}:ham_chain-smoke"),
    "mlp": ("2", f"{CIFAR}:mlp-smoke"),
    "identity": ("2", f"{CIFAR}:identity-smoke"),
    # It clips all but the predictor.
    "imagenet, split moments": (
        *("2", "configs/imagenet100.py:parity-smoke"),
        "--config.train.shard_optimizer=True",
    ),
    "subsample": ("1,4", f"{CIFAR}:sigreg-smoke", "--config.sigreg.subsample=7"),
    "flattened subsample": (
        *("4", f"{CIFAR}:sigreg-smoke"),
        "--config.sigreg.subsample=9",
        "--config.sigreg.statistics=flattened",
        "--config.sigreg.clip_value=0.5",
    ),
    "two-sided subsample": (
        *("1,2,8", f"{CIFAR}:sigreg-smoke"),
        "--config.sigreg.t_min=-4",
        "--config.sigreg.num_t=8",
        "--config.sigreg.subsample=7",
    ),
    "midpoint": ("2", f"{CIFAR}:smoke", "--config.dynamics.integrator=implicit_midpoint"),
    "energy": (
        *("2", f"{CIFAR}:smoke"),
        "--config.dynamics.hamiltonian=learnable",
        "--config.loss.energy_weight=0.3",
        "--config.loss.match=qp",
    ),
    "accumulation": ("2", f"{CIFAR}:smoke", "--config.train.accumulation=2"),
    "split moments, log-det settings of each half": (
        *("2,4,8", f"{CIFAR}:smoke"),
        "--config.train.shard_optimizer=True",
        "--config.loss.p_logdet_dim=5",
        "--config.loss.p_logdet_eps=0.001",
        "--config.loss.p_logdet_refresh_interval=3",
    ),
    "remat": ("2", f"{CIFAR}:sigreg-smoke", "--config.resnet.remat=blocks", *MLP),
    "local batch norm, online probe": (
        *("2,4", f"{CIFAR}:smoke"),
        "--config.model.batch_norm=local",
        "--config.evaluation.online_probe=True",
        # Normalized states meet the target 1 to 1e-4, whose square keeps half of the digits alone.
        "--config.loss.q_target=0.5",
        "--config.loss.p_target=0.5",
    ),
    "online probe": ("4", f"{CIFAR}:sigreg-smoke", "--config.evaluation.online_probe=True"),
    "local views": (
        *("2", f"{CIFAR}:smoke"),
        "--config.data.num_local_views=2",
        "--config.data.local_size=16",
        "--config.loss.pairing=local_to_global",
    ),
}


def run(*command: str) -> str:
    """Runs a program in a process of its own, since it forces devices, and returns its output."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", CASES)
def test_a_step_of_shares_is_that_of_the_whole_batch(name: str) -> None:
    assert "layouts agree" in run("tests/support/layouts.py", *CASES[name])


def test_bfloat16_gradients_are_added_in_float32() -> None:
    assert "float32 sums" in run("tests/support/bfloat16_sums.py")
