"""Confidence intervals of accuracies."""

from __future__ import annotations

import math

# Two-sided 95 % of the normal distribution.
_Z = 1.959963984540054


def wilson(share: float, count: int) -> list[float]:
    """Returns the 95 % interval [low, high] of a share of successes, by Wilson's score.

    It says how far the accuracy of `count` test images may be from that of their population. Unlike
    the normal approximation it is never empty at 0 and 1 and never leaves [0, 1].

    Args:
      share: successes over `count`, in [0, 1].
      count: trials, at least 1.

    Raises:
      ValueError: a share outside [0, 1], or no trial.
    """
    if count < 1 or not 0 <= share <= 1:
        raise ValueError(f"An interval needs a share in [0, 1] of trials, not {share} of {count}.")
    square = _Z * _Z / count
    centre = (share + square / 2) / (1 + square)
    half = _Z / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    low = 0.0 if share == 0 else max(centre - half, 0.0)
    high = 1.0 if share == 1 else min(centre + half, 1.0)
    return [low, high]
