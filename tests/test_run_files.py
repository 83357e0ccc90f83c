"""The files of a run: whatever stands in their place, nothing good is lost and nothing hangs."""

import errno
import math
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_states import random_state
from test_compare import write_run

import hjepa_jax
from configs import quickstart
from hjepa_jax import checkpoint_files, config_check, sharding
from hjepa_jax.checkpoint import Checkpointer
from hjepa_jax.checkpoint_files import DamagedError, UnreadableError
from hjepa_jax.errors import CheckpointError, UserError
from hjepa_jax.evaluation.pictures import new_figure, save_figure
from hjepa_jax.evaluation.runs import load_result
from hjepa_jax.files import open_log, write_atomically
from hjepa_jax.run import open_split, prepare
from hjepa_jax.saved_run import check_replaceable, open_saved, saved_config
from hjepa_jax.sweep import SweepRun, check_commands
from hjepa_jax.train import data_identity, restore_or_init, save
from hjepa_jax.workdir_lock import WorkdirLock


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
    folder, write = tmp_path / "c", checkpoint_files.write_manifest

    def write_and_lose(temporary: pathlib.Path) -> None:
        if lost != "checksums.json":
            for path in temporary.glob(lost if lost in ("state", "meta") else f"state/{lost}"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            write(temporary)

    monkeypatch.setattr(checkpoint_files, "write_manifest", write_and_lose)
    with pytest.raises(CheckpointError, match=r"step 1 was saved in .* but cannot be read back"):
        Checkpointer(folder).save(1, _state(1.0), {"data": {}})


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

    monkeypatch.setattr(checkpoint_files, "write_manifest", fail)
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
        _replace(folder / name, kind)
    _replace(folder / "4.orbax-checkpoint-tmp-1", kind)
    assert _restored(folder, read_only=True) == 3
    checkpointer = Checkpointer(folder, keep_best=1)
    assert float(checkpointer.restore(_abstract())[0]["params"]["kernel"][0, 0]) == 3
    assert _save(checkpointer, 4, total=0.0).steps() == [2, 3, 4]
    checkpointer.close()
    assert _restored(folder, read_only=True) == 4


def _replace(path: pathlib.Path, kind: str) -> None:
    """Puts another kind of thing in the place of a file or folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    match kind:
        case "file":
            path.write_bytes(b"\x93 no JSON \x00")
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "broken link":
            path.symlink_to("nowhere")
        case "device":
            path.symlink_to("/dev/zero")
        case _:
            path.write_text(kind)


DEEP = "[" * 100_000
DAMAGES = ["file", "folder", "pipe", "broken link", "device", "", "[]", "3", '{"total": "x"}']
DAMAGES += ['{"total": {}}', DEEP, '{"total": 1e999}']


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda text: text[:12])
def test_damaged_metrics_cost_the_rank_and_not_the_state(damage, tmp_path, caplog) -> None:
    folder = tmp_path / "c"
    _save(Checkpointer(folder, keep_best=1), 2, 3, total=0.0).close()
    _replace(folder / "2" / "metrics" / "metrics", damage)
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
    _replace(folder / "3" / "metrics" / "metrics", damage)
    with pytest.raises(CheckpointError, match=r"not known which checkpoint .* is best"):
        reader.best_step()


class _Failing:
    """Makes opening files of a name fail a number of times."""

    def __init__(self, monkeypatch, name: str, times: float, number: int = errno.EIO):
        self._open, self.left = os.open, times
        self._name, self._number = name, number
        monkeypatch.setattr(checkpoint_files, "_RETRY_SECONDS", (0.0, 0.0, 0.0))
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
        words = "Nothing says that the checkpoint is damaged"
        with pytest.raises(CheckpointError, match=words):
            checkpointer.restore(_abstract())
        with pytest.raises(UnreadableError, match=os.strerror(number)):
            checkpoint_files.verify(folder / "3")
    checkpointer.close()
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]
    assert _restored(folder, read_only=True) == 3


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


@pytest.mark.parametrize("damage", ["file", "folder", "pipe", "[]", "{}", DEEP, '{"format": 1}'])
def test_a_manifest_of_another_kind_is_damage(damage, tmp_path) -> None:
    _save(Checkpointer(tmp_path / "c"), 1).close()
    _replace(tmp_path / "c" / "1" / "checksums.json", damage)
    with pytest.raises(DamagedError, match=r"checksums\.json"):
        checkpoint_files.verify(tmp_path / "c" / "1")


@pytest.mark.parametrize("kind", ["file", "pipe", "broken link", "device"])
def test_checkpoints_that_are_no_folder_are_a_sentence(kind, tmp_path) -> None:
    _replace(tmp_path / "checkpoints", kind)
    with pytest.raises(CheckpointError, match=r"checkpoints is no folder"):
        Checkpointer(tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match=r"holds no checkpoints"):
        open_saved(quickstart.get_config("smoke"), tmp_path)


def test_the_lock_overwrites_no_other_file(tmp_path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("all of it")
    lock = tmp_path / "run" / "lock"
    lock.parent.mkdir()
    for make, words in (
        (lambda: lock.symlink_to(precious), "a symbolic link"),
        (lambda: lock.symlink_to("nowhere"), "a symbolic link"),
        (lambda: lock.hardlink_to(precious), "a hard link to another file"),
        (lambda: os.mkfifo(lock), "a named pipe"),
        (lock.mkdir, "a folder"),
    ):
        make()
        with pytest.raises(CheckpointError, match=f"lock is {words}"):
            WorkdirLock(lock.parent).__enter__()
        assert not (lock.parent / "nowhere").exists()
        shutil.rmtree(lock) if lock.is_dir() else lock.unlink()
    assert precious.read_text() == "all of it"


def test_a_workdir_deleted_under_a_run_is_not_written_again(tmp_path) -> None:
    run = tmp_path / "run"
    with WorkdirLock(run) as lock:
        lock.check()
        (run / "lock").unlink()
        lock.check()
        with pytest.raises(CheckpointError, match=r"process \d+ on"):
            WorkdirLock(run).__enter__()
        run.rename(tmp_path / "moved")
        with pytest.raises(CheckpointError, match="was deleted, moved or replaced"):
            lock.check()
        with WorkdirLock(run), pytest.raises(CheckpointError, match="deleted, moved or replaced"):
            lock.check()
        shutil.rmtree(run)
        (tmp_path / "moved").rename(run)
        lock.check()
        # Somebody deletes the lock and starts another run.
        (run / "lock").unlink()
        with WorkdirLock(run), pytest.raises(CheckpointError, match=r"process \d+ on"):
            lock.check()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A smoke run with checkpoints of steps 1 and 2, of random numbers, and how to resume it."""
    config, workdir = quickstart.get_config("smoke"), tmp_path_factory.mktemp("run") / "run"
    source = open_split(config, "train")
    prepared = prepare(config, len(source), sharding.data_mesh())
    identity = data_identity(config, source)
    checkpointer = Checkpointer(workdir / "checkpoints")
    config_check.save(config, workdir)
    for step in (1, 2):
        save(config, identity, [], jax.device_put(random_state(prepared, step)), checkpointer)
    checkpointer.close()
    return config, prepared, identity, workdir


CONFIGS = ["file", "folder", "pipe", "device", "", "[]", "3", "null", DEEP, '{"seed": "x"}']
CONFIGS += ['{"data": 3}', '{"data": {"mean": 3}}', '{"modle": {}}', '{"data": {"data": {}}}']
CONFIGS += ['{"seed": {"a": 1}}', '{"model": {"stage_blocks": "abc"}}']


@pytest.mark.parametrize("damage", CONFIGS, ids=lambda text: text[:30])
def test_a_configuration_that_does_not_fit_is_a_sentence(damage, run, tmp_path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run[-1], copy)
    _replace(copy / "config.json", damage)
    for read in (saved_config, hjepa_jax.load):
        with pytest.raises(CheckpointError, match=r"config\.json cannot be read: .*"):
            read(copy)
    if damage == "folder":
        with pytest.raises(CheckpointError, match="is a folder where a file is written"):
            check_replaceable(copy)


METAS = ["", "[]", "{}", '{"data": 3}', '{"data": {"step": "x"}}', '{"data": {"skipped": [-1]}}']
METAS += ['{"data": {"num_images": 0}}', '{"data": {}, "config": 5}', DEEP]


@pytest.mark.parametrize("damage", METAS, ids=lambda text: text[:30])
def test_meta_of_another_structure_gives_way_to_the_previous(damage, run, tmp_path) -> None:
    """Also where its checksum was made to fit."""
    config, prepared, identity, workdir = run
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    step = copy / "checkpoints" / "2"
    (step / "meta" / "metadata").write_text(damage)
    (step / "checksums.json").unlink()
    checkpoint_files.write_manifest(step)
    assert hjepa_jax.load(copy).step == 1
    checkpointer = Checkpointer(copy / "checkpoints")
    state, skipped = restore_or_init(prepared, checkpointer, config, identity)
    checkpointer.close()
    assert (int(state.step), skipped) == (1, [])
    wanted = random_state(prepared, 1)
    assert jax.tree.all(jax.tree.map(np.array_equal, state.params, wanted.params))
    assert (copy / "checkpoints" / "2.damaged").is_dir()


@pytest.mark.parametrize("text", ["[", '{"seed": "x"}', '{"objectiv": 1}', DEEP, "[]"])
def test_a_configuration_in_the_meta_that_does_not_fit_is_a_sentence(text, run) -> None:
    config, prepared, identity, workdir = run

    class Crafted(Checkpointer):
        def restore(self, *arguments):
            state, meta = super().restore(*arguments)
            return state, {**meta, "config": text}

    checkpointer = Crafted(workdir / "checkpoints", read_only=True)
    with pytest.raises(CheckpointError, match=r"the configuration in the checkpoint of .* cannot"):
        restore_or_init(prepared, checkpointer, config, identity)


@pytest.mark.parametrize("damage", ["file", "folder", "pipe", "broken link", "[", "[3]", DEEP])
def test_a_compared_run_whose_files_are_damaged_is_a_sentence(damage, tmp_path) -> None:
    workdir = write_run(tmp_path, "one", seed=0, knn=0.8)
    assert load_result(workdir, tmp_path / "eval").config["seed"] == 0
    (events,) = workdir.glob("events.*")
    config = (workdir / "config.json").read_text()
    _replace(workdir / "config.json", damage)
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load_result(workdir, tmp_path / "eval")
    _replace(workdir / "config.json", config)
    if damage in ("folder", "pipe", "broken link"):
        _replace(events, damage)
        with pytest.raises(UserError, match=r"events\.out.* (cannot be read|is damaged)"):
            load_result(workdir, tmp_path / "eval")


@pytest.mark.parametrize("damage", ["file", "folder", "pipe", "[]", '{"a": 3}', '{"a": [3]}'])
def test_a_sweep_whose_record_is_damaged_is_a_sentence(damage, tmp_path) -> None:
    runs = [SweepRun("a", "g", ("--seed=1",))]
    check_commands(runs, tmp_path)
    check_commands(runs, tmp_path)
    _replace(tmp_path / "commands.json", damage)
    with pytest.raises(UserError, match=r"commands\.json cannot be read"):
        check_commands(runs, tmp_path)


def test_what_we_write_never_goes_through_a_link(tmp_path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("all of it")
    for name in ("config.json", "failure.json", "log.txt", "map.png"):
        (tmp_path / name).symlink_to(precious)
    config_check.save(quickstart.get_config("smoke"), tmp_path)
    write_atomically(tmp_path / "failure.json", "{}")
    save_figure(new_figure(1.0, 1.0), tmp_path / "map.png")
    with pytest.raises(UserError, match=r"log\.txt cannot be appended to \(it is a link\)"):
        open_log(tmp_path / "log.txt")
    assert precious.read_text() == "all of it"
    assert saved_config(tmp_path).seed == 42
    assert (tmp_path / "map.png").read_bytes()[1:4] == b"PNG"
    for number, kind in enumerate(("pipe", "folder")):
        _replace(tmp_path / f"log-{number}", kind)
        with pytest.raises(UserError, match="cannot be appended to"):
            open_log(tmp_path / f"log-{number}")
    for text in (b"one ", b"two"):
        with open_log(tmp_path / "log") as file:
            file.write(text)
    assert (tmp_path / "log").read_bytes() == b"one two"
