"""Copying batches to the devices ahead of their use, and measuring the wait for data."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

Element = TypeVar("Element")
Placed = TypeVar("Placed")


def device_prefetch(
    iterator: Iterator[Element], put: Callable[[Element], Placed], size: int
) -> Iterator[Placed]:
    """Yields `put(element)`, keeping `size` placed elements ahead of the consumer.

    JAX copies to a device asynchronously, so starting the copy early is enough to hide it.

    Args:
      iterator: Host batches.
      put: Places a batch on the devices, for instance `jax.device_put` with shardings.
      size: Elements in flight; 0 places each element when it is asked for.

    Raises:
      ValueError: If `size` is negative.
    """
    if size < 0:
        raise ValueError(f"data.device_prefetch must be 0 or more, not {size}.")
    return _prefetched(iterator, put, size)


def _prefetched(
    iterator: Iterator[Element], put: Callable[[Element], Placed], size: int
) -> Iterator[Placed]:
    ahead: collections.deque[Placed] = collections.deque()
    for element in iterator:
        ahead.append(put(element))
        if len(ahead) > size:
            yield ahead.popleft()
    yield from ahead


class WaitTimer(Generic[Element]):
    """Passes an iterator through and measures how long its consumer waited for it."""

    def __init__(self, iterator: Iterator[Element], clock: Callable[[], float] = time.perf_counter):
        self._iterator = iterator
        self._clock = clock
        self._waited = 0.0
        self._since = clock()

    def __iter__(self) -> WaitTimer[Element]:
        return self

    def __next__(self) -> Element:
        start = self._clock()
        try:
            return next(self._iterator)
        finally:
            self._waited += self._clock() - start

    def take_share(self) -> float:
        """Returns the share in [0, 1] of the time since the last call that was spent waiting."""
        now = self._clock()
        elapsed = now - self._since
        share = self._waited / elapsed if elapsed > 0 else 0.0
        self._waited, self._since = 0.0, now
        return share

    def close(self) -> None:
        """Closes the iterator underneath, if it can be closed."""
        close: Any = getattr(self._iterator, "close", None)
        if close is not None:
            close()
