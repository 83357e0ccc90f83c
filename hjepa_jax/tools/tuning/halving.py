"""Successive halving: when trials are compared, and which of them go on.

Source: Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter
optimization", AISTATS 2016.
"""

from __future__ import annotations

import math
from collections.abc import Mapping


def rung_steps(total: int, factor: int, count: int) -> list[int]:
    """Returns the steps after which trials are compared; the last one is the end.

    Each but the last is `factor` times the one before, and all are multiples of the first.

    Args:
      total: steps of a complete training.
      factor: what the steps grow by, and by which trials become fewer.
      count: comparisons before the end, fewer where the training is too short.
    """
    first = max(1, total // factor**count)
    early = [first * factor**rung for rung in range(count)]
    return [*(step for step in early if step < total), total]


def survivors(scores: Mapping[int, float], factor: int) -> list[int]:
    """Returns the trials that go on, in order of their numbers.

    Args:
      scores: trial -> score, higher is better; a failed trial has none that is finite.
      factor: one in `factor` goes on, rounded up; of equal ones that with the lower number.
    """
    finite = {trial: score for trial, score in scores.items() if math.isfinite(score)}
    kept = math.ceil(len(scores) / factor)
    ranked = sorted(finite, key=lambda trial: (-finite[trial], trial))
    return sorted(ranked[:kept])
