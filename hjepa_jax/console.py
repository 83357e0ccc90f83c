"""Messages and a live display on stderr, which may be a terminal, a pipe, or gone.

A program calls `set_up` once. Then the `logging` messages of this package appear as plain
sentences, warnings as `warning: ...`, and other libraries are quiet unless they warn. Work that
takes long is named with its time by `busy`, in a terminal by a spinner.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from absl import logging as absl_logging
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

_TICK_SECONDS = 0.25
# Shorter work is not worth a line.
_WORTH_SECONDS = 2.0


class _Lasting(Console):
    """A console that reports a broken pipe as an error, instead of ending the program."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def duration(seconds: float) -> str:
    """Returns a duration such as '12 s', '4:05', or '1:02:03'."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _Busy:
    """Work in progress; `told` is whether a line has named it."""

    def __init__(self, what: str):
        self.what, self.since, self.told = what, time.perf_counter(), False

    def seconds(self) -> float:
        return time.perf_counter() - self.since


class Board:
    """What a process shows on stderr: lines, and below them a live display if it is a terminal.

    Its methods never raise because the terminal or pipe is gone; then nothing more is shown.
    """

    def __init__(self) -> None:
        """Shows nothing yet; `quiet` leaves out all but lines."""
        self.quiet = False
        self._gone: object = None  # the stderr that could not be written to
        self._lock = threading.RLock()
        self._busy: list[_Busy] = []
        self._cover: _Busy | None = None
        self._parts: list[Callable[[], RenderableType]] = []
        self._live: Live | None = None
        self._ticker: threading.Thread | None = None
        self._wake = threading.Event()
        self._console: Console = _Lasting(stderr=True)

    @property
    def is_live(self) -> bool:
        """Whether a live display can be shown: stderr is a terminal that can move its cursor."""
        console = self._console
        return console.is_terminal and not console.is_dumb_terminal and self._is_shown()

    def _is_shown(self) -> bool:
        return not self.quiet and self._gone is not sys.stderr

    def say(self, text: str, style: str = "") -> None:
        """Prints a line, above the live display."""
        with self._lock, self._lasting():
            if self._gone is not sys.stderr:
                self._console.print(Text(text, style=style), soft_wrap=True)

    def table(self, rows: Mapping[str, str]) -> None:
        """Prints titles and texts in two columns, which wrap in a narrow terminal."""
        if self.is_brief:
            return
        width = max(map(len, rows))
        if not self.is_live:
            for title, text in rows.items():
                self.say(f"{title:<{width}}  {text}")
            return
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        for title, text in rows.items():
            grid.add_row(title, Text(text))
        with self._lock, self._lasting():
            self._console.print(grid)

    @property
    def is_brief(self) -> bool:
        """Whether only messages are shown, and what a program is busy with."""
        return self.quiet or self._cover is not None

    @contextlib.contextmanager
    def busy(self, what: str, *, covers: bool = False) -> Iterator[None]:
        """A context whose work is named with its time while it lasts, if that is long.

        Args:
          what: such as 'compiling'.
          covers: whether this is all that is shown of the work, besides messages.
        """
        work = _Busy(what)
        if covers:
            self._cover = work
        self._start(lambda: self._busy.append(work))
        try:
            yield
        finally:
            with self._lock:
                self._busy.remove(work)
                if self._is_worth_a_line(work):
                    self.say(f"{what}: {duration(work.seconds())}", "dim")
                if covers:
                    self._cover = None
                self._stop_if_idle()

    def _is_worth_a_line(self, work: _Busy) -> bool:
        hidden = self._cover is not None and work is not self._cover
        return work.seconds() >= _WORTH_SECONDS and self._is_shown() and not hidden

    @contextlib.contextmanager
    def shown(self, part: Callable[[], RenderableType]) -> Iterator[None]:
        """A context during which the live display shows what `part` returns."""
        self._start(lambda: self._parts.append(part))
        try:
            yield
        finally:
            with self._lock:
                self._parts.remove(part)
                self._stop_if_idle()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del console, options
        lines = [] if self._cover else [part() for part in self._parts]
        if self._busy:
            work = self._cover or self._busy[-1]
            lines.append(Spinner("dots", f"{work.what}  {duration(work.seconds())}"))
        yield Group(*lines)

    def _start(self, add: Callable[[], None]) -> None:
        with self._lock:
            if not self._busy and not self._parts:
                # stderr may have changed since the last time.
                self._console = _Lasting(stderr=True)
            add()
            if self.is_live and self._live is None:
                with self._lasting():
                    live = Live(
                        self,
                        console=self._console,
                        auto_refresh=False,
                        transient=True,
                        redirect_stdout=sys.stdout.isatty(),  # a file gets what is printed to it
                    )
                    live.start()
                    self._live = live
            if self._ticker is None and self._is_shown():
                self._wake = threading.Event()
                self._ticker = threading.Thread(
                    target=self._tick, args=(self._wake,), daemon=True, name="display"
                )
                self._ticker.start()

    def _stop_if_idle(self) -> None:
        if self._busy or self._parts:
            return
        live, self._live = self._live, None
        self._ticker = None
        self._wake.set()
        if live is not None:
            with self._lasting():
                live.stop()

    def _tick(self, ended: threading.Event) -> None:
        while not ended.wait(_TICK_SECONDS):
            with self._lock, self._lasting():
                if ended.is_set():
                    return
                if self._live is not None:
                    self._live.refresh()
                elif self._busy:
                    work = self._cover or self._busy[-1]
                    if not work.told and self._is_worth_a_line(work):
                        work.told = True
                        self.say(f"{work.what} ...")

    def _lose(self) -> None:
        """Shows nothing from now on."""
        live, self._live = self._live, None
        if live is not None:
            with contextlib.suppress(OSError):
                live.stop()  # it redirects what is printed
        self._gone = sys.stderr

    @contextlib.contextmanager
    def _lasting(self) -> Iterator[None]:
        """Keeps the program going if the terminal or pipe is closed."""
        try:
            yield
        except OSError:
            self._lose()


BOARD = Board()


class _Messages(logging.Handler):
    """Shows log records as plain sentences."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = record.levelno
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        if level >= logging.ERROR:
            BOARD.say(f"error: {text}", "red")
        elif level >= logging.WARNING:
            BOARD.say(f"warning: {text}", "yellow")
        else:
            BOARD.say(text)


def set_up(*, level: int = logging.INFO) -> None:
    """Shows this package's messages from `level` on, and of other libraries warnings alone.

    Every command does, unless --verbosity asks for the messages as absl has them.
    """
    root = logging.getLogger()
    if any(isinstance(handler, _Messages) for handler in root.handlers):
        return
    handler = absl_logging.get_absl_handler()
    if handler in root.handlers:
        root.removeHandler(handler)
    root.addHandler(_Messages())
    for logger in (root, logging.getLogger("absl")):
        logger.setLevel(logging.WARNING)
    logging.getLogger("hjepa_jax").setLevel(level)
    _silence_orbax()


def _silence_orbax() -> None:
    """Suppresses orbax's output about a failing or slow save; an error is still raised.

    On a full disk orbax prints a traceback per array, and Python one per abandoned coroutine.
    """

    def counts(record: logging.LogRecord) -> bool:
        slow = record.getMessage().startswith("Waiting for previous save")
        return "orbax" not in record.pathname or not (slow or record.exc_info)

    logging.getLogger("absl").addFilter(counts)
    # Exceptions of further arrays, which nobody waits for once the first has failed.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    previous = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            previous(unraisable)

    sys.unraisablehook = hook
