"""Signals: the first one asks, the second one interrupts, and the handlers are put back."""

import contextlib
import shutil
import signal
import threading
import time

import pytest
from event_files import read_events

from hjepa_jax import main
from hjepa_jax.errors import CheckpointError
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime.progress import ProgressDisplay
from hjepa_jax.runtime.stop_request import RunStopped, StoppedAtOnce, StopRequest
from hjepa_jax.train import train

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_and_a_second_interrupt_interrupts(number) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with StopRequest() as stop:
        assert not stop.agreed(together=True)
        signal.raise_signal(number)
        assert stop.agreed(together=True)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_an_ignored_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_work_that_keeps_nothing_ends_at_once(number) -> None:
    done = []

    def work() -> None:
        with StopRequest() as stop, stop.at_once("the drawing"):
            signal.raise_signal(number)
            done.append("more")

    with pytest.raises(StoppedAtOnce, match=f"{number.name} stopped the drawing"):
        work()
    assert done == []


def test_a_signal_before_the_work_stops_it_too() -> None:
    """As one that comes while the evaluation's libraries are loaded."""
    done = []

    def work() -> None:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGTERM)
            with stop.at_once("the drawing"):
                done.append("begun")

    with pytest.raises(StoppedAtOnce, match="stopped the drawing"):
        work()
    assert done == []


def test_a_swallowed_stop_is_raised_again() -> None:
    done = []

    def work() -> None:
        with StopRequest() as stop, stop.at_once("the drawing"):
            with contextlib.suppress(BaseException):  # as destructors and C++ callbacks do
                signal.raise_signal(signal.SIGTERM)
            time.sleep(60)
            done.append("more")

    begun = time.monotonic()
    with pytest.raises(StoppedAtOnce):
        work()
    assert done == []
    assert time.monotonic() - begun < 50


def test_work_that_ends_nevertheless_has_ended() -> None:
    with StopRequest() as stop:
        with stop.at_once("the drawing"), contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        time.sleep(1.5)  # nothing is raised behind it
        assert stop.asked


def test_a_stop_in_the_last_step_stops_the_evaluation_too(tmp_path, monkeypatch) -> None:
    original = ProgressDisplay.step

    def step(self, number: int) -> None:
        original(self, number)
        if number == 2:
            signal.raise_signal(signal.SIGTERM)

    def evaluate(*_: object) -> None:
        raise AssertionError("evaluated")

    monkeypatch.setattr(ProgressDisplay, "step", step)
    monkeypatch.setattr("hjepa_jax.evaluate.evaluate", evaluate)
    main.PROGRAM.flags.mark_as_parsed()
    with (
        StopRequest() as stop,
        pytest.raises(RunStopped, match="after step 2 of 2"),
    ):
        main._stages(quickstart.get_config("smoke"), tmp_path, tmp_path / "eval", stop)
    assert (tmp_path / "checkpoints" / "2").is_dir()


def test_outside_the_main_thread_no_handler_is_touched() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run() -> None:
        with StopRequest() as stop:
            seen.extend([signal.getsignal(signal.SIGTERM), stop.agreed(together=True)])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before, False]


@pytest.mark.parametrize("reader", ["open_split", "data_identity"])
def test_a_stop_ends_the_reading_of_the_data_at_once(tmp_path, monkeypatch, reader) -> None:
    """All of a large dataset is read before the first step, for its checksum."""

    def read(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(1000)

    monkeypatch.setattr(f"hjepa_jax.train.{reader}", read)
    with pytest.raises(RunStopped, match="before the first step"):
        train(quickstart.get_config("smoke"), tmp_path)


def test_an_interrupted_run_in_this_process_saves_its_last_step(tmp_path, monkeypatch) -> None:
    config = quickstart.get_config("smoke")
    original = ProgressDisplay.step

    def step(self, number: int) -> None:
        original(self, number)
        if number == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ProgressDisplay, "step", step)
    with pytest.raises(RunStopped, match="after step 1 of 2") as caught:
        train(config, tmp_path)
    assert caught.value.step == 1
    assert (tmp_path / "checkpoints" / "1").is_dir()
    assert int(train(config, tmp_path).step) == 2
    # Each part says where it begins, so that nothing is shown twice.
    files = sorted(tmp_path.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns)
    events = [event for path in files for event in read_events(path)]
    assert [event.step for event in events if event.HasField("session_log")] == [1, 2]


def test_a_workdir_deleted_under_its_run_ends_it_and_is_not_made_again(
    tmp_path, monkeypatch
) -> None:
    config, workdir = quickstart.get_config("smoke"), tmp_path / "run"
    config.checkpoint.every_steps = 1
    original = ProgressDisplay.step

    def step(self, number: int) -> None:
        original(self, number)
        if number == 1:
            shutil.rmtree(workdir)

    monkeypatch.setattr(ProgressDisplay, "step", step)
    with pytest.raises(CheckpointError, match="was deleted, moved or replaced while this run"):
        train(config, workdir)
    assert not workdir.exists()
