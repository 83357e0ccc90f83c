"""A full disk: the last good checkpoint stays, the incomplete one goes, a sentence says so."""

import contextlib
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from hjepa_jax.errors import CheckpointError, UserError
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime import checkpoint_files
from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.runtime.writers.open import create_writer
from hjepa_jax.storage import checksums
from hjepa_jax.storage.metrics_file import read_metrics
from hjepa_jax.train import train

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Saves a small state, then one that meets the limit; prints what is left, and the error.
SAVE = """
import pathlib, resource, sys
import numpy as np
from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.errors import CheckpointError

def state(size):
    return {"x": np.random.default_rng(0).integers(0, 256, size, np.uint8)}

if sys.argv[2] == "limit":  # What writes more than a megabyte to a file gets EFBIG.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
checkpointer = Checkpointer(pathlib.Path(sys.argv[1]))
checkpointer.save(1, state(1000), {})
checkpointer.save(2, state(1000), {})
try:
    checkpointer.save(3, state(5_000_000), {})
    checkpointer.close()
except CheckpointError as error:
    print(error)
"""


@pytest.fixture
def tmpfs(tmp_path):
    """A file system of two megabytes, where this machine lets us mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def check_what_is_left(folder: pathlib.Path, message: str) -> None:
    """Checks the sentence and the folder after step 3 could not be saved."""
    assert "the checkpoint of step 3 could not be saved" in message
    assert str(folder) in message
    assert "bytes are free" in message
    assert "intact: [1, 2]" in message
    assert checkpoint_files.temporary_folders(folder) == []
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    for step in (1, 2):
        checksums.verify(folder / str(step))


def run(*arguments: str) -> subprocess.CompletedProcess:
    """Runs Python in the repository root."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_a_file_size_limit_spares_the_earlier_checkpoints(tmp_path) -> None:
    done = run("-c", SAVE, str(tmp_path / "c"), "limit")
    check_what_is_left(tmp_path / "c", done.stdout)


def test_a_full_file_system_spares_the_earlier_checkpoints(tmpfs) -> None:
    done = run("-c", SAVE, str(tmpfs / "c"), "tmpfs")
    check_what_is_left(tmpfs / "c", done.stdout)
    assert "the disk is full" in done.stdout


def fill(path: pathlib.Path) -> None:
    """Writes a file until the disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(2**12)):
            pass


@pytest.mark.parametrize("told_by", ["save", "wait", "close"])
@pytest.mark.parametrize("filled", [False, True])
def test_a_save_that_failed_is_told_once(tmpfs, told_by, filled) -> None:
    checkpointer = Checkpointer(tmpfs / "c")
    small = {"x": np.zeros(1000, np.uint8)}
    large = {"x": np.random.default_rng(0).integers(0, 256, 5_000_000, np.uint8)}
    checkpointer.save(1, small, {})
    if filled:
        fill(tmpfs / "filler")
    tell = {
        "save": lambda: checkpointer.save(3, small, {}),
        "wait": checkpointer.wait,
        "close": checkpointer.close,
    }

    def save_and_tell() -> None:
        checkpointer.save(2, large, {})
        tell[told_by]()

    with pytest.raises(CheckpointError, match=r"the checkpoint of step 2 could not be saved"):
        save_and_tell()
    checkpointer.close()
    assert checkpoint_files.steps(tmpfs / "c") == [1]


def test_events_on_a_full_file_system_go_on_when_there_is_room(tmpfs, caplog) -> None:
    writer = create_writer(tmpfs / "run")
    filler = tmpfs / "filler"
    fill(filler)
    picture = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    for step in range(3):
        writer.write_images(step, {"views": picture})
    writer.flush()
    assert "No space left on device" in caplog.text
    filler.unlink()
    writer.write_scalars(3, {"total": 1.0})
    writer.close()
    assert read_metrics(tmpfs / "run")["total"][0].tolist() == [3]


def test_a_run_cannot_begin_on_a_full_disk(tmpfs) -> None:
    fill(tmpfs / "filler")
    with pytest.raises(UserError, match=r"cannot be written to: No space left on device"):
        train(quickstart.get_config("smoke"), tmpfs / "run")


def test_training_on_a_full_disk_ends_with_a_sentence_and_goes_on_later(tmpfs) -> None:
    filler = tmpfs / "filler"
    filler.write_bytes(np.random.default_rng(0).bytes(1_500_000))
    done = run(
        "-m",
        "hjepa_jax.main",
        "--config=configs/quickstart.py:smoke",
        f"--workdir={tmpfs}/run",
        "--mode=train",
        "--config.checkpoint.every_steps=1",
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "the disk is full" in last
    assert "Free disk space" in last
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    filler.unlink()
    config = quickstart.get_config("smoke")
    config.checkpoint.every_steps = 1
    assert int(train(config, tmpfs / "run").step) == 2
