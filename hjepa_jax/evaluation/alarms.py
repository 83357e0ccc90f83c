"""Plain-word alarms about a state that is collapsing, from figures of training or evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping

_NAMES = {"q": "position q", "p": "momentum p", "z": "state z"}
# More energy than this in the mean: less than 1 % tells one image from another. Encoders at random
# initialisation have 90 to 95 %.
MEAN_CEILING = 0.99
# Prediction errors of a flow that moves states at all sensibly are below the state's square.
PREDICTION_CEILING = 1000.0


def _advice(part: str, term: str, objective: str | None) -> str:
    """Returns what to raise against a fault of a part: fields that this objective has."""
    if objective == "sigreg" or (objective is None and part == "z"):
        return "raise sigreg.weight"
    if term == "budget":
        return "raise loss.budget_weight"
    if term == "mean":
        return "raise loss.var_weight or loss.mean_weight"
    return f"raise loss.{term}_weight or loss.{part}_{'std' if term == 'var' else term}_floor"


def mean_share_of(metrics: Mapping[str, float], part: str) -> float | None:
    """Returns the share of a part's energy that lies in its mean; None where it is not known.

    As `<part>_mean_share`, or from what training logs: the means over dimensions of the squared
    mean and of the square.
    """
    if f"{part}_mean_share" in metrics:
        return metrics[f"{part}_mean_share"]
    halves = [metrics[name] for name in ("q2", "p2") if name in metrics]
    square = metrics.get(f"{part}2")
    if square is None and part == "z" and len(halves) == 2:
        square = sum(halves) / 2
    mean2 = metrics.get(f"{part}_mean2")
    return None if mean2 is None or not square else mean2 / square


def mean_alarm(
    part: str, share: float, ceiling: float = MEAN_CEILING, remedy: str | None = None
) -> str | None:
    """Returns the sentence on a part ('q', 'p' or 'z') that is nearly one point; None if not."""
    if not share > ceiling:
        return None
    return (
        f"The {_NAMES[part]} is nearly one point: {100 * share:.2f} % of its energy lies in the "
        f"mean over images (alarm above {100 * ceiling:g} %){f': {remedy}' if remedy else ''}."
    )


def prediction_alarm(
    metrics: Mapping[str, float], ceiling: float = PREDICTION_CEILING
) -> str | None:
    """Returns the sentence on a prediction error out of all proportion to the state; None if not.

    A prediction of zero errs by the mean square of the state. Only where q and p are logged.
    """
    error, squares = metrics.get("pred"), [metrics.get("q2"), metrics.get("p2")]
    known = [square for square in squares if square is not None]
    scale = max(known, default=math.nan)
    if error is None or not math.isfinite(error) or not error > ceiling * max(scale, 1e-12):
        return None
    return (
        f"The prediction error is {error:.4g} where the mean square of the state is {scale:.4g} "
        f"(alarm above {ceiling:g} times that): the flow throws the states far out; lower "
        "dynamics.dt, dynamics.steps, dynamics.base_coeff, dynamics.residual_scale or "
        "loss.energy_weight."
    )


def collapse_alarms(
    metrics: Mapping[str, float],
    *,
    pr_floor: float = 0.03,
    std_floor: float = 0.02,
    mean_ceiling: float = MEAN_CEILING,
    targets: Mapping[str, float] | None = None,
    budget_factor: float = 4.0,
    objective: str | None = None,
) -> list[str]:
    """Says in sentences what is wrong with the state of one training step.

    Only fields that are present are judged, so logs of either objective can be passed.

    Args:
      metrics: for q, p and z: `q_pr` (participation ratio over its largest possible value),
        `q_std_min` (smallest standard deviation of a dimension), `q2` (mean square) and
        `q_mean2` (mean of the squared mean) or `q_mean_share`; and `pred`, the prediction error.
        Of all others only that they are finite is judged.
      pr_floor: a normalised participation ratio below this is an alarm.
      std_floor: a smallest standard deviation below this is one.
      mean_ceiling: a share of the energy in the mean above this is one.
      targets: budget of the mean square of 'q' and 'p'; None = 1 for both.
      budget_factor: a mean square more than this times above or below its target is one.
      objective: 'hjepa' or 'sigreg', whose fields are advised; None = 'sigreg' for z alone.

    Returns:
      One sentence for each alarm, the gravest first; an empty list when all is well.
    """
    broken = sorted(name for name, value in metrics.items() if not math.isfinite(value))
    alarms = []
    if broken:
        alarms.append(
            f"Not finite: {', '.join(broken)}. Training has diverged; failure.json in the workdir "
            "of a run that stopped says what came first and which fields to look at."
        )
    if sentence := prediction_alarm(metrics):
        alarms.append(sentence)
    for part, name in _NAMES.items():
        ratio, deviation = metrics.get(f"{part}_pr"), metrics.get(f"{part}_std_min")
        square, target = metrics.get(f"{part}2"), (targets or {}).get(part, 1.0)
        share = mean_share_of(metrics, part)
        remedy = _advice(part, "mean", objective)
        if share is not None and (sentence := mean_alarm(part, share, mean_ceiling, remedy)):
            alarms.append(sentence)
        if ratio is not None and ratio < pr_floor:
            alarms.append(
                f"The {name} varies in few directions (participation ratio {ratio:.3f} of the "
                f"possible, alarm below {pr_floor:g}): {_advice(part, 'logdet', objective)}."
            )
        if deviation is not None and deviation < std_floor:
            alarms.append(
                f"A dimension of the {name} hardly varies (standard deviation {deviation:.4f}, "
                f"alarm below {std_floor:g}): {_advice(part, 'var', objective)}."
            )
        if square is None or not math.isfinite(square):
            continue
        if not target / budget_factor <= square <= target * budget_factor:
            side = "below" if square < target else "above"
            alarms.append(
                f"The mean square of the {name} is {square:.4g}, more than {budget_factor:g} "
                f"times {side} its budget {target:g}: {_advice(part, 'budget', objective)}."
            )
    return alarms
