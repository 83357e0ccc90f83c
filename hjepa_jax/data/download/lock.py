"""A lock between the processes that fill one cache: the first one works, the others wait.

Not `filelock`, for the reasons in `hjepa_jax/runtime/workdir_lock.py`: those who wait should read
whom they wait for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import socket
import time
from collections.abc import Iterator

from hjepa_jax.storage.files import printable
from hjepa_jax.storage.lock import take_lock

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.2


@contextlib.contextmanager
def locked(path: pathlib.Path, what: str) -> Iterator[None]:
    """A context that one process at a time is in; the kernel releases the lock of a dead one.

    The lock file stays: removing it would let two processes lock two files of the same name.

    Args:
      path: the lock file; its folder exists.
      what: what is being done inside, for those who wait.

    Raises:
      OSError: if the file cannot be written.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        told = False
        while (answer := take_lock(file)) == "held":
            if not told:
                told = True
                holder = printable(os.pread(file, 300, 0).decode(errors="replace"))
                _log.warning("waiting for %s: %s", holder or "another process", what)
            time.sleep(_POLL_SECONDS)
        if answer == "unsupported":
            _log.warning("%s cannot be locked: let one process alone fill this folder", path)
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(file)
