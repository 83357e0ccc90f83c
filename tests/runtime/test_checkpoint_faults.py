"""Checkpoints under odd names, strays, damage and failing disks: what is good stays usable."""

import errno
import json
import math
import os
import pathlib
import shutil
import time

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from odd_files import DEEP, replace
from orbax.checkpoint._src.metadata.checkpoint import _MetadataStoreImpl

from hjepa_jax.config.checks import typed
from hjepa_jax.errors import CheckpointError
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime import checkpoint_files
from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.storage import checksums
from hjepa_jax.storage.checksums import UnreadableError
from hjepa_jax.training.saved_run import open_saved


def _state(value: float):
    return {"params": {"kernel": jnp.full((3, 4), value)}, "step": jnp.asarray(7, jnp.int32)}


def _abstract():
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _state(0.0)
    )


def _save(checkpointer: Checkpointer, *steps: int, **metrics: float) -> Checkpointer:
    for step in steps:
        scores = {name: value + step for name, value in metrics.items()}
        checkpointer.save(step, _state(float(step)), {"data": {"step": step}}, scores)
    checkpointer.wait()
    return checkpointer


def _restored(folder: pathlib.Path, **options) -> float:
    return float(Checkpointer(folder, **options).restore(_abstract())[0]["params"]["kernel"][0, 0])


@pytest.mark.parametrize("name", ["a[1]b", "[...]", "[!a]/x", "a*b", "a?b", "**", "a b%23#\n"])
def test_a_folder_whose_name_is_a_pattern_holds_checkpoints(name, tmp_path) -> None:
    # What the pattern would match must not be taken for it.
    _save(Checkpointer(tmp_path / "axb" / "checkpoints"), 9).close()
    folder = tmp_path / name / "checkpoints"
    _save(Checkpointer(folder), 1, 2).close()
    assert Checkpointer(folder, read_only=True).steps() == [1, 2]
    assert _restored(folder, read_only=True) == 2


