"""Signals: the first one asks, the second one interrupts, and the handlers are put back."""

import signal
import threading

import pytest

from configs import quickstart
from hjepa_jax.stop_request import RunStopped, StopRequest
from hjepa_jax.train import train
from hjepa_jax.writers import ProgressDisplay


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_and_a_second_interrupt_interrupts(number) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert not stop.agreed(together=True)
        signal.raise_signal(number)
        assert stop.agreed(together=True)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


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
