"""Headline figures of an evaluation, their intervals and differences, and notes on them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hjepa_jax.evaluation import validity
from hjepa_jax.evaluation.diagnostics import MEAN_CEILING
from hjepa_jax.evaluation.report.plots import Metrics

PIXELS = "pixels"
_SQRT_H = " sqrt_h"
# These rows get no advice on training: nothing was trained, or the row of raw states has it.
_WITHOUT_ADVICE = ("random", PIXELS)
# Computed from centered features: meaningless for a state that is nearly all mean.
RANKS = ("effective_rank", "participation_ratio")


class Figure(NamedTuple):
    """How a headline figure is shown.

    Attributes:
      title, short: column titles on a page and in a table of 80 columns; '{k}' is its k.
      factor: what its value is multiplied by.
      digits: decimals.
      more_is_better: None = neither.
    """

    title: str
    short: str
    factor: float
    digits: int
    more_is_better: bool | None


FIGURES = {
    "knn": Figure("kNN@{k} %", "kNN@{k} %", 100, 1, True),
    "knn_first": Figure("kNN@{k} %", "kNN@{k} %", 100, 1, True),
    "knn_weighted": Figure("weighted kNN@{k} %", "weighted kNN@{k} %", 100, 1, True),
    "probe_top1": Figure("probe top-1 %", "probe top-1 %", 100, 1, True),
    "probe_top5": Figure("probe top-5 %", "probe top-5 %", 100, 1, True),
    "logistic_top1": Figure("logistic top-1 %", "logistic top-1 %", 100, 1, True),
    "attentive_top1": Figure("attentive top-1 %", "attent. top-1 %", 100, 1, True),
    "effective_rank": Figure("effective rank", "eff. rank", 1, 1, None),
    "participation_ratio": Figure("particip. ratio", "particip. ratio", 1, 1, None),
    "rankme": Figure("RankMe", "RankMe", 1, 1, None),
    "mean_share": Figure("energy in mean %", "in mean %", 100, 1, None),
    "alignment": Figure("alignment", "align.", 1, 3, None),
    "uniformity": Figure("uniformity", "unif.", 1, 3, None),
}
# With fewer test images, the interval of an accuracy is wider than +-13 points.
FEW = 50
ACCURACIES = ("knn", "knn_first", "knn_weighted", "probe_top1", "probe_top5")
ACCURACIES += ("logistic_top1", "attentive_top1")
# Figures that a report may be without -> what holds their accuracies in it.
_FURTHER = {
    "knn_weighted": "knn_weighted",
    "logistic_top1": "logistic",
    "attentive_top1": "attentive",
}


def shown_coordinates(info: Metrics) -> str | None:
    """Returns a report's coordinates in words, from its `info`; None for raw states alone."""
    words = {"sqrt_h": "H^{1/2} z", "both": "z and H^{1/2} z"}
    found = words.get(info.get("coordinates", "raw"))
    return f"{found}, post-hoc H {info['posthoc']}" if found and "posthoc" in info else found


def shown_features(info: Metrics) -> str | None:
    """Returns on which side of the projector a report's features are; None without a projector."""
    words = {"encoder": "before the projector", "projector": "after the projector"}
    return words.get(info.get("features", ""))


def in_sqrt_h(name: str) -> str:
    """Returns the name of an encoder's row in the coordinates H^{1/2} z, beside that of z."""
    return f"{name}{_SQRT_H}"


def titles(encoder_metrics: Metrics, headline_k: int, *, short: bool = False) -> dict[str, str]:
    """Returns the column title of each headline figure; kNN at the same k is not shown twice."""
    return titles_at(headline_ks(encoder_metrics, headline_k), further(encoder_metrics), short)


def further(encoder_metrics: Metrics) -> dict[str, Metrics]:
    """Returns what holds the accuracies of the further figures that an encoder has."""
    return {name: encoder_metrics[key] for name, key in _FURTHER.items() if key in encoder_metrics}


def titles_at(
    used: Mapping[str, int], present: Collection[str], short: bool = False
) -> dict[str, str]:
    """Returns `titles` for the k of `headline_ks`, with the further figures that are present."""
    shown = {
        name: (figure.short if short else figure.title).format(k=used.get(name))
        for name, figure in FIGURES.items()
        if name in present or name not in _FURTHER
    }
    if used["knn"] == used["knn_first"]:
        del shown["knn_first"]
    return shown


def headline_ks(encoder_metrics: Metrics, k: int) -> dict[str, int]:
    """Returns the k of each kNN figure of `headline`."""
    ks = encoder_metrics["knn"]["k_values"]
    used = ks[headline_position(encoder_metrics, k)]
    return {"knn": used, "knn_first": ks[0], "knn_weighted": used}


def headline_position(encoder_metrics: Metrics, k: int) -> int:
    """Returns the position of the largest k not above `k` (the first if there is none)."""
    ks = encoder_metrics["knn"]["k_values"]
    return max(i for i, used in enumerate(ks) if used <= k or i == 0)


