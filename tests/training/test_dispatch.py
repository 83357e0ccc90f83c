"""Several steps in one call are the steps one by one: states, logs, failures, stops, resumption."""

import functools
import logging
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from event_files import read_events
from image_files import data_config

import hjepa_jax.train
from hjepa_jax.config.checks import typed
from hjepa_jax.config.files import save as save_settings
from hjepa_jax.data.batches import BatchMaker
from hjepa_jax.data.prefetch import WaitTimer
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import TrainingError
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime import progress, sharding
from hjepa_jax.runtime.progress import ProgressDisplay, SaveClock
from hjepa_jax.runtime.stop_request import RunStopped, StopRequest
from hjepa_jax.storage.metrics_file import read_metrics
from hjepa_jax.tools.kill_test import (
    checkpoint_steps,
    differing_arrays,
    differing_metrics,
    final_state,
)
from hjepa_jax.train import open_stream, train
from hjepa_jax.training.feed import (
    dispatch_lengths,
    dispatches,
    last_metrics,
    resident_images,
    steps_per_dispatch,
)
from hjepa_jax.training.prepare import prepare, train_steps
from tests.faults.test_nonfinite import Poisoned

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_dispatches_end_where_something_is_due() -> None:
    def lengths(first: int, last: int, most: int, *ends: int) -> list[int]:
        return list(dispatch_lengths(first, last, most, ends.__contains__))

    assert lengths(0, 7, 3) == [3, 3, 1]
    # A log line after step 1, and after each fifth.
    assert lengths(0, 11, 4, 1, 5, 10, 11) == [1, 4, 4, 1, 1]
    # What is due at the end of a dispatch does not cut it; resumption anywhere.
    assert lengths(2, 11, 4, 1, 5, 10, 11) == [1, 1, 1, 4, 1, 1]
    assert lengths(3, 3, 4) == []
    assert lengths(0, 3, 1, 2) == [1, 1, 1]


def test_several_steps_are_for_accelerators_that_keep_the_images(monkeypatch) -> None:
    train_section, images = quickstart_settings().train, {"resident_images": np.zeros(1)}
    assert steps_per_dispatch(train_section, images) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert steps_per_dispatch(train_section, images) == 8
    assert steps_per_dispatch(train_section, {}) == 1
    asked = quickstart_settings(**{"train.steps_per_dispatch": 3}).train
    assert steps_per_dispatch(asked, {}) == 3


def quickstart_settings(**fields):
    config = quickstart.get_config("smoke")
    config.update_from_flattened_dict(fields)
    return typed(config)


def test_a_stream_that_ends_early_leaves_out_what_is_not_complete() -> None:
    batches = [{"label": np.full(4, number)} for number in range(5)]
    data, mesh = typed(data_config()).data, sharding.data_mesh()
    shared = {"resident_images": jax.numpy.zeros(1)}
    found = list(dispatches(iter(batches), [1, 3, 3], mesh, shared, data, WaitTimer()))
    assert [each.steps for each in found] == [1, 3]
    np.testing.assert_array_equal(found[0].batch["label"], [0] * 4)
    np.testing.assert_array_equal(found[1].batch["label"], [[1] * 4, [2] * 4, [3] * 4])
    assert all(each.batch["resident_images"] is shared["resident_images"] for each in found)


