"""Advisory locks on files, which the kernel releases whenever their process ends."""

from __future__ import annotations

import errno
import fcntl
from typing import Literal

_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


def take_lock(file: int, *, shared: bool = False) -> Literal["taken", "held", "unsupported"]:
    """Locks an open file without waiting.

    Args:
      file: the descriptor, whose closing releases the lock.
      shared: whether others may share it, as suits one who only asks.

    Returns:
      'held' if another process has it, 'unsupported' if the file system has no locks.

    Raises:
      OSError: if the file cannot be locked for another reason.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return "unsupported"
    return "taken"
