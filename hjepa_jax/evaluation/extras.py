"""Optional parts of the protocol: few-shot probes, coarse labels and changed test images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from hjepa_jax.errors import ConfigError
from hjepa_jax.evaluation import knn, probe, robustness, validity
from hjepa_jax.evaluation.classify import (
    Classification,
    classify,
    labeled,
    probe_metrics,
    probe_settings,
    without_trivial_top5,
)
from hjepa_jax.evaluation.features import Batch, Encode, Features, extract_features

Metrics = dict[str, Any]
# A few images make few steps in an epoch; the probe gets at least this many in all.
_FEW_SHOT_STEPS = 500


def check_few_shot(labels: npt.NDArray[np.integer], per_class: int, num_classes: int) -> None:
    """Raises a ConfigError when a class has fewer than `per_class` training images."""
    values = np.asarray(labels)
    known = knn.check_labels(values[validity.has_label(values)], num_classes, "training")
    counts = np.bincount(known, minlength=num_classes)
    if not 1 <= per_class <= counts.min():
        raise ConfigError(
            f"config.evaluation.few_shot asks for {per_class} training images of each class, but "
            f"class {counts.argmin()} has only {counts.min()}; leave {per_class} out."
        )


def few_shot_rows(
    labels: npt.NDArray[np.integer], per_class: int, num_classes: int, seed: tuple[int, int]
) -> np.ndarray:
    """Draws `per_class` rows of each class; ConfigError when a class has fewer."""
    check_few_shot(labels, per_class, num_classes)
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = [order[labels[order] == c][:per_class] for c in range(num_classes)]
    return np.concatenate(by_class)


def few_shot_probe(
    train: Features, test: Features, num_classes: int, per_class: int, config: Any
) -> Metrics:
    """Probes that learn from `per_class` images of each class, over several draws of these.

    The settings are the probe's, at the first learning rate, with epochs for 500 steps.

    Returns:
      Mean and standard deviation (n - 1; 0 for one draw) of 'top1' and 'top5' over draws, with the
      mean's 95 % interval over test images.
    """
    train, _ = labeled(train, "training", num_classes)
    test, _ = labeled(test, "test", num_classes)
    settings = probe_settings(config)
    steps = -(-per_class * num_classes // settings.batch_size)
    settings = dataclasses.replace(
        settings, lr=settings.lr[:1], epochs=-(-_FEW_SHOT_STEPS // steps)
    )
    scores = []
    for trial in range(config.few_shot_trials):
        rows = few_shot_rows(train.labels, per_class, num_classes, (config.seed, trial))
        few = (train.features[rows], train.labels[rows])
        result = probe.linear_probe(few, test, num_classes, settings)
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
    config: Any,
    mesh: Mesh | None = None,
    **options: Any,
) -> Metrics:
    """kNN and probe on coarser labels; each map holds the coarse class of each class.

    `options` are those of `classify`.
    """
    result: Metrics = {}
    for name, mapping in label_maps.items():
        coarse = np.asarray(mapping, np.int32)
        num_classes = int(coarse.max()) + 1
        sets = [
            s._replace(labels=np.where(validity.has_label(s.labels), coarse[s.labels], s.labels))
            for s in (train, test)
        ]
        found = classify(sets[0], sets[1], num_classes, config, mesh, **options)
        result[name] = found.metrics
    return result


def robustness_metrics(
    encode: Encode,
    select: Callable[[np.ndarray], np.ndarray],
    test_batches: Callable[[], Iterable[Batch]],
    train: Features,
    clean: Classification,
    config: Any,
    mesh: Mesh | None = None,
    *,
    reference: bool = False,
) -> Metrics:
    """Tests what learned on clean images on changed test images.

    Args:
      encode: the encoder.
      select: takes the evaluated variant of its features.
      test_batches: the test set.
      train: features (of that variant) and labels of clean training images.
      clean: what `classify` returned for them, with accuracies.
      config: `config.evaluation`; `robustness` names the changes.
      mesh: see `nearest_neighbours`.
      reference: see `classify`.

    Returns:
      For each change, `knn` at headline_k (or the largest k there is) and `linear_probe`.
    """
    assert clean.params is not None
    num_classes = clean.params.bias.shape[0]
    learn, _ = labeled(train, "training", num_classes)
    result: Metrics = {}
    for name in config.robustness:
        changed = robustness.corrupt_batches(test_batches(), name, config.seed)
        found = extract_features(encode, changed)
        judge, _ = labeled(found._replace(features=select(found.features)), "test", num_classes)
        accuracy = knn.knn_accuracy(
            *learn,
            *judge,
            ks=(min(config.headline_k, len(learn.labels)),),
            num_classes=num_classes,
            block=config.knn_block,
            reference=reference,
            mesh=mesh,
        )
        top1, top5 = probe.probe_accuracy(clean.params, *judge)
        count = len(judge.labels)
        result[name] = {
            "knn": without_trivial_top5(accuracy, num_classes),
            "linear_probe": probe_metrics(float(top1), float(top5), num_classes, count),
        }
    return result