def test_the_scan_of_accelerators_takes_the_same_steps() -> None:
    """Up to rounding, which depends on the compiler's fusions."""
    fields = {"data.backend": "device", "train.accumulation": 2, "evaluation.online_probe": True}
    # Otherwise Adam moves by its rate, however small the gradient: its rounding error as well.
    fields["train.adam_eps"] = 0.1
    settings = quickstart_settings(**fields)
    source, mesh = open_split(settings, "train"), sharding.data_mesh()
    run = prepare(settings, len(source), mesh, 10)
    resident = resident_images(settings.data, source, mesh)
    make = BatchMaker(settings.data, settings.seed, source)
    batches = [make(step)[0] for step in range(3)]
    state, totals = run.init(), []
    for batch in batches:
        state, metrics = run.step(state, sharding.put_batch(mesh, batch) | resident)
        totals.append(float(metrics["total"]))
    stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    scan = jax.jit(functools.partial(train_steps, run.setup, mesh=mesh))
    placed = sharding.put_batch(mesh, stacked, stacked=True) | resident
    found, metrics = scan(run.init(), placed)
    np.testing.assert_allclose(metrics["total"], totals, rtol=1e-5)
    assert int(found.step) == 3
    for one, other in zip(*map(jax.tree.leaves, (found, state)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert last_metrics(metrics)["total"] == metrics["total"][2]
    exact, told = run.steps(run.init(), placed)
    assert told["total"].tolist() == [np.float32(total) for total in totals]
    assert differing_arrays(jax.device_get(state), jax.device_get(exact)) == []


def test_devices_that_keep_the_images_train_as_one_does() -> None:
    """Two by single steps and by several, and eight by the scan of accelerators."""
    done = in_a_process("dispatch_on_devices.py", JAX_NUM_CPU_DEVICES="8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the devices agree" in done.stdout


def in_a_process(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Runs a file of tests/support."""
    return subprocess.run(
        [sys.executable, f"tests/support/{name}", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def config_of(together: int, **fields):
    config = quickstart.get_config("smoke")
    config.data.backend = "device"
    config.train.update(max_steps=11, epochs=3, steps_per_dispatch=together)
    config.dynamics.update(reversible=True, steps=3)
    config.log.every_steps, config.checkpoint.every_steps = 5, 4
    config.checkpoint.keep_last = 9
    config.update_from_flattened_dict(fields)
    return config


def logged(workdir) -> list[tuple[int, str, float]]:
    """Everything in the events but times, (step, name, value)."""
    found = []
    for path in workdir.glob("events.out.tfevents.*"):
        for event in read_events(path):
            for value in event.summary.value:
                if value.tag not in ("speed/images_per_second", "data/wait_share"):
                    number = float(value.tensor.float_val[0]) if value.tensor.float_val else 0.0
                    found.append((event.step, value.tag, number))
    return found


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A finished run of single steps."""
    workdir = tmp_path_factory.mktemp("single")
    train(config_of(1), workdir)
    return workdir


def test_a_run_logs_saves_and_ends_as_with_single_steps(tmp_path, single, monkeypatch) -> None:
    steps, original = [], ProgressDisplay.step
    monkeypatch.setattr(
        ProgressDisplay, "step", lambda self, step: (steps.append(step), original(self, step))
    )
    train(config_of(3), tmp_path)
    # Log lines after 1, 5, 10, and 11; checkpoints after 4, 8, and 11.
    assert steps == [1, 4, 5, 8, 9, 10, 11]
    assert checkpoint_steps(tmp_path) == checkpoint_steps(single) == [4, 8, 11]
    assert differing_arrays(final_state(single), final_state(tmp_path)) == []
    assert logged(tmp_path) == logged(single)
    assert {step for step, _, _ in logged(tmp_path)} >= {1, 5, 10, 11}


def test_a_run_stops_and_resumes_within_what_was_a_dispatch(tmp_path, single, monkeypatch) -> None:
    """It stops after steps 2 and 5, and goes on with other numbers of steps in a call."""
    last, original = [0], ProgressDisplay.step

    def step(self, number: int) -> None:
        last[0] = number
        original(self, number)

    monkeypatch.setattr(ProgressDisplay, "step", step)
    for together, stop in ((1, 2), (3, 5)):
        monkeypatch.setattr(StopRequest, "agreed", lambda *_, stop=stop, **__: last[0] == stop)
        with pytest.raises(RunStopped, match=f"after step {stop} of 11"):
            train(config_of(together), tmp_path)
    monkeypatch.setattr(StopRequest, "agreed", lambda *_, **__: False)
    train(config_of(2), tmp_path)
    assert differing_arrays(final_state(single), final_state(tmp_path)) == []


def test_a_planned_stop_leaves_schedule_scores_and_end_as_they_are(tmp_path, single) -> None:
    """It stops after steps 2, 6, within a dispatch, and where it has passed the step already."""
    fields = {"evaluation.online_every_epochs": 0.5, "evaluation.online_images": 32}
    config = config_of(3, **fields)
    for after, reached in ((2, 2), (6, 6), (3, 6)):
        with StopRequest(after) as stop, pytest.raises(RunStopped) as stopped:
            train(config, tmp_path, stop)
        assert stopped.value.step == reached == checkpoint_steps(tmp_path)[-1]
        assert "without --stop_after continues" in str(stopped.value)
    with StopRequest(100) as stop:
        train(config, tmp_path, stop)
    assert differing_arrays(final_state(single), final_state(tmp_path)) == []
    scored = {tag for tag in read_metrics(tmp_path) if "online/" in tag or "eigenvalue_min" in tag}
    assert set(differing_metrics(single, tmp_path)) == {"epoch", *scored}  # they have own lines
    # What is due at a step of a planned stop is done.
    assert read_metrics(tmp_path)["online/knn_top1"][0].tolist() == [2, 4, 6, 8, 10, 11]


def test_a_run_that_is_killed_within_a_dispatch_resumes_to_the_same_bits(tmp_path, single) -> None:
    """After the second of steps 6 to 8; the last checkpoint is of step 4."""
    workdir, path = tmp_path / "run", tmp_path / "config.json"
    save_settings(typed(config_of(3)), tmp_path)
    done = in_a_process("killed_in_dispatch.py", path, workdir, 7)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    assert checkpoint_steps(workdir) == [4]
    train(config_of(3), workdir)
    assert checkpoint_steps(workdir) == [4, 8, 11]
    assert differing_arrays(final_state(single), final_state(workdir)) == []


def test_a_failure_within_a_dispatch_names_its_step(tmp_path, monkeypatch) -> None:
    def opened(settings, source, first, count, stop=None):
        return Poisoned(open_stream(settings, source, first, count), first, (6,))

    monkeypatch.setattr(hjepa_jax.train, "open_stream", opened)
    monkeypatch.setattr(hjepa_jax.train.TrainingMonitor, "show_views", lambda *_: None)
    ended = {}
    for together in (1, 3):
        workdir = tmp_path / f"{together}"
        fields = {"data.backend": "host", "train.on_nonfinite": "stop"}
        with pytest.raises(TrainingError, match="NaN or infinite at step 6 "):
            train(config_of(together, **fields), workdir)
        assert checkpoint_steps(workdir) == [4]
        fields["train.on_nonfinite"] = "skip"
        train(config_of(together, **fields), workdir)
        ended[together] = final_state(workdir)
    assert int(ended[3].step) == 11
    assert differing_arrays(ended[1], ended[3]) == []


def test_a_finished_run_says_so_and_writes_nothing(single, caplog) -> None:
    caplog.set_level(logging.INFO)
    before = sorted((path, path.stat().st_mtime_ns) for path in single.glob("[em]*s*"))
    assert len(before) == 2
    assert int(train(config_of(1), single).step) == 11
    assert f"{single} is finished: all 11 steps are done" in caplog.text
    assert "choose another --workdir" in caplog.text
    assert sorted((path, path.stat().st_mtime_ns) for path in single.glob("[em]*s*")) == before


def test_a_log_line_is_read_once_the_next_steps_are_under_way(tmp_path, monkeypatch) -> None:
    order = []

    def noting(name: str, original):
        def call(*arguments, **options):
            order.append(name)
            return original(*arguments, **options)

        return call

    monkeypatch.setattr(ProgressDisplay, "step", noting("steps", ProgressDisplay.step))
    monkeypatch.setattr(ProgressDisplay, "show", noting("log", ProgressDisplay.show))
    monkeypatch.setattr(hjepa_jax.train, "save", noting("save", hjepa_jax.train.save))
    config = config_of(3, **{"checkpoint.every_steps": 10})
    train(config, tmp_path)
    # Steps 1, 4, 5, 8, 9, 10, and 11: a save waits for its step, and reads what it left to read.
    assert order == [
        *("steps", "steps", "log", "steps", "steps", "log", "steps", "steps"),
        *("log", "save", "steps", "log", "save"),
    ]


def test_checkpoints_by_time(tmp_path, monkeypatch) -> None:
    now = [0.0]
    clock = SaveClock(2.0, lambda: now[0])
    assert not clock.is_due(together=False)
    now[0] = 120.0
    assert clock.is_due(together=False)
    clock.restart()
    assert not clock.is_due(together=True)
    now[0] = 1e9
    assert not SaveClock(None, lambda: now[0]).is_due(together=True)

    # Several processes: all ask, at the same steps, and the clock of process 0 counts.
    now[0] = 0.0
    clock = SaveClock(2.0, lambda: now[0])
    now[0] = 500.0
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for primary, others, due in ((True, 0, True), (False, 0, False), (False, 1, True)):
        monkeypatch.setattr(progress.distributed, "is_primary", lambda primary=primary: primary)
        monkeypatch.setattr(
            progress.distributed, "sum_over_processes", lambda own, others=others: own + others
        )
        assert clock.is_due(together=True) == due
        assert not clock.is_due(together=False)


def test_a_run_saves_when_its_time_has_come(tmp_path, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    steps, original = [0], ProgressDisplay.step

    def step(self, number: int) -> None:
        steps[0] = number
        original(self, number)

    # A minute for each step.
    monkeypatch.setattr(ProgressDisplay, "step", step)
    monkeypatch.setattr(
        hjepa_jax.train, "SaveClock", lambda minutes: SaveClock(minutes, lambda: 60.0 * steps[0])
    )
    fields = {"checkpoint.every_steps": 100, "checkpoint.every_minutes": 3.0}
    train(config_of(1, **fields), tmp_path)
    assert checkpoint_steps(tmp_path) == [3, 6, 9, 11]
