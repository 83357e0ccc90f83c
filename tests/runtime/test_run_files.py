"""The files of a run: whatever stands in their place is a sentence, and nothing hangs."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from odd_files import DEEP, replace
from random_states import random_state

import hjepa_jax
from hjepa_jax.config import files
from hjepa_jax.config.checks import typed
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import CheckpointError, UserError
from hjepa_jax.evaluate import restore
from hjepa_jax.evaluation.compare.runs import load_result
from hjepa_jax.evaluation.report.figures import new_figure, save_figure
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.runtime.workdir_lock import WorkdirLock
from hjepa_jax.storage import checksums
from hjepa_jax.storage.files import open_log, write_atomically
from hjepa_jax.tools.sweep import SweepRun, check_commands
from hjepa_jax.training.prepare import prepare
from hjepa_jax.training.resume import data_identity, restore_or_init, save
from hjepa_jax.training.saved_run import check_replaceable, saved_config
from tests.evaluation.compare.test_compare import write_run


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
    settings = typed(config)
    source = open_split(settings, "train")
    prepared = prepare(settings, len(source), sharding.data_mesh())
    identity = data_identity(settings.data, settings.seed, source)
    checkpointer = Checkpointer(workdir / "checkpoints")
    files.save(settings, workdir)
    for step in (1, 2):
        save(settings, identity, [], jax.device_put(random_state(prepared, step)), checkpointer)
    checkpointer.close()
    return config, prepared, identity, workdir


CONFIGS = ["file", "folder", "pipe", "device", "", "[]", "3", "null", DEEP, '{"seed": "x"}']
CONFIGS += ['{"data": 3}', '{"data": {"mean": 3}}', '{"modle": {}}', '{"data": {"data": {}}}']
CONFIGS += ['{"seed": {"a": 1}}', '{"model": {"stage_blocks": "abc"}}']


@pytest.mark.parametrize("damage", CONFIGS, ids=lambda text: text[:30])
def test_a_configuration_that_does_not_fit_is_a_sentence(damage, run, tmp_path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run[-1], copy)
    replace(copy / "config.json", damage)
    for read in (saved_config, hjepa_jax.load):
        with pytest.raises(CheckpointError, match=r"config\.json cannot be read: .*"):
            read(copy)
    if damage == "folder":
        with pytest.raises(CheckpointError, match="is a folder where a file is written"):
            check_replaceable(copy)


@pytest.mark.parametrize(
    ("field", "value"), [("dynamics.dt", 0.06), ("data.mean", [0.4, 0.4, 0.4]), ("seed", 43)]
)
def test_a_configuration_that_the_checkpoint_does_not_confirm_is_refused(
    field, value, run, tmp_path
) -> None:
    """One that is read well, and differs in a number from what the run was trained with."""
    config, prepared, _, workdir = run
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    content = json.loads((copy / "config.json").read_text())
    section, _, name = field.rpartition(".")
    (content[section] if section else content)[name] = value
    (copy / "config.json").write_text(json.dumps(content))
    words = rf"config\.json does not belong to the run .*config\.{field} \("
    with pytest.raises(CheckpointError, match=words):
        hjepa_jax.load(copy)
    with pytest.raises(CheckpointError, match=words):
        restore(typed(config), prepared, copy)
    # What a resumed run may change is no matter of the checkpoint.
    content = json.loads((workdir / "config.json").read_text())
    content["data"]["cache_mb"] = 1
    (copy / "config.json").write_text(json.dumps(content))
    assert hjepa_jax.load(copy).step == 2


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
    checksums.write_manifest(step)
    assert hjepa_jax.load(copy).step == 1
    checkpointer = Checkpointer(copy / "checkpoints")
    state, skipped, _ = restore_or_init(prepared, checkpointer, typed(config), identity)
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
        restore_or_init(prepared, checkpointer, typed(config), identity)


@pytest.mark.parametrize("damage", ["file", "folder", "pipe", "broken link", "[", "[3]", DEEP])
def test_a_compared_run_whose_files_are_damaged_is_a_sentence(damage, tmp_path) -> None:
    workdir = write_run(tmp_path, "one", seed=0, knn=0.8)
    assert load_result(workdir, tmp_path / "eval").config["seed"] == 0
    config = (workdir / "config.json").read_text()
    replace(workdir / "config.json", damage)
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load_result(workdir, tmp_path / "eval")
    replace(workdir / "config.json", config)
    if damage in ("folder", "pipe", "broken link"):
        replace(workdir / "metrics.jsonl", damage)
        with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read"):
            load_result(workdir, tmp_path / "eval")


@pytest.mark.parametrize("damage", ["file", "folder", "pipe", "[]", '{"a": 3}', '{"a": [3]}'])
def test_a_sweep_whose_record_is_damaged_is_a_sentence(damage, tmp_path) -> None:
    runs = [SweepRun("a", "g", ("--seed=1",))]
    check_commands(runs, tmp_path)
    check_commands(runs, tmp_path)
    replace(tmp_path / "commands.json", damage)
    with pytest.raises(UserError, match=r"commands\.json cannot be read"):
        check_commands(runs, tmp_path)


def test_what_we_write_never_goes_through_a_link(tmp_path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("all of it")
    for name in ("config.json", "failure.json", "log.txt", "map.png"):
        (tmp_path / name).symlink_to(precious)
    files.save(typed(quickstart.get_config("smoke")), tmp_path)
    write_atomically(tmp_path / "failure.json", "{}")
    save_figure(new_figure(1.0, 1.0), tmp_path / "map.png")
    with pytest.raises(UserError, match=r"log\.txt cannot be appended to \(it is a link\)"):
        open_log(tmp_path / "log.txt")
    assert precious.read_text() == "all of it"
    assert saved_config(tmp_path).seed == 42
    assert (tmp_path / "map.png").read_bytes()[1:4] == b"PNG"
    for number, kind in enumerate(("pipe", "folder")):
        replace(tmp_path / f"log-{number}", kind)
        with pytest.raises(UserError, match="cannot be appended to"):
            open_log(tmp_path / f"log-{number}")
    for text in (b"one ", b"two"):
        with open_log(tmp_path / "log") as file:
            file.write(text)
    assert (tmp_path / "log").read_bytes() == b"one two"
