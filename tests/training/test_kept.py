"""Checkpoints at regular intervals: saved when due, kept for good, and announced."""

import dataclasses
import pathlib
import shutil
import types
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from hjepa_jax.config import resolve, steps_in_epochs
from hjepa_jax.config.checks import typed
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import ConfigError
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime import checkpoint_files, sharding
from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.storage.checksums import verify
from hjepa_jax.train import _Session, train
from hjepa_jax.training.announcement import disk_space, summary
from hjepa_jax.training.prepare import prepare
from hjepa_jax.training.resume import DataIdentity, kept_intervals, open_checkpoints, save
from tests.evaluation.test_monitor import prepare_without_step

# Steps of an epoch of the smoke run.
EPOCH = 4


def smoke(steps: int, **fields):
    """The smoke run with a number of steps, which saves once per epoch unless told otherwise."""
    config = quickstart.get_config("smoke")
    config.train.update(epochs=steps // EPOCH + 1, max_steps=steps)
    config.checkpoint.update({"keep_last": 1, **fields})
    return config


class State(NamedTuple):
    """A training state as far as it is saved here."""

    step: np.ndarray


def saved(workdir: pathlib.Path, steps, **fields) -> list[int]:
    """Opens a run with some fields, saves steps, and returns those on disk."""
    settings = typed(smoke(40, **fields))
    identity: DataIdentity = {
        "seed": 0,
        "num_images": 16 * EPOCH,
        "batch_size": 16,
        "fingerprint": "x",
    }
    checkpointer = open_checkpoints(settings, workdir, EPOCH)
    for step in steps:
        state: Any = State(np.asarray(step))
        save(settings, identity, [], state, checkpointer, {"total": 1.0})
    checkpointer.close()
    return checkpoint_files.steps(workdir / "checkpoints")


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({}, [12]),
        ({"keep_every_steps": 3}, [3, 6, 9, 12]),
        ({"keep_every_epochs": 0.5, "keep_last": 2}, [2, 4, 6, 8, 10, 11, 12]),
        ({"keep_every_epochs": 2.0, "keep_every_steps": 5}, [5, 8, 10, 12]),
        ({"keep_every_steps": 100}, [12]),
        # All are equally good, so the newest are the best.
        ({"keep_every_steps": 5, "keep_best": 2}, [5, 10, 11, 12]),
    ],
)
def test_what_is_kept_of_all_steps(tmp_path, fields, steps) -> None:
    assert saved(tmp_path, range(1, 13), **fields) == steps


def test_another_interval_deletes_nothing_that_was_kept(tmp_path) -> None:
    assert saved(tmp_path, range(1, 8), keep_every_steps=2) == [2, 4, 6, 7]
    assert saved(tmp_path, range(8, 11), keep_every_steps=3) == [2, 4, 6, 9, 10]
    # Those that were merely the newest go; 6 and 9 were promised by different intervals.
    assert saved(tmp_path, [11, 12]) == [2, 4, 6, 9, 12]
    assert saved(tmp_path, [13], keep_every_epochs=1.0) == [2, 4, 6, 9, 12, 13]


def test_what_cannot_tell_its_interval_is_not_promised(tmp_path) -> None:
    """A checkpoint whose record is damaged, or that another program wrote."""
    assert saved(tmp_path, [2, 4, 6], keep_every_steps=2) == [2, 4, 6]
    folder = tmp_path / "checkpoints"
    (folder / "2" / "meta" / "metadata").write_text("{")
    (folder / "4" / "meta" / "metadata").write_text('{"data": {"step": 4}}')
    # Nothing is deleted before there is something newer.
    assert saved(tmp_path, []) == [2, 4, 6]
    assert saved(tmp_path, [7]) == [6, 7]


