"""One training run in a workdir at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
from types import TracebackType

from hjepa_jax import distributed
from hjepa_jax.errors import CheckpointError

_log = logging.getLogger(__name__)
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


class WorkdirLock:
    """Holds `lock` in a workdir; the kernel releases it when the process ends, however it ends.

    The file stays: removing it would let two processes hold locks on two files of one name. Of a
    run of several processes, process 0 alone takes it.
    """

    def __init__(self, workdir: pathlib.Path):
        """Takes the workdir, which is created on entry."""
        self._path = workdir / "lock"
        self._file: int | None = None

    def __enter__(self) -> WorkdirLock:
        """Takes the lock.

        Raises:
          CheckpointError: if another process holds it; process and host are named.
        """
        if not distributed.is_primary():
            return self
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 1000).decode(errors="replace")
            os.close(file)
            raise CheckpointError(self._sentence(holder)) from None
        except OSError as error:
            os.close(file)
            if error.errno not in _UNSUPPORTED:
                raise
            _log.warning(
                "%s cannot be locked (%s): start no second run in this workdir.", self._path, error
            )
            return self
        self._file = file
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _sentence(self, holder: str) -> str:
        try:
            named = json.loads(holder)
            who = f"process {int(named['pid'])} on {named['host']}"
        except (ValueError, KeyError, TypeError):
            who = "another process"  # it has not written its name yet
        return (
            f"{who} is training in {self._path.parent}: wait for it or stop it, or choose another "
            "--workdir."
        )