@pytest.mark.parametrize("name", ["a\\b", "\\", "a\udcff"])
def test_a_folder_that_cannot_hold_checkpoints_is_refused_before_a_save(name, tmp_path) -> None:
    with pytest.raises(ValueError, match="below which checkpoints cannot be found again"):
        Checkpointer(tmp_path / name / "checkpoints")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lost", ["d/*", "manifest.ocdbt", "state", "meta", "checksums.json"])
def test_what_the_first_save_left_is_read_back(lost, tmp_path, monkeypatch) -> None:
    folder, write = tmp_path / "c", checksums.write_manifest

    def write_and_lose(temporary: pathlib.Path) -> None:
        if lost != "checksums.json":
            for path in temporary.glob(lost if lost in ("state", "meta") else f"state/{lost}"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            write(temporary)

    monkeypatch.setattr(checksums, "write_manifest", write_and_lose)
    with pytest.raises(CheckpointError, match=r"step 1 was saved in .* but cannot be read back"):
        Checkpointer(folder).save(1, _state(1.0), {"data": {}})


def test_a_slow_disk_makes_no_good_checkpoint_look_damaged(tmp_path, monkeypatch) -> None:
    """Orbax writes a step's metadata in a thread, which may come after the checksums were taken."""
    update = _MetadataStoreImpl.update

    def slow(self, *arguments, **named):
        time.sleep(0.2)
        update(self, *arguments, **named)

    monkeypatch.setattr(_MetadataStoreImpl, "update", slow)
    _save(Checkpointer(tmp_path / "c"), 1, 2).close()
    for step in ("1", "2"):
        checksums.verify(tmp_path / "c" / step)
    content = json.loads((tmp_path / "c" / "2" / "checksums.json").read_text())
    assert content["checksums"]["metadata"] is not None


def test_a_later_save_that_left_nothing_is_seen(tmp_path) -> None:
    checkpointer = _save(Checkpointer(tmp_path / "c"), 1)
    checkpointer.save(2, _state(2.0), {})
    checkpointer._manager.wait_until_finished()
    shutil.rmtree(tmp_path / "c" / "2")
    with pytest.raises(CheckpointError, match=r"step 2 was saved .*checksums.json is missing"):
        checkpointer.wait()


def test_a_save_that_fails_and_cannot_be_tidied_is_a_sentence(tmp_path, monkeypatch) -> None:
    checkpointer = _save(Checkpointer(tmp_path / "c"), 1)
    failing = OSError(errno.EIO, os.strerror(errno.EIO))

    def fail(*_: object) -> None:
        raise failing

    monkeypatch.setattr(checksums, "write_manifest", fail)
    monkeypatch.setattr(checkpoint_files, "remove_incomplete", fail)
    checkpointer.save(2, _state(2.0), {})
    with pytest.raises(CheckpointError, match=r"step 2 could not be saved .* intact: \[1\]"):
        checkpointer.wait()


STRAYS = ("a.txt", "3.damaged", "2~", "7", "٣", "3\n", "007", "metadata", ".DS_Store", "9" * 30)


@pytest.mark.parametrize("kind", ["file", "folder", "pipe", "broken link", "device"])
def test_strays_make_no_good_step_unreadable(kind, tmp_path) -> None:
    folder = tmp_path / "c"
    _save(Checkpointer(folder, keep_best=1), 2, 3, total=0.0).close()
    for name in STRAYS:
        replace(folder / name, kind)
    replace(folder / "4.orbax-checkpoint-tmp-1", kind)
    assert _restored(folder, read_only=True) == 3
    checkpointer = Checkpointer(folder, keep_best=1)
    assert float(checkpointer.restore(_abstract())[0]["params"]["kernel"][0, 0]) == 3
    assert _save(checkpointer, 4, total=0.0).steps() == [2, 3, 4]
    checkpointer.close()
    assert _restored(folder, read_only=True) == 4


DAMAGES = ["file", "folder", "pipe", "broken link", "device", "", "[]", "3", '{"total": "x"}']
DAMAGES += ['{"total": {}}', DEEP, '{"total": 1e999}']


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda text: text[:12])
def test_damaged_metrics_cost_the_rank_and_not_the_state(damage, tmp_path, caplog) -> None:
    folder = tmp_path / "c"
    _save(Checkpointer(folder, keep_best=1), 2, 3, total=0.0).close()
    replace(folder / "2" / "metrics" / "metrics", damage)
    reader = Checkpointer(folder, read_only=True)
    assert reader.best_step() == 3
    assert _restored(folder, read_only=True) == 3
    checkpointer = Checkpointer(folder, keep_last=1, keep_best=1)
    assert "the metrics of checkpoint" in caplog.text
    assert "it ranks last" in caplog.text
    assert checkpointer.steps() == [2, 3]
    assert float(checkpointer.restore(_abstract(), 2)[0]["params"]["kernel"][0, 0]) == 2
    # The one without a rank is the first to go.
    assert _save(checkpointer, 4, total=9.0).steps() == [3, 4]
    checkpointer.close()
    shutil.rmtree(folder / "4")
    replace(folder / "3" / "metrics" / "metrics", damage)
    with pytest.raises(CheckpointError, match=r"the best checkpoint .* is unknown"):
        reader.best_step()


class _Failing:
    """Makes opening files of a name fail a number of times."""

    def __init__(self, monkeypatch, name: str, times: float, number: int = errno.EIO):
        self._open, self.left = os.open, times
        self._name, self._number = name, number
        monkeypatch.setattr(checksums, "_RETRY_SECONDS", (0.0, 0.0, 0.0))
        monkeypatch.setattr(os, "open", self.open)
        read = pathlib.Path.open

        def opened(path: pathlib.Path, *arguments, **named):
            self.check(path)
            return read(path, *arguments, **named)

        monkeypatch.setattr(pathlib.Path, "open", opened)

    def open(self, path, *arguments, **named):
        self.check(path)
        return self._open(path, *arguments, **named)

    def check(self, path) -> None:
        if self.left and str(path).endswith(self._name):
            self.left -= 1
            raise OSError(self._number, os.strerror(self._number))


FILES = ("3/checksums.json", "3/meta/metadata", "3/state/_METADATA", "3/_CHECKPOINT_METADATA")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_what_cannot_be_read_for_a_moment_is_not_damaged(
    name, number, tmp_path, monkeypatch
) -> None:
    folder = tmp_path / "c"
    _save(Checkpointer(folder), 2, 3).close()
    checkpointer = Checkpointer(folder)
    with monkeypatch.context() as patch:
        failing = _Failing(patch, name, 2, number)
        assert float(checkpointer.restore(_abstract())[0]["params"]["kernel"][0, 0]) == 3
        assert failing.left == 0
    with monkeypatch.context() as patch:
        _Failing(patch, name, math.inf, number)
        words = "The checkpoint may be intact"
        with pytest.raises(CheckpointError, match=words):
            checkpointer.restore(_abstract())
        with pytest.raises(UnreadableError, match=os.strerror(number)):
            checksums.verify(folder / "3")
    checkpointer.close()
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]
    assert _restored(folder, read_only=True) == 3


@pytest.mark.parametrize("times", [2, math.inf])
@pytest.mark.parametrize("text", [os.strerror(errno.EIO), os.strerror(errno.ESTALE)])
def test_arrays_that_cannot_be_read_for_a_moment_are_not_damaged(
    text, times, tmp_path, monkeypatch
) -> None:
    """TensorStore passes the system's message on as text."""
    folder = tmp_path / "c"
    _save(Checkpointer(folder), 2, 3).close()
    monkeypatch.setattr(checksums, "_RETRY_SECONDS", (0.0, 0.0, 0.0))
    read, failing = ocp.PyTreeCheckpointHandler.restore, [times]

    def restore(self, *arguments, **named):
        if failing[0]:
            failing[0] -= 1
            raise ValueError(f"DATA_LOSS: Error reading d/12ab: [OS error: {text}]")
        return read(self, *arguments, **named)

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", restore)
    checkpointer = Checkpointer(folder)
    if times == 2:
        assert float(checkpointer.restore(_abstract())[0]["params"]["kernel"][0, 0]) == 3
    else:
        with pytest.raises(CheckpointError, match="The checkpoint may be intact"):
            checkpointer.restore(_abstract())
    checkpointer.close()
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]


METADATA = ["file", "folder", "pipe", "device", "broken link", "[]", DEEP, '{"item_handlers": 3}']
METADATA += [{"commit_timestamp_nsecs": value} for value in ("x", -1, 1e300, 10**40, [])]
METADATA += [{"init_timestamp_nsecs": "x"}, {"performance_metrics": 3}]


@pytest.mark.parametrize("damage", METADATA, ids=lambda value: str(value)[:40])
def test_damaged_metadata_of_orbax_give_way_to_the_previous(damage, tmp_path) -> None:
    """Orbax reads them of every step before anything is restored."""
    folder = tmp_path / "c"
    _save(Checkpointer(folder), 2, 3).close()
    path = folder / "3" / "_CHECKPOINT_METADATA"
    if isinstance(damage, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    else:
        replace(path, damage)
    assert _restored(folder, read_only=True) == 2
    checkpointer = Checkpointer(folder)
    assert float(checkpointer.restore(_abstract())[0]["params"]["kernel"][0, 0]) == 2
    assert checkpointer.steps() == [2]
    checkpointer.close()


def test_damaged_steps_are_set_aside_beside_earlier_ones(tmp_path) -> None:
    folder = tmp_path / "c"
    _save(Checkpointer(folder), 2, 3).close()
    (folder / "3.damaged").write_text("somebody's notes")
    (folder / "3" / "state" / "_METADATA").unlink()
    checkpointer = Checkpointer(folder)
    assert float(checkpointer.restore(_abstract())[0]["params"]["kernel"][0, 0]) == 2
    assert (folder / "3.damaged").read_text() == "somebody's notes"
    assert (folder / "3.damaged-2" / "checksums.json").is_file()
    checkpointer.close()


def test_a_checkpoint_under_the_name_of_another_step_is_not_taken_for_it(tmp_path, caplog) -> None:
    folder = tmp_path / "c"
    _save(Checkpointer(folder), 1, 2).close()
    (folder / "1").rename(folder / "7")
    assert _restored(folder, read_only=True) == 2
    assert "the checkpoint of step 1 under another name" in caplog.text
    checkpointer = Checkpointer(folder)
    assert float(checkpointer.restore(_abstract())[0]["params"]["kernel"][0, 0]) == 2
    assert checkpointer.steps() == [2]
    checkpointer.close()


@pytest.mark.parametrize("kind", ["file", "pipe", "broken link", "device"])
def test_checkpoints_that_are_no_folder_are_a_sentence(kind, tmp_path) -> None:
    replace(tmp_path / "checkpoints", kind)
    with pytest.raises(CheckpointError, match=r"checkpoints is not a folder"):
        Checkpointer(tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match=r"holds no checkpoints"):
        open_saved(typed(quickstart.get_config("smoke")), tmp_path)
