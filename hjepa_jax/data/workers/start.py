"""Start-up of worker processes: preconditions, and the transfer of their work."""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.spawn
import os
import pathlib
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import IO, Any

import cloudpickle

from hjepa_jax.data.workers import blocks
from hjepa_jax.errors import DataError

_PARENT_POLL_SECONDS = 0.5
_GUARD = "put its call under `if __name__ == '__main__':`, or set data.num_workers=0"


def check_can_start() -> None:
    """Checks that worker processes can be started from here.

    Workers import the main program again, as `__mp_main__`. Without a main guard that import calls
    this function inside the worker, which then exits with a message; the parent notices.

    Raises:
      DataError: if the main program cannot be imported because it came from standard input.
      SystemExit: in a worker that is importing the main program.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(
            "hjepa_jax: a worker process imports the main program again, which starts the training "
            f"a second time: {_GUARD}."
        )
    path = multiprocessing.spawn.get_preparation_data("").get("init_main_from_path")
    if path is not None and not os.path.isfile(path):
        raise DataError(
            f"data.num_workers starts processes that import the main program, but {path} is not a "
            f"file: save the program as a file instead of piping it to standard input, or set "
            "data.num_workers=0."
        )


def start_failure(exit_code: int | None) -> str:
    """Returns the error message for a worker that exited before its first batch."""
    return (
        f"A worker process of the input pipeline exited during start-up ({ending(exit_code)}). "
        f"Workers import the main program again: if that is a script of yours, {_GUARD}."
    )


def ending(exit_code: int | None) -> str:
    """Describes how a process exited, from its exit code."""
    if exit_code is not None and exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return "exit code unknown" if exit_code is None else f"exit code {exit_code}"


class Handover:
    """A callable that worker processes load from an unnamed file at their first call.

    Sending it through the start-up pipe could block the parent forever: if it exceeds the pipe's 64
    KiB (a dataset in memory does) and the worker exits before reading it, the write never ends,
    since the parent holds the other end open.
    """

    def __init__(self, function: Callable[..., object]):
        """Writes a function, pickled by cloudpickle, to the file."""
        self._file: IO[bytes] | None = None
        path = ""
        if hasattr(os, "memfd_create"):
            self._file = os.fdopen(os.memfd_create("hjepa_jax"), "w+b")
            path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        if self._file is None or not os.access(path, os.R_OK):
            self.close()
            self._file = tempfile.NamedTemporaryFile(prefix="hjepa_jax-")  # noqa: SIM115
            path = self._file.name
        cloudpickle.dump(function, self._file)
        self._file.flush()
        self.function = functools.partial(_call, path)

    def close(self) -> None:
        """Removes the file; workers must have loaded it before."""
        if self._file is not None:
            self._file.close()
            self._file = None


_LOADING = threading.Lock()


@functools.cache
def _load(path: str) -> Callable[..., Any]:
    return pickle.loads(pathlib.Path(path).read_bytes())


def _call(path: str, *arguments: object) -> Any:
    with _LOADING:  # a worker's threads arrive here together
        function = _load(path)
    return function(*arguments)


def begin_worker(worker_index: int, worker_count: int) -> None:
    """Makes a worker exit soon after its parent, removing the blocks the parent left.

    Workers ignore stop signals, which Ctrl-C and job schedulers send to them too: the parent needs
    them to finish its step.

    Args:
      worker_index: passed by grain; unused.
      worker_count: passed by grain; unused.
    """
    del worker_index, worker_count
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    expected = os.getppid() if parent is None else parent.pid

    def watch() -> None:
        while os.getppid() == expected:
            time.sleep(_PARENT_POLL_SECONDS)
        blocks.remove_leftovers()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watch-parent").start()
