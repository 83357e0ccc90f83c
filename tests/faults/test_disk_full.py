"""A full disk: the last good checkpoint stays, the incomplete one goes, a sentence says so."""

import pathlib
import resource
import subprocess
import sys

import numpy as np
import pytest

from configs import quickstart
from hjepa_jax import checkpoint_files
from hjepa_jax.errors import CheckpointError, UserError
from hjepa_jax.train import train

# Saves a small state, then one that meets the limit; prints what is left, and the error.
SAVE = """
import pathlib, sys
import numpy as np
from hjepa_jax.checkpoint import Checkpointer
from hjepa_jax.errors import CheckpointError

def state(size):
    return {"x": np.random.default_rng(0).integers(0, 256, size, np.uint8)}

checkpointer = Checkpointer(pathlib.Path(sys.argv[1]))
checkpointer.save(1, state(1000), {})
checkpointer.save(2, state(1000), {})
try:
    checkpointer.save(3, state(5_000_000), {})
    checkpointer.close()
except CheckpointError as error:
    print(error)
"""


def limit_files() -> None:
    """Limits every file to a megabyte: what writes more gets EFBIG."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))


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
    assert all(checkpoint_files.verify(folder / str(step)) for step in (1, 2))


def save_in_a_process(folder: pathlib.Path, **options) -> str:
    """Runs SAVE; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", SAVE, str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        **options,
    )
    return done.stdout


def test_a_file_size_limit_spares_the_earlier_checkpoints(tmp_path) -> None:
    folder = tmp_path / "c"
    check_what_is_left(folder, save_in_a_process(folder, preexec_fn=limit_files))


def test_a_full_file_system_spares_the_earlier_checkpoints(tmpfs) -> None:
    message = save_in_a_process(tmpfs / "c")
    check_what_is_left(tmpfs / "c", message)
    assert "the disk is full" in message


def test_training_on_a_full_disk_ends_with_a_sentence(tmpfs) -> None:
    config = quickstart.get_config("smoke")
    config.checkpoint.every_steps = 1
    filler = tmpfs / "filler"
    filler.write_bytes(np.random.default_rng(0).bytes(1_300_000))
    with pytest.raises(UserError, match="full") as caught:
        train(config, tmpfs / "run")
    assert isinstance(caught.value, CheckpointError)
    assert "Free disk space" in str(caught.value)
    filler.unlink()
    # The same command goes on.
    assert int(train(config, tmpfs / "run").step) == 2
