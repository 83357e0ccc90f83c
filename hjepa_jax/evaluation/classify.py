"""kNN and linear probe of one pair of training and test features, with settings from the config."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from hjepa_jax.evaluation import knn, probe
from hjepa_jax.evaluation.features import Features, select_variant, variants_of

Metrics = dict[str, Any]
GALLERY_NEIGHBOURS = 8


class Classification(NamedTuple):
    """Metrics, the neighbours they came from (int [M, K], nearest first), the trained probe."""

    metrics: Metrics
    neighbours: np.ndarray
    params: probe.ProbeParams


def probe_settings(config: Any) -> probe.ProbeSettings:
    """Returns the probe's settings from `config.evaluation`."""
    return probe.ProbeSettings(
        epochs=config.probe_epochs,
        batch_size=config.probe_batch_size,
        lr=tuple(dict.fromkeys((config.probe_lr, *config.probe_lr_sweep))),
        weight_decay=config.probe_weight_decay,
        seed=config.seed,
        folds=config.probe_folds,
    )


def classify(
    train: Features, test: Features, num_classes: int, config: Any, mesh: Mesh | None = None
) -> Classification:
    """Tests kNN and a linear probe that learn on `train`.

    Args:
      train, test: features and labels of both sets.
      num_classes: labels lie in 0..num_classes-1.
      config: `config.evaluation`.
      mesh: see `nearest_neighbours`.

    Returns:
      Metrics `knn` (k_values, top1, top5; headline_k among them) and `linear_probe` (top1, top5,
      lr, train_loss), the neighbours and the probe.
    """
    labels = knn.check_labels(train.labels, num_classes, "training")
    truth = knn.check_labels(test.labels, num_classes, "test")
    ks = knn.usable_ks((*config.knn_k, config.headline_k), len(labels))
    neighbours, _ = knn.nearest_neighbours(
        train.features,
        test.features,
        max(ks[-1], min(GALLERY_NEIGHBOURS, len(labels))),
        block=config.knn_block,
        mesh=mesh,
    )
    accuracy = knn.vote(labels[neighbours], truth, ks=ks, num_classes=num_classes)
    result = probe.linear_probe(train, test, num_classes, probe_settings(config))
    linear: Metrics = {
        "top1": result.top1,
        "top5": result.top5,
        "lr": result.lr,
        "train_loss": float(result.losses[-1]),
    }
    if result.validation:
        linear["cross_validation_top1"] = list(result.validation)
    metrics = {"knn": dict(accuracy), "linear_probe": linear}
    return Classification(metrics, neighbours, result.params)


def qp_variants(
    train: Features,
    test: Features,
    done: tuple[str, Metrics],
    num_classes: int,
    config: Any,
    mesh: Mesh | None = None,
) -> Metrics:
    """kNN and probe of q, p and qp; `done` = (variant, its metrics) is not computed again."""
    result: Metrics = {}
    for name in variants_of(split_qp=True):
        if name == done[0]:
            result[name] = done[1]
            continue
        part = [s._replace(features=select_variant(s.features, name, True)) for s in (train, test)]
        result[name] = classify(part[0], part[1], num_classes, config, mesh).metrics
    return result
