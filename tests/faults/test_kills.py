"""A run that is killed, also in the middle of a save, ends as one that was left alone."""

import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from hjepa_jax.errors import CheckpointError
from hjepa_jax.runtime import checkpoint_files
from hjepa_jax.runtime.workdir_lock import WorkdirLock
from hjepa_jax.storage import checksums
from hjepa_jax.storage.metrics_file import read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]


def holder_while_training(workdir: pathlib.Path, soak: subprocess.Popen) -> str:
    """Returns the refusal of a second run beside the one in `workdir`."""
    while not (workdir / "config.json").is_file():
        assert soak.poll() is None, "the run ended before it began"
        time.sleep(0.01)
    with pytest.raises(CheckpointError) as refusal:
        WorkdirLock(workdir).__enter__()
    return str(refusal.value)


def test_kills_and_a_stop_change_no_bit_and_no_second_run_may_begin(tmp_path) -> None:
    """Kill -9 in a save, SIGTERM, kill -9 between two saves."""
    out = tmp_path / "soak"
    command = [
        sys.executable,
        "scripts/kill_test.py",
        "--kills=3",
        "--steps_per_kill=5",
        "--seed=0",
    ]
    soak = subprocess.Popen(
        [*command, f"--out={out}"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        refused = holder_while_training(out / "undisturbed", soak)
        told, errors = soak.communicate(timeout=400)
    finally:
        soak.kill()
    assert soak.returncode == 0, errors
    assert re.search(r"process \d+ on .* is training in .*undisturbed", refused)
    assert "3 kills (save 1, term 1, step 1, start 0)" in told
    assert "every final state and metric bit-identical" in told
    assert re.search(r"kill 1/3 \(save\): .*, save of step \d+ interrupted", told)
    log = (out / "log.txt").read_text()
    assert "its save was interrupted" in log
    assert "SIGTERM: stopping after this step" in log
    assert "stopped as requested after step" in log
    assert "Traceback" not in log
    steps, losses = read_metrics(out / "killed-1")["loss/total"]
    assert steps.tolist() == [*range(1, 21)]
    assert np.all(losses > 0)
    for run in ("undisturbed", "killed-1"):
        folder = out / run / "checkpoints"
        assert checkpoint_files.temporary_folders(folder) == []
        checksums.verify(folder / "20")
        with WorkdirLock(out / run):
            pass


def test_the_lock_is_released_and_names_what_it_can(tmp_path) -> None:
    with WorkdirLock(tmp_path), pytest.raises(CheckpointError, match=rf"process {os.getpid()} on "):
        WorkdirLock(tmp_path).__enter__()
    with WorkdirLock(tmp_path):
        (tmp_path / "lock").write_text("")
        with pytest.raises(CheckpointError, match="another process is training"):
            WorkdirLock(tmp_path).__enter__()
