"""A run that is killed, also in the middle of a save, ends as one that was left alone."""

import pytest

from hjepa_jax import checkpoint_files
from hjepa_jax.errors import CheckpointError
from hjepa_jax.soak import soak
from hjepa_jax.workdir_lock import WorkdirLock

OVERRIDES = [
    "--config=configs/quickstart.py:smoke",
    "--config.train.max_steps=20",
    "--config.train.epochs=5",
    "--config.checkpoint.every_steps=2",
]


def test_kills_and_a_stop_change_no_bit(tmp_path) -> None:
    """Kill -9 in a save, SIGTERM, kill -9 at any time; and meanwhile no second run may begin."""
    refusals = []

    def tell(line: str) -> None:
        # The killed process held the lock a moment ago: the kernel has released it.
        with WorkdirLock(tmp_path / "killed-1"):
            refusals.append(line)

    done = soak(
        tmp_path,
        kills=3,
        seed=0,
        overrides=OVERRIDES,
        moments=("save", "term", "start"),
        tell=tell,
    )
    assert done.kills == {"save": 1, "term": 1, "start": 1}
    assert done.torn_saves >= 1
    assert len(refusals) == 3
    log = (tmp_path / "log.txt").read_text()
    assert "its save was broken off" in log
    assert "SIGTERM: stopping after this step" in log
    assert "stopped as asked after step" in log
    assert "Traceback" not in log
    for run in ("whole", "killed-1"):
        folder = tmp_path / run / "checkpoints"
        assert checkpoint_files.temporary_folders(folder) == []
        assert checkpoint_files.verify(folder / "20")


def test_a_second_run_in_the_workdir_is_refused(tmp_path) -> None:
    with WorkdirLock(tmp_path), pytest.raises(CheckpointError, match=r"process \d+ on .* training"):
        WorkdirLock(tmp_path).__enter__()
    with WorkdirLock(tmp_path):
        assert (tmp_path / "lock").is_file()
    with WorkdirLock(tmp_path):
        (tmp_path / "lock").write_text("")
        with pytest.raises(CheckpointError, match="another process is training"):
            WorkdirLock(tmp_path).__enter__()
