"""Checkpoints: what is saved comes back, damage is found, and nothing saved is lost."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hjepa_jax.checkpoint import Checkpointer
from hjepa_jax.errors import CheckpointError


def _state(value: float):
    return {"params": {"kernel": jnp.full((3, 4), value)}, "step": jnp.asarray(7, jnp.int32)}


def _abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def _saved(folder: pathlib.Path, steps=(1, 2, 3)) -> Checkpointer:
    checkpointer = Checkpointer(folder, keep_last=2)
    for step in steps:
        checkpointer.save(step, _state(float(step)), {"data": {"step": step}})
    checkpointer.wait()
    return checkpointer


def test_round_trip_keeps_the_newest(tmp_path) -> None:
    checkpointer = _saved(tmp_path / "c")
    assert checkpointer.steps() == [2, 3]
    state, meta = checkpointer.restore(_abstract(_state(0.0)))
    np.testing.assert_array_equal(state["params"]["kernel"], np.full((3, 4), 3.0, np.float32))
    assert meta == {"data": {"step": 3}}
    older, meta = checkpointer.restore(_abstract(_state(0.0)), step=2)
    assert float(older["params"]["kernel"][0, 0]) == 2.0
    assert meta["data"]["step"] == 2
    checkpointer.close()


def test_relative_folder_works(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpointer = _saved(pathlib.Path("c"), steps=(1,))
    assert checkpointer.steps() == [1]
    checkpointer.close()


def test_saving_a_step_twice_is_refused(tmp_path) -> None:
    checkpointer = _saved(tmp_path / "c")
    with pytest.raises(CheckpointError, match="did not save step 3"):
        checkpointer.save(3, _state(9.0), {})
    state, _ = checkpointer.restore(_abstract(_state(0.0)))
    assert float(state["params"]["kernel"][0, 0]) == 3.0
    checkpointer.close()


def test_a_shape_mismatch_names_the_parameter(tmp_path) -> None:
    checkpointer = _saved(tmp_path / "c")
    wanted = _abstract(_state(0.0))
    wanted["params"]["kernel"] = jax.ShapeDtypeStruct((3, 5), jnp.float32)
    with pytest.raises(CheckpointError, match=r"params/kernel has shape \(3, 4\).*\(3, 5\)"):
        checkpointer.restore(wanted)
    checkpointer.close()


def test_an_empty_folder_says_so(tmp_path) -> None:
    checkpointer = Checkpointer(tmp_path / "c")
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        checkpointer.restore(_abstract(_state(0.0)))
    checkpointer.close()


def _damage(folder: pathlib.Path, step: int) -> None:
    files = [f for f in (folder / str(step) / "state").rglob("*") if f.is_file()]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_truncated_checkpoint_gives_way_to_the_previous(tmp_path, caplog) -> None:
    folder = tmp_path / "c"
    _saved(folder).close()
    _damage(folder, 3)
    checkpointer = Checkpointer(folder, keep_last=2)
    state, meta = checkpointer.restore(_abstract(_state(0.0)))
    assert float(state["params"]["kernel"][0, 0]) == 2.0
    assert meta["data"]["step"] == 2
    assert "step 3" in caplog.text
    assert "unreadable" in caplog.text
    checkpointer.close()


def test_all_checkpoints_damaged_is_one_sentence(tmp_path) -> None:
    folder = tmp_path / "c"
    _saved(folder).close()
    _damage(folder, 2)
    _damage(folder, 3)
    checkpointer = Checkpointer(folder, keep_last=2)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read: step 3 .*step 2"):
        checkpointer.restore(_abstract(_state(0.0)))
    checkpointer.close()
