"""Label-free diagnostics of one encoder's features, with settings from `config.evaluation`."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from hjepa_jax.config.sections.evaluation import Evaluation
from hjepa_jax.evaluation import geometry
from hjepa_jax.evaluation.distribution.norms import PART_NAMES
from hjepa_jax.evaluation.features import select_state_part

Metrics = dict[str, Any]
# Random directions for the participation ratio, as many as loss.logdet_dim has by default.
ALARM_DIM = 128
# If the mean holds more than this share of the energy, less than 1 % distinguishes images. Randomly
# initialized encoders have 90 to 95 %.
MEAN_CEILING = 0.99
# In units of the state's mean square, which any reasonable flow stays below.
_PREDICTION_CEILING = 1000.0
# Alarm thresholds: the participation ratio over its maximum, the standard deviation, and the factor
# between a mean square and its budget.
_RATIO_FLOOR = 0.03
_DEVIATION_FLOOR = 0.02
_BUDGET_FACTOR = 4.0


# (part of the state, loss term) -> advice, see `Method.remedy`.
Remedy: TypeAlias = Callable[[str, str], str | None]


def no_remedy(part: str, term: str) -> None:
    """Gives no advice."""
    del part, term


class AlarmKind(enum.Enum):
    """Kinds of alarm; the value is the message, which the advice follows."""

    NOT_FINITE = (
        "Not finite: {subject}. Training has diverged; if the run stopped, failure.json in its "
        "workdir says what failed first and which fields to check"
    )
    PREDICTION_ERROR = (
        "The prediction error is {value:.4g}, but the mean square of the state is {scale:.4g} "
        "(alarm above {limit:g} times that)"
    )
    ONE_POINT = (
        "The {subject} has nearly collapsed to a point: {value:.2f} % of its energy is in the mean "
        "over images (alarm above {limit:g} %)"
    )
    FEW_DIRECTIONS = (
        "The {subject} varies in few directions (participation ratio {value:.3f} of its "
        "maximum, alarm below {limit:g})"
    )
    FLAT_DIMENSION = (
        "A dimension of the {subject} hardly varies (standard deviation {value:.4f}, alarm below "
        "{limit:g})"
    )
    BELOW_BUDGET = (
        "The mean square of the {subject} is {value:.4g}, less than 1/{limit:g} of its "
        "budget {scale:g}"
    )
    ABOVE_BUDGET = (
        "The mean square of the {subject} is {value:.4g}, more than {limit:g} times its "
        "budget {scale:g}"
    )


class Alarm(NamedTuple):
    """One alarm.

    Attributes:
      kind: what is wrong.
      subject: the part of the state, or the names of the metrics that are not finite.
      value: the measured value.
      limit: the threshold.
      scale: the value that the threshold is relative to.
      advice: what to do, which ends the sentence; None if there is no advice.
    """

    kind: AlarmKind
    subject: str = "state"
    value: float = math.nan
    limit: float = math.nan
    scale: float = math.nan
    advice: str | None = None

    def sentence(self, *, advice: bool = True) -> str:
        """Returns the alarm as a sentence, which ends with the advice if `advice` is True."""
        text = self.kind.value.format(
            subject=self.subject, value=self.value, limit=self.limit, scale=self.scale
        )
        return f"{text}: {self.advice}." if advice and self.advice else f"{text}."


class Diagnostics(NamedTuple):
    """Metrics, and the cosine similarities [P] of random pairs that they summarize."""

    metrics: Metrics
    cosine: np.ndarray


def mean_share_of(metrics: Mapping[str, float], part: str) -> float | None:
    """Returns the share of a part's energy that lies in its mean; None if unknown.

    It is `<part>_mean_share`, or the ratio of two metrics that training logs: the squared mean and
    the square, averaged over dimensions.
    """
    if f"{part}_mean_share" in metrics:
        return metrics[f"{part}_mean_share"]
    halves = [metrics[name] for name in ("q2", "p2") if name in metrics]
    square = metrics.get(f"{part}2")
    if square is None and part == "z" and len(halves) == 2:
        square = sum(halves) / 2
    mean2 = metrics.get(f"{part}_mean2")
    return None if mean2 is None or not square else mean2 / square


def _prediction_alarm(metrics: Mapping[str, float], remedy: Remedy) -> Alarm | None:
    """Returns an alarm if the prediction error is far larger than the state, else None.

    The error of predicting zero is the state's mean square. Needs logged q and p.
    """
    error, squares = metrics.get("pred"), [metrics.get("q2"), metrics.get("p2")]
    scale = max((square for square in squares if square is not None), default=math.nan)
    if error is None or not math.isfinite(error):
        return None
    if not error > _PREDICTION_CEILING * max(scale, 1e-12):
        return None
    return Alarm(
        AlarmKind.PREDICTION_ERROR,
        value=error,
        limit=_PREDICTION_CEILING,
        scale=scale,
        advice=remedy("z", "pred"),
    )


def _part_alarms(
    metrics: Mapping[str, float], part: str, target: float | None, remedy: Remedy
) -> Iterator[Alarm]:
    """Yields the alarms of one part of the state, most severe first."""
    name = PART_NAMES[part]
    share, square = mean_share_of(metrics, part), metrics.get(f"{part}2")
    ratio, deviation = metrics.get(f"{part}_pr"), metrics.get(f"{part}_std_min")
    if share is not None and share > MEAN_CEILING:
        advice = remedy(part, "mean")
        percent = (100 * share, 100 * MEAN_CEILING)
        yield Alarm(AlarmKind.ONE_POINT, name, *percent, advice=advice)
    if ratio is not None and ratio < _RATIO_FLOOR:
        advice = remedy(part, "logdet")
        yield Alarm(AlarmKind.FEW_DIRECTIONS, name, ratio, _RATIO_FLOOR, advice=advice)
    if deviation is not None and deviation < _DEVIATION_FLOOR:
        advice = remedy(part, "var")
        yield Alarm(AlarmKind.FLAT_DIMENSION, name, deviation, _DEVIATION_FLOOR, advice=advice)
    if target is None or square is None or not math.isfinite(square):
        return
    if not target / _BUDGET_FACTOR <= square <= target * _BUDGET_FACTOR:
        kind = AlarmKind.BELOW_BUDGET if square < target else AlarmKind.ABOVE_BUDGET
        yield Alarm(kind, name, square, _BUDGET_FACTOR, target, remedy(part, "budget"))


def collapse_alarms(
    metrics: Mapping[str, float],
    *,
    targets: Mapping[str, float] | None = None,
    remedy: Remedy = no_remedy,
) -> list[Alarm]:
    """Returns the alarms raised by the metrics of one training step.

    Metrics that are absent are not checked, so logs of any method can be passed.

    Args:
      metrics: for q, p and z: `q_pr` (participation ratio over its largest possible value),
        `q_std_min` (smallest standard deviation of a dimension), `q2` (mean square) and
        `q_mean2` (mean of the squared mean) or `q_mean_share`; and `pred`, the prediction error.
        All others are only checked for being finite.
      targets: budget of the mean square by part, whose square is not checked if absent; None = 1
        for all parts.
      remedy: the method's advice, see `Method.remedy`.

    Returns:
      The alarms, most severe first; an empty list if there are none.
    """
    broken = sorted(name for name, value in metrics.items() if not math.isfinite(value))
    alarms = [Alarm(AlarmKind.NOT_FINITE, ", ".join(broken))] if broken else []
    if (alarm := _prediction_alarm(metrics, remedy)) is not None:
        alarms.append(alarm)
    for part in PART_NAMES:
        target = 1.0 if targets is None else targets.get(part)
        alarms += _part_alarms(metrics, part, target, remedy)
    return alarms


def state_alarms(
    states: np.ndarray,
    split_qp: bool,
    settings: Evaluation,
    targets: Mapping[str, float] | None = None,
    remedy: Remedy = no_remedy,
) -> list[Alarm]:
    """Raises the alarms of training for states [N, D]: for each half of [q | p], or for z.

    Args:
      states: states of the training images.
      split_qp: whether they are [q | p].
      settings: `config.evaluation`.
      targets: training's target mean squares, by part; None = not checked.
      remedy: the method's advice, see `Method.remedy`.

    Returns:
      The alarms, most severe first.
    """
    rows = geometry.subsample_rows(len(states), settings.spectrum_samples, settings.seed)
    figures: dict[str, float] = {}
    for part in ("q", "p") if split_qp else ("z",):
        x = select_state_part(states[rows], "qp" if part == "z" else part, split_qp)
        figures |= {
            f"{part}_pr": geometry.projected_participation(x, ALARM_DIM, settings.seed),
            f"{part}_std_min": float(x.std(axis=0, dtype=np.float64).min()),
            f"{part}_mean_share": geometry.mean_share(x),
        }
        if targets is not None and part in targets:
            figures[f"{part}2"] = float(np.mean(np.square(x, dtype=np.float64)))
    return collapse_alarms(figures, targets=targets, remedy=remedy)


def diagnose(
    train: np.ndarray,
    test: np.ndarray,
    views: tuple[np.ndarray, np.ndarray],
    settings: Evaluation,
) -> Diagnostics:
    """Computes label-free metrics of features.

    Args:
      train: features [N, D] for the covariance spectrum (the larger set).
      test: features [M, D] for cosine similarities and norms.
      views: features [B, D] of two augmented views, for alignment and uniformity.
      settings: `config.evaluation`.

    Returns:
      Metrics `covariance_spectrum_topq`, `cosine_similarity`, `feature_norms` and
      `alignment_uniformity`, and the cosine similarities.
    """
    covariance = geometry.covariance_spectrum(
        train, max_samples=settings.spectrum_samples, top=settings.spectrum_top, seed=settings.seed
    )
    cosine = geometry.cosine_similarities(test, *_pairs(len(test), settings))
    pairs = _pairs(len(views[0]), settings)
    metrics = {
        "covariance_spectrum_topq": {
            **covariance._asdict(),
            "eigenvalues": covariance.eigenvalues.tolist(),
        },
        "cosine_similarity": geometry.summarize(cosine),
        "feature_norms": geometry.summarize(np.linalg.norm(test, axis=1)),
        "alignment_uniformity": geometry.alignment_uniformity(*views, *pairs),
    }
    return Diagnostics(metrics, cosine)


def _pairs(count: int, settings: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    if settings.reference_evaluation:
        wanted = min(settings.max_pairs, 2 * count)
        return geometry.reference_pairs(count, wanted, settings.seed)
    return geometry.random_pairs(count, settings.max_pairs, settings.seed)


def cka_q_p(states: np.ndarray, settings: Evaluation) -> float:
    """Linear CKA between q and p of states [N, 2d] (of `spectrum_samples` of them)."""
    rows = geometry.subsample_rows(len(states), settings.spectrum_samples, settings.seed)
    q, p = (select_state_part(states[rows], name, split_qp=True) for name in ("q", "p"))
    return geometry.linear_cka(q, p)
