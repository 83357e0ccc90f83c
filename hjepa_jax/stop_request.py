"""Stopping a run from outside: SIGTERM, or SIGINT (Ctrl-C) once, asks it to save and end."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax

from hjepa_jax import distributed

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class RunStopped(Exception):
    """A run ended early because it was asked to; the checkpoint of `step` holds all its work."""

    def __init__(self, step: int, num_steps: int):
        super().__init__(
            f"stopped as asked after step {step} of {num_steps}: the same command goes on "
            "from there."
        )
        self.step = step


class StopRequest:
    """Within its context, SIGTERM and the first SIGINT only set a flag; the next SIGINT interrupts.

    Outside the main thread, where Python allows no handlers, nothing is caught.
    """

    def __init__(self) -> None:
        self._asked = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            # None: not installed by Python, which then cannot put it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        _log.warning("%s: stopping after this step.", signal.Signals(number).name)

    def agreed(self, together: bool) -> bool:
        """Returns whether to stop now; the same answer in all processes of a run.

        Args:
          together: whether all processes are here to agree. A single process always is; several
            ask each other, which costs a round trip, so they do it at log steps only.
        """
        if jax.process_count() == 1:
            return self._asked
        if not together:
            return False
        return distributed.sum_over_processes(int(self._asked)) > 0
