"""Label-free diagnostics of one encoder's features, with settings from the config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from hjepa_jax.evaluation import similarity, spectrum
from hjepa_jax.evaluation.features import select_variant

Metrics = dict[str, Any]
# Directions on which the participation ratio is taken, as loss.logdet_dim by default.
_ALARM_DIM = 128
_NAMES = {"q": "position q", "p": "momentum p", "z": "state z"}
# More energy than this in the mean: less than 1 % tells one image from another. Encoders at random
# initialisation have 90 to 95 %.
MEAN_CEILING = 0.99
# Prediction errors of a flow that moves states at all sensibly are below the state's square.
PREDICTION_CEILING = 1000.0


class Diagnostics(NamedTuple):
    """Metrics, and the cosine similarities [P] of random pairs behind their summary."""

    metrics: Metrics
    cosine: np.ndarray


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


def state_alarms(
    states: np.ndarray,
    split_qp: bool,
    config: Any,
    targets: Mapping[str, float] | None = None,
    objective: str | None = None,
) -> tuple[list[str], list[str]]:
    """Judges states [N, D] as training's alarms do, each half of [q | p] or the whole z.

    Args:
      states: of the training images.
      split_qp: whether they are [q | p].
      config: `config.evaluation`.
      targets: mean squares that training aimed at, by part; None = these are not judged.
      objective: of the training, see `collapse_alarms`.

    Returns:
      The sentences of a state that is nearly one point, without advice, and those of all alarms.
    """
    rows = spectrum.subsample_rows(len(states), config.spectrum_samples, config.seed)
    figures: dict[str, float] = {}
    for part in ("q", "p") if split_qp else ("z",):
        x = select_variant(states[rows], "qp" if part == "z" else part, split_qp)
        figures |= {
            f"{part}_pr": spectrum.projected_participation(x, _ALARM_DIM, config.seed),
            f"{part}_std_min": float(x.std(axis=0, dtype=np.float64).min()),
            f"{part}_mean_share": spectrum.mean_share(x),
        }
        if targets is not None and part in targets:
            figures[f"{part}2"] = float(np.mean(np.square(x, dtype=np.float64)))
    every = collapse_alarms(figures, targets=targets, objective=objective)
    shares = {part: figures.get(f"{part}_mean_share", 0.0) for part in ("q", "p", "z")}
    points = [s for part, share in shares.items() if (s := mean_alarm(part, share))]
    return points, every


def diagnose(
    train: np.ndarray,
    test: np.ndarray,
    views: tuple[np.ndarray, np.ndarray],
    config: Any,
    *,
    reference: bool = False,
) -> Diagnostics:
    """Describes the distribution of features.

    Args:
      train: features [N, D] whose covariance spectrum is taken (training images are more).
      test: features [M, D] for cosine similarities and norms.
      views: features [B, D] of two augmented views, for alignment and uniformity.
      config: `config.evaluation`.
      reference: draw pairs as the published protocol does, see `similarity.reference_pairs`.

    Returns:
      Metrics `covariance_spectrum_topq`, `cosine_similarity`, `feature_norms` and
      `alignment_uniformity`, and the cosines.
    """
    covariance = spectrum.covariance_spectrum(
        train, max_samples=config.spectrum_samples, top=config.spectrum_top, seed=config.seed
    )
    cosine = similarity.cosine_similarities(test, *_pairs(len(test), config, reference))
    pairs = _pairs(len(views[0]), config, reference)
    metrics = {
        "covariance_spectrum_topq": {
            **covariance._asdict(),
            "eigenvalues": covariance.eigenvalues.tolist(),
        },
        "cosine_similarity": similarity.summarise(cosine),
        "feature_norms": similarity.summarise(np.linalg.norm(test, axis=1)),
        "alignment_uniformity": similarity.alignment_uniformity(*views, *pairs),
    }
    return Diagnostics(metrics, cosine)


def _pairs(count: int, config: Any, reference: bool) -> tuple[np.ndarray, np.ndarray]:
    if reference:
        wanted = min(config.max_pairs, 2 * count)
        return similarity.reference_pairs(count, wanted, config.seed)
    return similarity.random_pairs(count, config.max_pairs, config.seed)


def cka_q_p(states: np.ndarray, config: Any) -> float:
    """Linear CKA between q and p of states [N, 2d] (of `spectrum_samples` of them)."""
    rows = spectrum.subsample_rows(len(states), config.spectrum_samples, config.seed)
    q, p = (select_variant(states[rows], name, split_qp=True) for name in ("q", "p"))
    return similarity.linear_cka(q, p)
