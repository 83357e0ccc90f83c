"""kNN and linear probe on one pair of training and test features, by `config.evaluation`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from hjepa_jax.config.sections.evaluation import Evaluation
from hjepa_jax.console import BOARD
from hjepa_jax.data.sources.base import has_label
from hjepa_jax.errors import ConfigError
from hjepa_jax.evaluation import knn, probe, validity
from hjepa_jax.evaluation.features import Batch, Encode, Features, select_state_part, state_parts_of
from hjepa_jax.evaluation.paired.per_image import CLASSIFIERS, Answers
from hjepa_jax.evaluation.probes import attentive, logistic
from hjepa_jax.evaluation.validity import wilson

Metrics = dict[str, Any]
GALLERY_NEIGHBORS = 8
# With at most this many classes, top-5 accuracy is always 1.
TRIVIAL_TOP5 = 5
# An epoch of few images has few steps; a few-shot probe gets at least this many in total.
_FEW_SHOT_STEPS = 500


class ClassifyOptions(TypedDict):
    """The keyword arguments of `classify`."""

    shared: int
    names: Sequence[str]


class Classification(NamedTuple):
    """The result of `classify`.

    Attributes:
      metrics: `knn`, `knn_weighted`, `linear_probe`, if requested `logistic`, and `no_accuracy`
        with the reason if there is no accuracy.
      neighbors: training indices int [M', K] for the rows `tested`, nearest first.
      tested: indices int [M'] of the labeled test images (of all if there is no accuracy).
      params: the trained probe; None if there is no accuracy.
      notes: sentences about the classifiers.
      answers: what they answered; None if there is no accuracy.
    """

    metrics: Metrics
    neighbors: np.ndarray
    tested: np.ndarray
    params: probe.ProbeParams | None
    notes: list[str]
    answers: Answers | None


def labeled(features: Features, what: str, num_classes: int) -> tuple[Features, np.ndarray]:
    """Returns the labeled rows and their indices; DataError if a label is out of range."""
    rows = np.flatnonzero(has_label(features.labels))
    known = features
    if len(rows) < len(features.labels):  # no copy if all are labeled
        known = Features(features.features[rows], features.labels[rows])
    return known._replace(labels=knn.check_labels(known.labels, num_classes, what)), rows


def _without_accuracy(
    train: Features, test: Features, settings: Evaluation, mesh: Mesh | None, reason: str
) -> Classification:
    """Returns the neighbors for the gallery, with None for every accuracy."""
    ks = knn.usable_ks((*settings.knn_k, settings.headline_k), len(train.labels))
    neighbors, _ = knn.nearest_neighbors(
        train.features,
        test.features,
        min(GALLERY_NEIGHBORS, len(train.labels)),
        block=settings.knn_block,
        mesh=mesh,
    )
    names = [f"{top}{kind}" for top in ("top1", "top5") for kind in ("", "_interval")]
    no_votes = {"k_values": list(ks), **{name: [None] * len(ks) for name in names}}
    metrics: Metrics = {
        "knn": no_votes,
        "knn_weighted": {"temperature": settings.knn_temperature, **no_votes},
        "linear_probe": {**dict.fromkeys(names), "lr": None, "train_loss": None},
        "no_accuracy": reason,
    }
    if settings.logistic_probe:
        metrics["logistic"] = {**dict.fromkeys(names), "l2": None, "train_loss": None}
    return Classification(metrics, neighbors, np.arange(len(test.labels)), None, [], None)


def probe_metrics(top1: float, top5: float, num_classes: int, count: int) -> Metrics:
    """Returns a probe's accuracies on `count` images with their intervals."""
    metrics: Metrics = {"top1": top1, "top1_interval": wilson(top1, count)}
    metrics |= {"top5": top5, "top5_interval": wilson(top5, count)}
    return without_trivial_top5(metrics, num_classes)


def without_trivial_top5(metrics: Mapping[str, object], num_classes: int) -> Metrics:
    """Returns the metrics with top-5 accuracies set to None if there are at most five classes.

    Any classifier would reach 1.
    """
    if num_classes > TRIVIAL_TOP5:
        return dict(metrics)
    none = {
        name: [None] * len(value) if isinstance(value, list) and "k_values" in metrics else None
        for name, value in metrics.items()
        if name.startswith("top5")
    }
    return {**metrics, **none}


def _linear_metrics(
    result: probe.ProbeResult, num_classes: int, tested: int, trained: int
) -> Metrics:
    """Returns the metrics of a linear probe; `tested` and `trained` are numbers of images."""
    metrics = probe_metrics(result.top1, result.top5, num_classes, tested)
    metrics |= {"lr": result.lr, "train_loss": float(result.losses[-1])}
    if result.validation:
        metrics["cross_validation_top1"] = list(result.validation)
        bounds = [wilson(share, trained) for share in result.validation]
        metrics["cross_validation_top1_interval"] = bounds
    return metrics


def _logistic_metrics(
    train: Features, test: Features, num_classes: int, settings: Evaluation
) -> tuple[Metrics, np.ndarray]:
    """Returns the metrics of logistic regression, and the class it predicts for each test image."""
    with BOARD.busy("logistic regression"):
        found = logistic.logistic_probe(train, test, num_classes, settings)
    metrics = probe_metrics(found.top1, found.top5, num_classes, len(test.labels))
    metrics |= {"l2": found.l2, "train_loss": float(found.fit.loss)}
    metrics |= {
        "gradient_norm": float(found.fit.gradient_norm),
        "iterations": int(found.fit.iterations),
    }
    if found.validation:
        metrics["l2_values"] = list(settings.logistic_l2)
        metrics["holdout_top1"] = list(found.validation)
    return metrics, found.answers


def attentive_metrics(
    encode: Encode,
    train_batches: Callable[[], Iterable[Batch]],
    test_batches: Callable[[], Iterable[Batch]],
    train: Features,
    num_classes: int,
    settings: Evaluation,
) -> Metrics:
    """Returns the metrics of an attentive probe; `train` are features of the same images."""
    count = int(np.count_nonzero(has_label(train.labels)))
    with BOARD.busy("attentive probe"):
        found = attentive.attentive_probe(
            encode, train_batches, test_batches, count, num_classes, settings
        )
    metrics = probe_metrics(found.top1, found.top5, num_classes, found.tested)
    sizes = {"tokens": found.tokens, "channels": found.channels}
    return metrics | {"train_loss": float(found.losses[-1]), **sizes}


def _votes(
    neighbors: np.ndarray,
    similarities: np.ndarray,
    test: Features,
    ks: Sequence[int],
    num_classes: int,
    settings: Evaluation,
) -> tuple[Metrics, np.ndarray]:
    """Returns `knn` and `knn_weighted`, and the majority's answer for each k [len(ks), M].

    `neighbors` are the labels int [M, K] of each test image's neighbors, nearest first.
    """
    given = (neighbors, similarities, test.labels)
    majority, answers = knn.vote(
        *given, ks=ks, num_classes=num_classes, reference=settings.reference_evaluation
    )
    temperature = settings.knn_temperature
    weighted, _ = knn.weighted_vote(*given, ks=ks, num_classes=num_classes, temperature=temperature)
    metrics = {
        "knn": without_trivial_top5(majority, num_classes),
        "knn_weighted": {
            "temperature": temperature,
            **without_trivial_top5(weighted, num_classes),
        },
    }
    return metrics, answers


def classify(
    train: Features,
    test: Features,
    num_classes: int,
    settings: Evaluation,
    mesh: Mesh | None = None,
    *,
    shared: int = 0,
    names: Sequence[str] = (),
) -> Classification:
    """Fits kNN and a linear probe on `train` and tests them on `test`.

    Args:
      train: features and labels to fit; rows labeled -1 are skipped.
      test: features and labels to test on; rows labeled -1 are skipped.
      num_classes: labels lie in 0..num_classes-1.
      settings: `config.evaluation`.
      mesh: see `nearest_neighbors`.
      shared: number of test images that are also training images; if all are, there is no accuracy.
      names: class names, for messages.

    Returns:
      Metrics `knn` and `knn_weighted` (k_values including headline_k, top1, top5), `linear_probe`
      (top1, top5, lr, train_loss) and, if requested, `logistic` (top1, top5, l2, train_loss,
      gradient_norm, iterations), with 95 % intervals of the accuracies; the neighbors and the
      probe. Meaningless accuracies are None, and `no_accuracy` gives the reason.
    """
    train_set, train_rows = labeled(train, "training", num_classes)
    test_set, tested = labeled(test, "test", num_classes)
    reason = validity.why_no_accuracy(train.labels, test.labels, shared, names)
    if reason:
        return _without_accuracy(train, test, settings, mesh, reason)
    ks = knn.usable_ks((*settings.knn_k, settings.headline_k), len(train_set.labels))
    with BOARD.busy("nearest neighbors"):
        neighbors, similarities = knn.nearest_neighbors(
            train_set.features,
            test_set.features,
            max(ks[-1], min(GALLERY_NEIGHBORS, len(train_set.labels))),
            block=settings.knn_block,
            mesh=mesh,
        )
    metrics, answers = _votes(
        train_set.labels[neighbors], similarities, test_set, ks, num_classes, settings
    )
    with BOARD.busy("linear probe"):
        result = probe.linear_probe(train_set, test_set, num_classes, settings)
    metrics["linear_probe"] = _linear_metrics(result, num_classes, len(tested), len(train_rows))
    k = max((k for k in ks if k <= settings.headline_k), default=ks[0])
    given = {
        f"kNN@{k}": answers[ks.index(k)],
        "the linear probe": probe.probe_answers(result.params, test_set.features),
    }
    if settings.logistic_probe:
        metrics["logistic"], given["logistic regression"] = _logistic_metrics(
            train_set, test_set, num_classes, settings
        )
    notes = validity.constant_notes(given, names)
    answered = Answers(tested, test_set.labels, dict(zip(CLASSIFIERS, given.values())))
    return Classification(metrics, train_rows[neighbors], tested, result.params, notes, answered)


def classify_state_parts(
    train: Features,
    test: Features,
    done: tuple[str, Metrics],
    num_classes: int,
    settings: Evaluation,
    mesh: Mesh | None = None,
    **options: Unpack[ClassifyOptions],
) -> Metrics:
    """Runs `classify` on q, p and qp.

    `done` = (state part, metrics) is reused; `options` are passed to `classify`.
    """
    result: Metrics = {}
    for name in state_parts_of(split_qp=True):
        if name == done[0]:
            result[name] = done[1]
            continue
        part = [
            s._replace(features=select_state_part(s.features, name, True)) for s in (train, test)
        ]
        found = classify(part[0], part[1], num_classes, settings, mesh, **options)
        result[name] = found.metrics
    return result


def check_few_shot(labels: npt.NDArray[np.integer], per_class: int, num_classes: int) -> None:
    """Raises a ConfigError if a class has fewer than `per_class` training images."""
    values = np.asarray(labels)
    known = knn.check_labels(values[has_label(values)], num_classes, "training")
    counts = np.bincount(known, minlength=num_classes)
    if not 1 <= per_class <= counts.min():
        raise ConfigError(
            f"config.evaluation.few_shot asks for {per_class} training images per class, but "
            f"class {counts.argmin()} has only {counts.min()}; leave {per_class} out."
        )


def few_shot_rows(
    labels: npt.NDArray[np.integer], per_class: int, num_classes: int, seed: tuple[int, int]
) -> np.ndarray:
    """Draws `per_class` rows of each class; ConfigError if a class has fewer."""
    check_few_shot(labels, per_class, num_classes)
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = [order[labels[order] == c][:per_class] for c in range(num_classes)]
    return np.concatenate(by_class)


def few_shot_probe(
    train: Features, test: Features, num_classes: int, per_class: int, settings: Evaluation
) -> Metrics:
    """Trains probes on several random draws of `per_class` images per class.

    Uses the probe's settings, with the first learning rate and enough epochs for 500 steps.

    Returns:
      Mean and standard deviation (n - 1; 0 for one draw) of 'top1' and 'top5' over draws, with the
      mean's 95 % interval over test images.
    """
    train, _ = labeled(train, "training", num_classes)
    test, _ = labeled(test, "test", num_classes)
    steps = -(-per_class * num_classes // settings.probe_batch_size)
    probing = dataclasses.replace(
        settings, probe_lr_sweep=(), probe_epochs=-(-_FEW_SHOT_STEPS // steps)
    )
    scores = []
    for trial in range(settings.few_shot_trials):
        rows = few_shot_rows(train.labels, per_class, num_classes, (settings.seed, trial))
        few = (train.features[rows], train.labels[rows])
        result = probe.linear_probe(few, test, num_classes, probing)
        scores.append((result.top1, result.top5))
    mean = np.mean(scores, axis=0)
    std = np.std(scores, axis=0, ddof=1) if len(scores) > 1 else np.zeros(2)
    metrics = probe_metrics(float(mean[0]), float(mean[1]), num_classes, len(test.labels))
    spread = {"top1_std": float(std[0]), "top5_std": float(std[1])}
    return without_trivial_top5(metrics | spread, num_classes) | {"trials": len(scores)}


def coarse_metrics(
    train: Features,
    test: Features,
    label_maps: Mapping[str, npt.NDArray[np.integer]],
    settings: Evaluation,
    mesh: Mesh | None = None,
    **options: Unpack[ClassifyOptions],
) -> Metrics:
    """Runs `classify` on coarser labels; each map holds the coarse class of each class.

    `options` are passed to `classify`.
    """
    result: Metrics = {}
    for name, mapping in label_maps.items():
        coarse = np.asarray(mapping, np.int32)
        num_classes = int(coarse.max()) + 1
        sets = [
            s._replace(labels=np.where(has_label(s.labels), coarse[s.labels], s.labels))
            for s in (train, test)
        ]
        found = classify(sets[0], sets[1], num_classes, settings, mesh, **options)
        result[name] = found.metrics
    return result