def test_a_checkpoint_is_due_at_every_interval() -> None:
    def due(**fields) -> list[int]:
        config = smoke(13, **fields)
        config.log.every_steps = 100
        session: Any = types.SimpleNamespace(
            settings=typed(config),
            run=types.SimpleNamespace(
                num_steps=13, method=types.SimpleNamespace(steps_per_epoch=EPOCH)
            ),
            monitor=types.SimpleNamespace(is_due=lambda _: False),
            first=0,
            end=13,
            is_written=lambda _: False,
        )
        return [step for step in range(1, 14) if _Session.due(session, step)[1]]

    assert due() == [4, 8, 12, 13]
    assert due(every_steps=6) == [6, 12, 13]
    assert due(every_steps=6, keep_every_steps=5) == [5, 6, 10, 12, 13]
    assert due(keep_every_epochs=1.5, keep_every_steps=7) == [4, 6, 7, 8, 12, 13]


def test_a_run_keeps_and_announces_them(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("hjepa_jax.train.prepare", prepare_without_step)
    config = smoke(11, keep_every_steps=5, keep_every_epochs=2.0, every_steps=3)
    workdir = tmp_path / "run"
    train(config, workdir)
    folder = workdir / "checkpoints"
    assert checkpoint_files.steps(folder) == [5, 8, 10, 11]
    for step in (5, 8, 10, 11):
        verify(folder / str(step))
    settings = typed(config)
    source = open_split(settings, "train")
    run = prepare(settings, len(source), sharding.data_mesh())
    told = summary(settings, run, source, workdir, first=0, changes=())["folder"]
    assert "those of every 5 and 8 steps are kept, 3 of them, about " in told
    value, unit = told.rpartition("about ")[2].split()
    state, _ = Checkpointer(folder, read_only=True).restore(run.abstract_state)
    arrays = sum(array.nbytes for array in jax.tree.leaves(state))
    assert float(value) * {"kB": 1e3}[unit] == pytest.approx(3 * arrays, rel=0.01)
    plain = run._replace(setup=dataclasses.replace(run.setup, settings=typed(smoke(11))))
    told = summary(settings, plain, source, workdir, first=0, changes=())["folder"]
    assert "kept" not in told


def test_an_epoch_is_rounded_to_whole_steps() -> None:
    assert [steps_in_epochs(epochs, 97) for epochs in (1.0, 0.5, 2.5, 0.001)] == [97, 48, 242, 1]
    checkpoint = typed(smoke(8, keep_every_epochs=3.0, keep_every_steps=7)).checkpoint
    assert kept_intervals(checkpoint, 10) == (7, 30)
    for field in ("keep_every_epochs", "keep_every_steps"):
        with pytest.raises(ConfigError, match=f"checkpoint.{field}.*above 0"):
            resolve(smoke(8, **{field: 0}))


def test_too_little_space_is_a_sentence_before_training(tmp_path, monkeypatch) -> None:
    state = types.SimpleNamespace(size=250, dtype=np.dtype(np.float32))
    run: Any = types.SimpleNamespace(
        settings=typed(smoke(40, keep_every_steps=10, keep_last=2)),
        method=types.SimpleNamespace(steps_per_epoch=EPOCH),
        num_steps=40,
        abstract_state=[state],
    )

    def free(count: int) -> None:
        found = types.SimpleNamespace(free=count)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: found)

    # Four are kept; two newest, and one that is written before the oldest goes.
    free(7000)
    assert not list(disk_space(run, tmp_path))
    free(6999)
    (sentence,) = disk_space(run, tmp_path)
    assert sentence.startswith("7 more checkpoints will take about 7.0 kB, but only 7.0 kB are")
    assert str(tmp_path) in sentence
    # Of a resumed run only what is to come counts.
    for step in (10, 20, 28, 30):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    free(2000)
    assert not list(disk_space(run, tmp_path, 30))
    free(0)
    (sentence,) = disk_space(run, tmp_path, 30)
    assert sentence.startswith("2 more checkpoints")
    (sentence,) = disk_space(run, tmp_path, 39)
    assert sentence.startswith("1 more checkpoint ")
    assert not list(disk_space(run, tmp_path, 40))
