"""What an evaluation needs of coordinates: a map of features, and what is known of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np

# Rows that are transformed at a time.
_CHUNK = 2048


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """A linear map of states.

    Attributes:
      apply: states [N, D] -> float32 [N, D], on the host.
      record: how it was fitted, as metrics.json has it; {} = it was not.
    """

    apply: Callable[[np.ndarray], np.ndarray]
    record: dict[str, Any] = dataclasses.field(default_factory=dict)


# Training states float32 [N, D] of an encoder -> its coordinates.
Fit: TypeAlias = Callable[[np.ndarray], Coordinates]


def in_chunks(
    transform: Callable[[np.ndarray], jax.Array | np.ndarray],
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that applies `transform` to states [N, D] a chunk of rows at a time.

    The last chunk is padded, so that a jitted `transform` is compiled once for many rows.
    """

    def apply(states: np.ndarray) -> np.ndarray:
        found = np.empty(states.shape, np.float32)
        size = min(_CHUNK, len(states))
        for start in range(0, len(states), size):
            rows = np.asarray(states[start : start + size], np.float32)
            padded = np.pad(rows, ((0, size - len(rows)), (0, 0)))
            found[start : start + len(rows)] = np.asarray(transform(padded))[: len(rows)]
        return found

    return apply
