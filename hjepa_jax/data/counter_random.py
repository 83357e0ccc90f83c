"""Counter-based random numbers: every draw depends only on its coordinates.

A draw is a hash of (seed, stream, epoch, index, view, slot), independent of the order in which
images are loaded and of the number of threads, workers and processes. It is our own code because
NumPy's generators cannot be indexed by arrays of coordinates. The mixing
function is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014), vectorized over arrays of counters.
"""

from __future__ import annotations

import enum

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB


class Stream(enum.IntEnum):
    """The purpose of a stream of random numbers; different streams are independent."""

    ORDER = 1
    AUGMENTATION = 2
    SUBSET = 3
    REPLACEMENT = 4
    PAIRS = 5
    HOLDOUT = 6


def _mix_int(value: int) -> int:
    """Applies SplitMix64's finalizer to a Python integer, modulo 2**64."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * _MULTIPLIER_1) & _MASK
    value = ((value ^ (value >> 27)) * _MULTIPLIER_2) & _MASK
    return value ^ (value >> 31)


def mix(values: UInt64Array) -> UInt64Array:
    """Returns SplitMix64's finalizer of each element, uint64 of the same shape."""
    mixed = values + np.uint64(_GOLDEN)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(_MULTIPLIER_1)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(_MULTIPLIER_2)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def stream_key(seed: int, stream: Stream, epoch: int = 0) -> int:
    """Returns the 64-bit key of the stream of one seed, purpose and epoch."""
    key = _mix_int(seed & _MASK)
    key = _mix_int(key ^ int(stream))
    return _mix_int(key ^ (epoch & _MASK))


def hashes(key: int, *coordinates: npt.ArrayLike) -> UInt64Array:
    """Returns uint64 hashes of integer coordinates under a key.

    Args:
      key: a key from `stream_key`.
      *coordinates: integer arrays that broadcast against each other, non-negative.

    Returns:
      An array of the broadcast shape.
    """
    state: UInt64Array = np.asarray(key, np.uint64)[None]
    for coordinate in coordinates:
        state = mix(state ^ np.asarray(coordinate, np.uint64))
    return state


def uniforms(key: int, *coordinates: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Returns float64 numbers uniform on [0, 1) with 53 random bits; arguments as `hashes`."""
    return (hashes(key, *coordinates) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(key: int, length: int) -> npt.NDArray[np.int64]:
    """Returns a permutation of range(length), the same on every machine and NumPy version."""
    return np.argsort(hashes(key, np.arange(length)), kind="stable")
