"""A bounded cache of encoded image bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable


class ByteCache:
    """Keeps the first bytes read, up to a budget, for as long as it lives.

    Nothing is ever evicted: training reads every image once an epoch in random order, for which
    replacing entries gives no more hits and costs more work. A pickled cache arrives empty, so that
    worker processes do not receive its content.
    """

    def __init__(self, megabytes: float):
        """Makes a cache of at most this many MiB; 0 keeps nothing."""
        self._megabytes = megabytes
        self._free = int(megabytes * 2**20)
        self._entries: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[ByteCache], tuple[float]]:
        return ByteCache, (self._megabytes,)

    def get(self, key: int, read: Callable[[], bytes]) -> bytes:
        """Returns the bytes of a key, from memory or from `read()`."""
        entry = self._entries.get(key)
        if entry is not None:
            return entry
        entry = read()
        with self._lock:
            if len(entry) <= self._free and key not in self._entries:
                self._entries[key] = entry
                self._free -= len(entry)
        return entry
