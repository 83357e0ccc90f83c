"""A bounded cache of encoded image bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable


class ByteCache:
    """Keeps the first entries read, up to a budget.

    Nothing is evicted: training reads every image once per epoch in random order, so replacing
    entries would cost work without more hits. A cache unpickles empty, so its content is not sent
    to worker processes.
    """

    def __init__(self, megabytes: float):
        """Creates a cache of at most `megabytes` MiB; 0 keeps nothing."""
        self._megabytes = megabytes
        self._free = int(megabytes * 2**20)
        self._entries: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[ByteCache], tuple[float]]:
        return ByteCache, (self._megabytes,)

    def get(self, key: int, read: Callable[[], bytes]) -> bytes:
        """Returns the bytes stored under a key, or calls `read` for them."""
        entry = self._entries.get(key)
        if entry is not None:
            return entry
        entry = read()
        with self._lock:
            if len(entry) <= self._free and key not in self._entries:
                self._entries[key] = entry
                self._free -= len(entry)
        return entry
