"""Stopping a run by signal: SIGTERM, SIGHUP or one SIGINT (Ctrl-C) makes it save and exit.

One StopRequest spans all the work of a program, so that a signal during the last training step also
stops the evaluation after it.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import TypeAlias

import jax

from hjepa_jax.errors import TrainingError
from hjepa_jax.runtime import distributed

_log = logging.getLogger(__name__)
# Wait for a batch after a stop request, in a run of several processes.
_PATIENCE_SECONDS = 30.0
_INSIST_SECONDS, _INSIST_POLL_SECONDS = 1.0, 0.2
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class RunStopped(Exception):
    """A run was stopped by request; the checkpoint of `step` holds all its work.

    `step` is None for a run that had not opened its data yet.
    """

    def __init__(self, step: int | None, num_steps: int = 0, *, planned: bool = False):
        how = "planned" if planned else "requested"
        same = "the same command without --stop_after" if planned else "the same command"
        super().__init__(
            "stopped as requested before the first step: the same command starts again."
            if step is None
            else f"stopped as {how} after step {step} of {num_steps}: {same} continues from there."
        )
        self.step = step


class StoppedAtOnce(BaseException):
    """A signal ended work that saves nothing; `except Exception` must not catch it."""


_Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None


class StopRequest:
    """A context in which SIGTERM, SIGHUP and the first SIGINT set a flag; the next SIGINT raises.

    Outside the main thread, where Python allows no signal handlers, it does nothing. A SIGHUP that
    was ignored at the start (nohup) stays ignored.

    Attributes:
      after: the step after which a training stops even without a signal; None = its last one.
    """

    def __init__(self, after: int | None = None) -> None:
        self.after = after
        self._asked = False
        self._at_once: str | None = None
        self._insisting = threading.Lock()
        self._previous: dict[signal.Signals, _Handler] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                    continue
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            # None: not installed by Python, which then cannot restore it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        name = signal.Signals(number).name
        if self._at_once is not None:
            raise StoppedAtOnce(f"{name} stopped {self._at_once}")
        # RuntimeError: the signal arrived while the stream itself was being written to.
        with contextlib.suppress(OSError, RuntimeError):
            _log.warning("%s: stopping after this step.", name)

    @property
    def asked(self) -> bool:
        """Returns whether a signal has asked this process to stop."""
        return self._asked

    @contextlib.contextmanager
    def at_once(self, what: str) -> Iterator[None]:
        """A context in which a signal raises StoppedAtOnce, for work that leaves nothing half done.

        It is raised again every second until the work ends, since Python swallows exceptions raised
        in a destructor or a callback from C++.

        Args:
          what: the work, for the message "SIGTERM stopped <what>".

        Raises:
          StoppedAtOnce: if a signal arrives, or arrived before entering.
        """
        if self._asked:
            raise StoppedAtOnce(f"a signal stopped {what}")
        self._at_once = what
        if self._previous:
            threading.Thread(target=self._insist, daemon=True, name="insist-on-stop").start()
        try:
            yield
        finally:
            self._at_once = None
            with self._insisting:
                pass  # no more signals are pending

    def _insist(self) -> None:
        """Sends the main thread the signal again while the work continues."""
        raised = 0.0
        while self._at_once is not None:
            time.sleep(_INSIST_POLL_SECONDS)
            raised += _INSIST_POLL_SECONDS if self._asked else 0.0
            with self._insisting:
                if raised >= _INSIST_SECONDS and self._at_once is not None:
                    raised = 0.0
                    main = threading.main_thread().ident
                    signal.pthread_kill(main or 0, signal.SIGTERM)

    def agreed(self, together: bool) -> bool:
        """Returns whether to stop now, with the same answer in all processes of a run.

        Args:
          together: whether all processes make this call and can agree. That costs a round trip, so
            several processes do it at log steps only; a single one needs no agreement.
        """
        if jax.process_count() == 1:
            return self._asked
        if not together:
            return False
        return distributed.sum_over_processes(int(self._asked)) > 0

    def ends_wait(self, waited: float) -> bool:
        """Returns whether to give up waiting for a batch, after `waited` seconds.

        One of several processes cannot stop alone, since the others would wait for it in their
        step; if no batch arrives for too long, all of them fail.

        Raises:
          TrainingError: if one of several processes waited too long.
        """
        if not self._asked:
            return False
        if jax.process_count() == 1:
            return True
        if waited > _PATIENCE_SECONDS:
            raise TrainingError(
                f"asked to stop, but no batch has arrived for {waited:.0f} s, and the other "
                f"processes wait for this one's step: start all of them again, and the run "
                f"continues from its newest checkpoint."
            )
        return False
