"""Waits for batches without getting stuck: the wait is monitored, and closing has a time limit."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.process
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from typing import ClassVar, Protocol, TypeVar, cast

from absl import logging

_POLL_SECONDS = 0.1
# Grain notices a worker's death within a second or two, and has more details.
_DEAD_SECONDS = 3.0
_UNSEEN_SECONDS = 60.0
# Near the end of a stream, a worker that has exited may have finished its share.
_PATIENT_SECONDS = 300.0
_CLOSE_SECONDS = 2.0
_NAME = "grain-process-prefetch"
_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)
# Threads that closing could not stop, for example while reading from a hung disk.
_stuck: list[threading.Thread] = []


class StoppedWaiting(Exception):
    """The caller's `stop` ended the wait."""


class WorkerDied(Exception):
    """A worker process died; `exit_code` is None if unknown."""

    def __init__(self, exit_code: int | None):
        super().__init__(exit_code)
        self.exit_code = exit_code


def _started() -> list[BaseProcess]:
    """Returns this process's children, including exited ones that Python still tracks.

    `active_children` drops children that have exited.
    """
    known = getattr(multiprocessing.process, "_children", None)
    return multiprocessing.active_children() if known is None else list(known)


class _Workers:
    """The worker processes of one iterator, collected as they start."""

    _lock = threading.Lock()
    _claimed: ClassVar[set[BaseProcess]] = set()

    def __init__(self, count: int):
        self._count = count
        self._mine: set[BaseProcess] = set()

    def look(self) -> None:
        """Claims newly started workers, up to the number this iterator expects."""
        with self._lock:
            for process in _started():
                if len(self._mine) >= self._count:
                    return
                if process.name.startswith(_NAME) and process not in self._claimed:
                    self._claimed.add(process)
                    self._mine.add(process)

    def unseen(self) -> bool:
        """Returns whether some workers were never seen; all start together at the first element."""
        return len(self._mine) < self._count

    def dead(self, all_of_them: bool) -> BaseProcess | None:
        """Returns a worker that has exited, or None; with `all_of_them`, None unless all have."""
        ended = [process for process in self._mine if not process.is_alive()]
        return ended[0] if ended and (len(ended) == len(self._mine) or not all_of_them) else None

    def kill(self) -> None:
        self.look()
        for process in self._mine:
            process.kill()

    def own_up(self) -> None:
        """Marks workers that exited with status 0 as failed; grain would wait for them forever."""
        for process in self._mine:
            ended = getattr(process, "_popen", None)
            if process.exitcode == 0 and ended is not None and hasattr(ended, "returncode"):
                ended.returncode = 1

    def forget(self) -> None:
        with self._lock:
            self._claimed.difference_update(self._mine)
            self._mine.clear()


class _Source(Protocol[_T_co]):
    """An iterator that can be closed."""

    def __next__(self) -> _T_co: ...
    def close(self) -> None: ...


class Watched(Iterator[_T]):
    """An iterator that fetches elements in a thread while the caller monitors the wait.

    The main thread can thus run Python's signal handlers at any time, and nothing that the iterator
    waits for can keep the program from exiting.
    """

    def __init__(
        self,
        iterator: _Source[_T],
        num_workers: int,
        stop: Callable[[float], bool] | None = None,
        *,
        length: int = 0,
        ahead: int = 0,
    ):
        """Wraps a grain iterator, which is closed together with this one.

        Args:
          iterator: the grain iterator.
          num_workers: number of worker processes it starts; 0 = threads only.
          stop: called with the seconds waited for the current element; returns whether to give up.
          length: number of elements; needed with workers.
          ahead: maximum number of elements that all workers together prefetch.
        """
        self._iterator = iterator
        self._stop = stop
        self._left, self._ahead = length, ahead
        self._workers = _Workers(num_workers)
        # Not SimpleQueue: its get(timeout) waits forever if a signal arrives near the timeout.
        self._asked: queue.Queue[Callable[[], _T | None] | None] = queue.Queue()
        self._answers: queue.Queue[tuple[_T | None, BaseException | None]] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._busy = False

    def _serve(self) -> None:
        while (work := self._asked.get()) is not None:
            try:
                self._answers.put((work(), None))
            except BaseException as error:
                self._answers.put((None, error))

    def _ask(self, work: Callable[[], _T | None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, daemon=True, name="hjepa-batches")
            self._thread.start()
        self._busy = True
        self._asked.put(work)

    def _answer(self, seconds: float) -> _T | None:
        """Returns the result of the work, which may be None.

        Raises:
          queue.Empty: if there is none within `seconds`.
        """
        element, error = self._answers.get(timeout=seconds)
        self._busy = False
        if error is not None:
            raise error
        self._left -= 1
        return element

    def __next__(self) -> _T:
        """Returns the next element.

        Raises:
          StoppedWaiting: if `stop` returned True.
          WorkerDied: if workers exited, even with codes that grain accepts.
        """
        self._ask(self._iterator.__next__)
        begun = time.monotonic()
        dead_since = None
        while True:
            try:
                return cast(_T, self._answer(_POLL_SECONDS))
            except queue.Empty:
                now = time.monotonic()
            if self._stop is not None and self._stop(now - begun):
                raise StoppedWaiting
            self._workers.look()
            # One worker's share may be made before the others', but only near the end.
            near_end = self._left <= self._ahead and now - begun < _PATIENT_SECONDS
            dead = self._workers.dead(all_of_them=near_end)
            if dead is None and now - begun > _UNSEEN_SECONDS and self._workers.unseen():
                raise WorkerDied(None)
            if dead is not None:
                dead_since = dead_since or now
                if now - dead_since > _DEAD_SECONDS:
                    raise self._death(dead)

    def _death(self, worker: BaseProcess) -> WorkerDied:
        """Returns the error for a dead worker, after giving grain's threads time to notice it."""
        death = WorkerDied(worker.exitcode)
        self._workers.own_up()
        with contextlib.suppress(Exception):
            self._answer(_CLOSE_SECONDS)
        return death

    def close(self) -> None:
        """Stops threads and workers, killing workers that do not stop in time."""
        self._workers.look()
        if self._busy:
            # The thread is still waiting for workers, which can no longer send anything.
            self._workers.kill()
            closer = threading.Thread(target=self._iterator.close, daemon=True, name="hjepa-close")
            closer.start()
            closer.join(_CLOSE_SECONDS)
        elif self._thread is not None:
            self._ask(self._iterator.close)
            try:
                self._answer(_CLOSE_SECONDS)
            except queue.Empty:
                self._workers.kill()
        else:
            self._iterator.close()
        if self._thread is not None:
            self._asked.put(None)
            self._thread.join(_CLOSE_SECONDS)
            if self._thread.is_alive():
                logging.warning("The input pipeline does not stop: it is waiting for data.")
                _stuck.append(self._thread)
        self._workers.forget()
        # Grain's iterators complain if they survive until the interpreter exits.
        del self._iterator


def any_stuck() -> bool:
    """Returns whether a thread still waits for data and so keeps the interpreter from exiting."""
    return any(thread.is_alive() for thread in _stuck)


def flush_output() -> None:
    """Flushes standard output and error, ignoring closed pipes."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
