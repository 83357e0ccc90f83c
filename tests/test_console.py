"""Messages on stderr, and the live display of a terminal."""

import io
import logging
import re
import sys
import time

import pytest

from hjepa_jax import console
from hjepa_jax.console import Board, duration


class Terminal(io.StringIO):
    """A stderr that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def plain(text: str) -> str:
    """Returns what a terminal was sent, without its control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def terminal_of(monkeypatch, columns: int = 80) -> Terminal:
    """Returns the stderr of the rest of the test; pytest replaces what a fixture sets."""
    found = Terminal()
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stderr", found)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return found


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.9, "59 s"), (60, "1:00"), (3599, "59:59"), (3661, "1:01:01")],
)
def test_durations(seconds, text) -> None:
    assert duration(seconds) == text


def test_long_work_is_named_while_it_lasts_and_short_work_is_not(capsys, monkeypatch) -> None:
    monkeypatch.setattr(console, "_WORTH_SECONDS", 0.2)
    monkeypatch.setattr(console, "_TICK_SECONDS", 0.02)
    board = Board()
    with board.busy("short"):
        pass
    with board.busy("compiling"):
        time.sleep(0.4)
        during = capsys.readouterr().err
    assert during == "compiling ...\n"
    assert capsys.readouterr().err == "compiling: 0 s\n"
    assert board._ticker is None


def test_a_terminal_shows_a_spinner_with_its_time_and_leaves_nothing(monkeypatch) -> None:
    terminal = terminal_of(monkeypatch)
    monkeypatch.setattr(console, "_TICK_SECONDS", 0.02)
    board = Board()
    with board.busy("evaluating"):
        time.sleep(0.1)
        board.say("in between")
    text = plain(terminal.getvalue())
    assert "evaluating  0 s" in text
    assert "in between\n" in text
    assert "evaluating: " not in text
    assert sys.stderr is terminal


@pytest.mark.parametrize("variable", [("TERM", "dumb"), ("NO_COLOR", "1")])
def test_plain_terminals(monkeypatch, variable) -> None:
    terminal = terminal_of(monkeypatch)
    monkeypatch.setenv(*variable)
    monkeypatch.setattr(console, "_TICK_SECONDS", 0.02)
    board = Board()
    with board.busy("evaluating"):
        time.sleep(0.1)
        board.say("a warning", "yellow")
    text = terminal.getvalue()
    assert "a warning" in text
    if variable[0] == "TERM":
        assert "\x1b" not in text
    else:
        assert not re.search(r"\x1b\[[0-9;]*3[0-7]", text)
        assert "evaluating" in text


def test_a_table_is_lines_in_a_file_and_wraps_in_a_narrow_terminal(capsys, monkeypatch) -> None:
    rows = {"data": "word " * 12, "a": "b"}
    Board().table(rows)
    assert capsys.readouterr().err == f"data  {'word ' * 12}\na     b\n"
    found = terminal_of(monkeypatch, 30)
    Board().table(rows)
    lines = plain(found.getvalue()).splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= 30


def test_a_board_shows_again_on_another_stderr(capsys, monkeypatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    board = Board()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Gone())
        board.say("lost")
        board.table({"a": "lost"})
        with board.busy("lost"):
            pass
    board.say("seen")
    assert capsys.readouterr().err == "seen\n"


def test_work_that_covers_other_work_is_all_that_is_shown(capsys, monkeypatch) -> None:
    monkeypatch.setattr(console, "_WORTH_SECONDS", 0.0)
    board = Board()
    with board.busy("dry run", covers=True):
        board.table({"method": "hjepa"})
        with board.busy("compiling"):
            board.say("warning: seen")
        assert board.is_brief
    assert capsys.readouterr().err.replace("dry run ...\n", "") == "warning: seen\ndry run: 0 s\n"
    assert not board.is_brief


def test_a_quiet_board_has_lines_alone(capsys, monkeypatch) -> None:
    """As in all processes of a run but the first: their errors are seen."""
    monkeypatch.setattr(console, "_WORTH_SECONDS", 0.0)
    board = Board()
    board.quiet = True
    with board.busy("evaluating"):
        board.say("error: lost")
    assert capsys.readouterr().err == "error: lost\n"


def test_messages_are_sentences_and_other_libraries_only_warn(capsys) -> None:
    console.set_up()
    console.set_up()
    ours, theirs = logging.getLogger("hjepa_jax.train"), logging.getLogger("jax._src.xla_bridge")
    ours.info("resumed from step %d", 3)
    ours.warning("a [bold]dimension[/bold] hardly varies")
    ours.error("lost")
    theirs.info("Unable to initialize backend 'tpu'")
    logging.getLogger("absl").info("orbax saves")
    theirs.warning("a real one")
    assert capsys.readouterr().err.splitlines() == [
        "resumed from step 3",
        "warning: a [bold]dimension[/bold] hardly varies",
        "error: lost",
        "warning: a real one",
    ]
