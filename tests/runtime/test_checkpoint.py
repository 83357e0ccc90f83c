"""Checkpoints: what is saved comes back, damage is found, and nothing saved is lost."""

import math
import pathlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from odd_files import flip

from hjepa_jax.errors import CheckpointError, ConfigError
from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.storage import checksums


def _state(value: float):
    return {"params": {"kernel": jnp.full((3, 4), value)}, "step": jnp.asarray(7, jnp.int32)}


def _abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def _saved(folder: pathlib.Path, steps=(1, 2, 3), metrics=None, **options) -> Checkpointer:
    checkpointer = Checkpointer(folder, keep_last=2, **options)
    for step in steps:
        scores = None if metrics is None else metrics[step]
        checkpointer.save(step, _state(float(step)), {"data": {"step": step}}, scores)
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


class _Whole(flax.struct.PyTreeNode):
    params: Any
    step: Any
    probe: Any


def test_what_is_missing_or_left_over_is_named_and_parts_can_be_read(tmp_path) -> None:
    """A checkpoint of another configuration is not taken for a damaged one."""
    checkpointer = _saved(tmp_path / "c")
    whole = _Whole(**_abstract(_state(0.0)), probe={})
    # A field that is empty need not be in the file: older checkpoints stay readable.
    state, _ = checkpointer.restore(whole)
    assert isinstance(state, _Whole)
    np.testing.assert_array_equal(state.params["kernel"], np.full((3, 4), 3.0, np.float32))
    with pytest.raises(CheckpointError, match=r"probe/bias is missing in checkpoint .*c/3, which"):
        checkpointer.restore(whole.replace(probe={"bias": whole.step}))
    with pytest.raises(
        CheckpointError, match=r"params/kernel is in checkpoint .* not part of this"
    ):
        checkpointer.restore(whole.replace(params={}))
    part, meta = checkpointer.restore({"step": whole.step})
    assert (part.keys(), int(part["step"]), meta["data"]["step"]) == ({"step"}, 7, 3)
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


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_after_a_fallback_the_damaged_step_can_be_saved_again(tmp_path, caplog) -> None:
    folder = tmp_path / "c"
    _saved(folder).close()
    (largest,) = sorted(_files(folder / "3" / "state"), key=lambda path: path.stat().st_size)[-1:]
    flip(largest, 40)
    reader = Checkpointer(folder, read_only=True)
    assert reader.restore(_abstract(_state(0.0)))[1]["data"]["step"] == 2
    reader.close()
    assert (folder / "3").is_dir()
    checkpointer = Checkpointer(folder, keep_last=2)
    assert checkpointer.restore(_abstract(_state(0.0)))[1]["data"]["step"] == 2
    name = largest.relative_to(folder / "3")
    assert f"step 3 ({name} is altered" in caplog.text
    assert (folder / "3.damaged").is_dir()
    assert checkpointer.steps() == [2]
    checkpointer.save(3, _state(3.0), {"data": {"step": 3}})
    checkpointer.wait()
    assert checkpointer.restore(_abstract(_state(0.0)))[1]["data"]["step"] == 3
    checkpointer.close()


def test_a_checkpoint_without_checksums_gives_way_to_the_previous(tmp_path, caplog) -> None:
    folder = tmp_path / "c"
    _saved(folder).close()
    (folder / "3" / checksums.MANIFEST).unlink()
    reader = Checkpointer(folder, read_only=True)
    assert reader.restore(_abstract(_state(0.0)))[1]["data"]["step"] == 2
    assert "step 3 (checksums.json is missing" in caplog.text
    # All of a run's, as of one that knew none: one sentence.
    (folder / "2" / checksums.MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"step 3 \(checksums.json is .*step 2 \(checksums"):
        reader.restore(_abstract(_state(0.0)))


@pytest.mark.parametrize(
    ("name", "mode", "best"),
    [
        ("total", "min", 2),
        ("online/knn_top1", "max", 1),
    ],
)
def test_the_best_is_kept_beside_the_newest(name, mode, best, tmp_path) -> None:
    scores = {1: {name: 9.0}, 2: {name: 1.0}, 3: {name: math.nan}, 4: None}
    scores |= {5: {name: 5.0}, 6: {"other": 0.0}}
    options = {"keep_best": 1, "best_metric": name, "best_mode": mode}
    first = _saved(tmp_path / "c", scores, scores, **options)
    assert first.steps() == [best, 5, 6]
    first.close()
    # A resumed run knows the scores of what it finds.
    second = Checkpointer(tmp_path / "c", keep_last=2, **options)
    second.save(7, _state(7.0), {}, {name: 4.0})
    second.wait()
    assert second.steps() == [best, 6, 7]
    assert second.best_step() == best
    second.close()
    reader = Checkpointer(tmp_path / "c", read_only=True, best_metric="nothing", best_mode="max")
    with pytest.raises(CheckpointError, match="'nothing'"):
        reader.best_step()
    reader.close()


def test_best_needs_to_know_which_way(tmp_path) -> None:
    with pytest.raises(ValueError, match="keep_best needs best_mode"):
        Checkpointer(tmp_path / "c", keep_best=1, best_metric="z2", best_mode=None)
    _saved(tmp_path / "c", (1,), {1: {"z2": 1.0}}, keep_best=1, best_metric="z2", best_mode="max")
    reader = Checkpointer(tmp_path / "c", read_only=True, best_metric="z2", best_mode=None)
    assert reader.steps() == [1]
    with pytest.raises(ConfigError, match=r"'z2'.*set config\.checkpoint\.best_mode to 'min' or"):
        reader.best_step()


def test_what_a_broken_off_save_left_is_removed(tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    folder = tmp_path / "c"
    _saved(folder, steps=(1,)).close()
    left = folder / "2.orbax-checkpoint-tmp"
    (left / "state").mkdir(parents=True)
    Checkpointer(folder, read_only=True).close()
    assert left.is_dir()
    Checkpointer(folder).close()
    assert not left.exists()
    assert "interrupted" in caplog.text
