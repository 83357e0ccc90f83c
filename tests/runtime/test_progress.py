"""The progress display of a run."""

import errno
import io
import sys

import pytest

from hjepa_jax import console
from hjepa_jax.console import Board
from hjepa_jax.runtime import progress
from tests.test_console import plain, terminal_of

VALUES = {
    "loss/total": 0.5,
    "loss/prediction": 0.25,
    "loss/budget": 1.25,
    "optim/lr": 5e-4,
    "speed/images_per_second": 123.4,
}


def display(total: int = 10, first: int = 0, **options) -> progress.ProgressDisplay:
    options = {"epoch_steps": 4, "terms": ["loss/prediction"], "board": Board(), **options}
    return progress.ProgressDisplay(total, first, **options)


def test_a_line_has_place_loss_terms_speed_and_times(capsys) -> None:
    shown = display()
    for step in (1, 10):
        shown.step(step)
        shown.show(step, VALUES)
    shown.close()
    assert capsys.readouterr().err == (
        "epoch 1/3  step 1/10  loss 0.5000 (prediction 0.25)  lr 0.0005  0 s elapsed\n"
        "epoch 3/3  step 10/10  loss 0.5000 (prediction 0.25)  123 images/s  lr 0.0005  "
        "0 s elapsed\n"
    )


def steps_shown(monkeypatch, seconds_a_step: float, total: int, every: int = 1) -> list[int]:
    """Returns the steps of the lines of a run that logs each `every` steps."""
    now, lines = [0.0], []
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    board = Board()
    monkeypatch.setattr(board, "say", lambda text: lines.append(text))
    shown = display(total, board=board)
    for step in range(1, total + 1):
        now[0] += seconds_a_step
        shown.step(step)
        if step % every == 0 or step in (1, total):
            shown.show(step, VALUES)
    shown.close()
    return [int(line.split("step ")[1].split("/")[0]) for line in lines]


@pytest.mark.parametrize(
    ("seconds", "every", "expected"),
    [
        (5.0, 1, [1, 4, 8, 12, 16, 18]),  # each epoch of four steps
        (1.0, 1, [1, 11, 18]),  # at most every ten seconds
        (200.0, 1, [1, 3, 4, 6, 8, 10, 12, 14, 16, 18]),  # at least every five minutes
        (5.0, 3, [1, 6, 9, 12, 18]),  # with the first log line behind an epoch
    ],
)
def test_a_file_gets_a_line_for_each_epoch(monkeypatch, seconds, every, expected) -> None:
    assert steps_shown(monkeypatch, seconds, 18, every) == expected


def test_a_terminal_shows_all_of_it_at_once_and_keeps_the_last_state(monkeypatch) -> None:
    found = terminal_of(monkeypatch, 120)
    monkeypatch.setattr(console, "_TICK_SECONDS", 1000.0)
    board = Board()
    shown = display(board=board)
    shown.step(1)
    shown.show(2, VALUES)
    shown.step(5)
    scores = {"": 0.934, "_low": 0.91, "_high": 0.95}
    shown.score(4, {f"online/knn_top1{end}": value for end, value in scores.items()})
    board._live.refresh()
    during = plain(found.getvalue())
    for text in (
        "epoch 2/3  step 5/10",
        "0 s elapsed",
        "left",
        "loss 0.5000 (prediction 0.25)  123 images/s  lr 0.0005",
        "kNN top-1 93.4 % (91.0 to 95.0) at step 4",
    ):
        assert text in during
    shown.close()
    assert sys.stderr is found
    assert plain(found.getvalue())[len(during) :].count("epoch 2/3  step 5/10") >= 1


def test_nothing_is_wider_than_a_narrow_terminal(monkeypatch) -> None:
    found = terminal_of(monkeypatch, 40)
    monkeypatch.setattr(console, "_TICK_SECONDS", 1000.0)
    board = Board()
    shown = display(board=board)
    shown.step(1)
    shown.show(1, VALUES)
    board._live.refresh()
    lines = plain(found.getvalue()).replace("\r", "\n").splitlines()
    assert any("step 1/10" in line for line in lines)
    assert max(map(len, lines)) <= 40
    shown.close()


def test_a_process_that_is_not_the_first_shows_nothing(capsys) -> None:
    shown = display(quiet=True)
    shown.step(1)
    shown.show(1, VALUES)
    shown.close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [OSError(errno.EIO, "gone"), BrokenPipeError(errno.EPIPE, "x")])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_that_is_gone_ends_no_run(monkeypatch, error, terminal) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise error

        def isatty(self) -> bool:
            return terminal

    gone = Gone()
    monkeypatch.setattr(sys, "stderr", gone)
    monkeypatch.setenv("TERM", "xterm")
    shown = display()
    shown.step(1)
    shown.show(1, VALUES)
    shown.show(10, VALUES)
    shown.close()
    assert sys.stderr is gone
