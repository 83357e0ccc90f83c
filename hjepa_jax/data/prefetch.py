"""Copies batches to the devices ahead of their use, and measures the wait for data."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Element = TypeVar("Element")
Placed = TypeVar("Placed")


def device_prefetch(
    iterator: Iterable[Element], put: Callable[[Element], Placed], size: int
) -> Iterator[Placed]:
    """Yields `put(element)`, keeping `size` placed elements ahead of the consumer.

    JAX copies to a device asynchronously, so starting the copy early is enough to hide it.

    Args:
      iterator: host batches.
      put: places a batch on the devices, for example `jax.device_put` with shardings.
      size: elements in flight; 0 places each element on request.

    Returns:
      An iterator over the placed elements.

    Raises:
      ValueError: if `size` is negative.
    """
    if size < 0:
        raise ValueError(f"data.device_prefetch must be 0 or more, not {size}.")
    return _prefetched(iterator, put, size)


def _prefetched(
    iterator: Iterable[Element], put: Callable[[Element], Placed], size: int
) -> Iterator[Placed]:
    ahead: collections.deque[Placed] = collections.deque()
    for element in iterator:
        ahead.append(put(element))
        if len(ahead) > size:
            yield ahead.popleft()
    yield from ahead


class WaitTimer:
    """Measures how long the consumer of an iterator waits for elements."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._waited = 0.0

    def measure(self, iterator: Iterable[Element]) -> Iterator[Element]:
        """Yields the elements of an iterator, adding the time until each arrives to the total."""
        iterator = iter(iterator)
        while True:
            start = self._clock()
            try:
                element = next(iterator)
            except StopIteration:
                return
            finally:
                self._waited += self._clock() - start
            yield element

    def take(self) -> float:
        """Returns the seconds waited since the last call and resets the total."""
        waited, self._waited = self._waited, 0.0
        return waited
