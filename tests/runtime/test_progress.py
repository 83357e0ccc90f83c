"""The progress display."""

import errno
import io
import sys

import pytest

from hjepa_jax.runtime import progress


def test_progress_lines_show_loss_rate_and_time_left(capsys) -> None:
    display = progress.ProgressDisplay(total_steps=10, first_step=0)
    display.step(1)
    display.show(2, 0.5, 123.4)
    display.close()
    line = capsys.readouterr().err
    assert "step 2/10" in line
    assert "loss 0.5000" in line
    assert "123 images/s" in line
    assert "time left 0:0" in line


@pytest.mark.parametrize("error", [OSError(errno.EIO, "gone"), BrokenPipeError(errno.EPIPE, "x")])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_that_is_gone_ends_no_run(monkeypatch, error, terminal) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise error

        def isatty(self) -> bool:
            return terminal

    monkeypatch.setattr(sys, "stderr", Gone())
    monkeypatch.setenv("TERM", "xterm")
    display = progress.ProgressDisplay(total_steps=10, first_step=0)
    display.step(1)
    display.show(2, 0.5, 123.4)
    display.show(3, 0.5, 123.4)
    display.close()
