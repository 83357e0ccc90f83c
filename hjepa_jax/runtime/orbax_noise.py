"""Silences what orbax prints about a failing save, which `checkpoint` reports as one sentence.

On a full disk orbax prints a traceback per array, and Python one per abandoned coroutine.
"""

from __future__ import annotations

import logging
import sys
from typing import Any


def _is_noise(record: logging.LogRecord) -> bool:
    """Returns whether a record is a traceback of orbax's own threads."""
    return record.exc_info is not None and "orbax" in record.pathname


def silence() -> None:
    """Drops those messages for the rest of the process; each error is still raised."""
    logging.getLogger("absl").addFilter(lambda record: not _is_noise(record))
    # Exceptions of further arrays, which nobody waits for once the first has failed.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    previous = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            previous(unraisable)

    sys.unraisablehook = hook
