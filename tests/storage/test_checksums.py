"""Checksums of checkpoints: whatever differs from what was written is found and named."""

import pathlib
import re

import jax.numpy as jnp
import pytest
from odd_files import DEEP, flip, replace

from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.storage import checksums
from hjepa_jax.storage.checksums import DamagedError


@pytest.fixture
def step(tmp_path) -> pathlib.Path:
    """The folder of a saved checkpoint."""
    checkpointer = Checkpointer(tmp_path / "c")
    checkpointer.save(
        3, {"kernel": jnp.ones((3, 4)), "step": jnp.asarray(3)}, {"data": {"step": 3}}
    )
    checkpointer.close()
    return tmp_path / "c" / "3"


def test_a_flipped_bit_in_any_file_is_found_and_named(step) -> None:
    checksums.verify(step)
    files = sorted(path for path in step.rglob("*") if path.is_file())
    checked = [path for path in files if path.name != "commit_success.txt"]
    assert len(checked) > 6
    for path in checked:
        intact = path.read_bytes()
        # The start of `_CHECKPOINT_METADATA`: its end holds the time of the commit.
        for position in (0, len(intact) // 3):
            flip(path, position)
            with pytest.raises(DamagedError, match=re.escape(path.name)):
                checksums.verify(step)
            path.write_bytes(intact)
        path.write_bytes(intact[:-1])
        with pytest.raises(DamagedError, match=re.escape(path.name)):
            checksums.verify(step)
        path.unlink()
        with pytest.raises(DamagedError, match=re.escape(path.name)):
            checksums.verify(step)
        path.write_bytes(intact)
    checksums.verify(step)


@pytest.mark.parametrize("damage", ["file", "folder", "pipe", "[]", "{}", DEEP, '{"format": 1}'])
def test_a_manifest_of_another_kind_is_damage(damage, step) -> None:
    replace(step / "checksums.json", damage)
    with pytest.raises(DamagedError, match=r"checksums\.json"):
        checksums.verify(step)
