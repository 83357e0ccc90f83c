"""Plain-word alarms about a state that is collapsing, from the figures logged in training."""

from __future__ import annotations

import math
from collections.abc import Mapping

_NAMES = {"q": "position q", "p": "momentum p", "z": "state z"}


def _advice(part: str, term: str) -> str:
    if part == "z":
        return "raise sigreg.weight"
    return f"raise loss.{term}_weight or loss.{part}_{'std' if term == 'var' else term}_floor"


def collapse_alarms(
    metrics: Mapping[str, float],
    *,
    pr_floor: float = 0.03,
    std_floor: float = 0.02,
    targets: Mapping[str, float] | None = None,
    budget_factor: float = 4.0,
) -> list[str]:
    """Says in sentences what is wrong with the state of one training step.

    Only fields that are present are judged, so logs of either objective can be passed.

    Args:
      metrics: for q, p and z: `q_pr` (participation ratio over its largest possible value),
        `q_std_min` (smallest standard deviation of a dimension) and `q2` (mean square). Of all
        others only that they are finite is judged.
      pr_floor: a normalised participation ratio below this is an alarm.
      std_floor: a smallest standard deviation below this is one.
      targets: budget of the mean square of 'q' and 'p'; None = 1 for both.
      budget_factor: a mean square more than this times above or below its target is one.

    Returns:
      One sentence for each alarm, the gravest first; an empty list when all is well.
    """
    broken = sorted(name for name, value in metrics.items() if not math.isfinite(value))
    alarms = []
    if broken:
        alarms.append(
            f"Not finite: {', '.join(broken)}. Training has diverged; lower the learning rate, or "
            "clip gradients, and start again from an earlier checkpoint."
        )
    for part, name in _NAMES.items():
        ratio, deviation = metrics.get(f"{part}_pr"), metrics.get(f"{part}_std_min")
        square, target = metrics.get(f"{part}2"), (targets or {}).get(part, 1.0)
        if ratio is not None and ratio < pr_floor:
            alarms.append(
                f"The {name} varies in few directions (participation ratio {ratio:.3f} of the "
                f"possible, alarm below {pr_floor:g}): {_advice(part, 'logdet')}."
            )
        if deviation is not None and deviation < std_floor:
            alarms.append(
                f"A dimension of the {name} hardly varies (standard deviation {deviation:.4f}, "
                f"alarm below {std_floor:g}): {_advice(part, 'var')}."
            )
        if square is None or not math.isfinite(square):
            continue
        if not target / budget_factor <= square <= target * budget_factor:
            side = "below" if square < target else "above"
            alarms.append(
                f"The mean square of the {name} is {square:.4g}, more than {budget_factor:g} "
                f"times {side} its budget {target:g}: raise loss.budget_weight."
            )
    return alarms