def _value(found: Metrics, name: str, position: int) -> Any:
    """Returns a value of a classifier, or that of a kNN at a position in its k values."""
    value = found.get(name)
    return value[position] if "k_values" in found and value else value


def headline(encoder_metrics: Metrics, k: int) -> dict[str, float]:
    """Returns the headline figures of one encoder; kNN at the largest k not above `k`.

    Missing values (null in metrics.json, or absent from an older one) are NaN. Of the further
    figures there are only those that the encoder has.
    """
    position = headline_position(encoder_metrics, k)
    neighbors = encoder_metrics["knn"]
    measured = encoder_metrics["diagnostics"]
    covariance, views = measured["covariance_spectrum_topq"], measured["alignment_uniformity"]
    found = {
        "knn": neighbors["top1"][position],
        "knn_first": neighbors["top1"][0],
        "probe_top1": encoder_metrics["linear_probe"]["top1"],
        "probe_top5": encoder_metrics["linear_probe"]["top5"],
        "effective_rank": covariance["effective_rank"],
        "participation_ratio": covariance["participation_ratio"],
        "rankme": covariance.get("rankme"),
        "mean_share": covariance.get("mean_share"),
        "alignment": views["alignment"],
        "uniformity": views["uniformity"],
    }
    for name, one in further(encoder_metrics).items():
        found[name] = _value(one, "top1", position)
    return {name: math.nan if value is None else value for name, value in found.items()}


def headline_intervals(encoder_metrics: Metrics, k: int) -> dict[str, tuple[float, float] | None]:
    """Returns the 95% interval of each accuracy of `headline`; None if there is none."""
    neighbors = encoder_metrics["knn"].get("top1_interval") or [None]
    linear = encoder_metrics["linear_probe"]
    position = min(headline_position(encoder_metrics, k), len(neighbors) - 1)
    found = {
        "knn": neighbors[position],
        "knn_first": neighbors[0],
        "probe_top1": linear.get("top1_interval"),
        "probe_top5": linear.get("top5_interval"),
    }
    for name, one in further(encoder_metrics).items():
        found[name] = _value(one, "top1_interval", position)
    return {
        name: (bounds[0], bounds[1]) if isinstance(bounds, (list, tuple)) else None
        for name, bounds in found.items()
    }


def differences(encoders: Mapping[str, Metrics], k: int, tested: int) -> dict[str, float | None]:
    """Returns trained minus random for every headline figure; empty without both encoders.

    None if either value is missing, for ranks if either state has nearly collapsed to a point, and
    for accuracies on fewer than 50 images, `tested`, where it is mostly chance.
    """
    return _difference(encoders, "trained", "random", k, tested)


def minus_raw(encoders: Mapping[str, Metrics], k: int, tested: int) -> dict[str, float | None]:
    """Returns the trained encoder's H^{1/2} z minus z; see `differences`."""
    return _difference(encoders, in_sqrt_h("trained"), "trained", k, tested)


def _difference(
    encoders: Mapping[str, Metrics], of: str, than: str, k: int, tested: int
) -> dict[str, float | None]:
    if not {of, than} <= encoders.keys():
        return {}
    first, second = headline(encoders[of], k), headline(encoders[than], k)
    hidden = RANKS if max(first["mean_share"], second["mean_share"]) > MEAN_CEILING else ()
    hidden += ACCURACIES if tested < FEW else ()
    found = {name: value - second.get(name, math.nan) for name, value in first.items()}
    return {
        name: None if name in hidden or math.isnan(value) else value
        for name, value in found.items()
    }


def notes_of(
    encoders: Mapping[str, Metrics],
    train_labels: np.ndarray,
    test_labels: np.ndarray,
    shared: int,
    given: Sequence[str],
) -> list[str]:
    """Returns caveats about the results, as sentences, most severe first.

    Args:
      encoders: metrics by name.
      train_labels: int [N] of the training set, -1 = no label.
      test_labels: int [M] of the test set, -1 = no label.
      shared: number of labeled test images that are also training images.
      given: sentences to begin with.
    """
    first = next(iter(encoders.values()))
    notes = list(given)
    if "no_accuracy" in first:
        notes.append(f"No accuracy: {first['no_accuracy']}")
    for name, one in encoders.items():
        plain = name in _WITHOUT_ADVICE or name.endswith(_SQRT_H)
        alarms = one["collapse"] if plain else one["alarms"]
        notes += [f"{name}: {sentence}" for sentence in alarms]
        if one["collapse"]:
            notes.append(
                f"{name}: effective rank and participation ratio describe centered features and "
                "are meaningless for a nearly collapsed state; use RankMe instead."
            )
        notes += [f"{name}: {sentence}" for sentence in one["notes"]]
    return notes + validity.notes_on_sets(train_labels, test_labels, shared)
