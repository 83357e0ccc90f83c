"""The evaluation protocol: encoders and data in, one nested dictionary of metrics out.

Features are of images without augmentation. kNN and probes learn on the training set and are
tested on the test set; the spectrum and CKA are of training features, which are more; cosine
similarities and norms of test features; alignment and uniformity of pairs of augmented views.
For other coordinates of the state (such as H^{1/2} z) pass an encoder composed with the transform,
see `coordinates.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from hjepa_jax.evaluation import diagnostics, extras, gallery, robustness, spectrum
from hjepa_jax.evaluation.classify import (
    GALLERY_NEIGHBOURS,
    Metrics,
    classify,
    probe_settings,
    qp_variants,
)
from hjepa_jax.evaluation.features import (
    Batch,
    Encode,
    encode_images,
    extract_features,
    select_variant,
)

SCHEMA_VERSION = 1
PIXELS = "pixels"


@dataclasses.dataclass(frozen=True)
class Sources:
    """The data of an evaluation.

    Attributes:
      train_batches, test_batches: each call gives the set anew and in the same order, as dicts
        of 'image' uint8 [N, S, S, 3], 'label' [N] and 'mask' [N] (see `extract_features`).
      augmented_pairs: gives two augmented views of the same images, uint8 [M, S, S, 3] each.
      num_classes: labels lie in 0..num_classes-1.
      class_names: names for pictures; () = the numbers.
      label_maps: coarser labellings to evaluate as well: name -> int [num_classes], the coarse
        class of each class.
    """

    train_batches: Callable[[], Iterable[Batch]]
    test_batches: Callable[[], Iterable[Batch]]
    augmented_pairs: Callable[[], tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]
    num_classes: int
    class_names: tuple[str, ...] = ()
    label_maps: Mapping[str, npt.NDArray[np.integer]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Metrics, ready for JSON, and the inputs of the pictures."""

    metrics: Metrics
    pictures: gallery.PictureInputs


def pixels(images: npt.NDArray[np.uint8]) -> np.ndarray:
    """Encodes images [N, S, S, 3] as their pixels in [0, 1], block means of at most 32 x 32."""
    count, side = images.shape[:2]
    factor = -(-side // 32)
    cut = side // factor * factor
    blocks = np.asarray(images)[:, :cut, :cut].astype(np.float32) / 255.0
    shape = (count, cut // factor, factor, cut // factor, factor, 3)
    return blocks.reshape(shape).mean(axis=(2, 4)).reshape(count, -1)


def _evaluate_encoder(
    encode: Encode,
    sources: Sources,
    pair: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]],
    config: Any,
    split_qp: bool,
    mesh: Mesh | None,
) -> tuple[Metrics, gallery.EncoderPictures, np.ndarray]:
    """Returns metrics of one encoder, what pictures need, and the queries of the gallery."""
    variant = config.variant if split_qp else "qp"
    select = functools.partial(select_variant, variant=variant, split_qp=split_qp)
    train_states = extract_features(encode, sources.train_batches())
    for shots in config.few_shot:
        extras.check_few_shot(train_states.labels, shots, sources.num_classes)
    test_states = extract_features(encode, sources.test_batches())
    train = train_states._replace(features=select(train_states.features))
    test = test_states._replace(features=select(test_states.features))
    views = [encode_images(encode, v, config.batch_size) for v in pair]
    found = classify(train, test, sources.num_classes, config, mesh)
    described = diagnostics.diagnose(
        train.features, test.features, (select(views[0]), select(views[1])), config
    )
    metrics: Metrics = {"variant": variant, "feature_dim": train.features.shape[1]}
    metrics |= found.metrics | {"diagnostics": described.metrics}
    if split_qp:
        described.metrics["cka_q_p"] = diagnostics.cka_q_p(train_states.features, config)
    if split_qp and config.qp_variants:
        done = (variant, found.metrics)
        metrics["qp_variants"] = qp_variants(
            train_states, test_states, done, sources.num_classes, config, mesh
        )
    if config.few_shot:
        metrics["few_shot"] = {
            str(n): extras.few_shot_probe(train, test, sources.num_classes, n, config)
            for n in config.few_shot
        }
    if sources.label_maps:
        metrics["coarse"] = extras.coarse_metrics(train, test, sources.label_maps, config, mesh)
    if config.robustness:
        metrics["robustness"] = extras.robustness_metrics(
            encode, select, sources.test_batches, train, found, config, mesh
        )
    queries = gallery.choose_queries(test.labels, config.seed)
    rows = spectrum.subsample_rows(len(test.labels), gallery.MAP_POINTS, config.seed)
    pictures = gallery.EncoderPictures(
        cosine=described.cosine,
        features=test.features[rows],
        labels=test.labels[rows],
        states=test_states.features[rows],
        query_states=test_states.features[queries],
        neighbours=found.neighbours[queries, :GALLERY_NEIGHBOURS],
    )
    return metrics, pictures, queries


def headline(encoder_metrics: Mapping[str, Any], k: int) -> dict[str, float]:
    """Returns the figures of one row of the table; kNN at the largest k not above `k`."""
    neighbours = encoder_metrics["knn"]
    position = max(i for i, used in enumerate(neighbours["k_values"]) if used <= k or i == 0)
    measured = encoder_metrics["diagnostics"]
    covariance, views = measured["covariance_spectrum_topq"], measured["alignment_uniformity"]
    return {
        "knn": neighbours["top1"][position],
        "knn_first": neighbours["top1"][0],
        "probe_top1": encoder_metrics["linear_probe"]["top1"],
        "probe_top5": encoder_metrics["linear_probe"]["top5"],
        "effective_rank": covariance["effective_rank"],
        "participation_ratio": covariance["participation_ratio"],
        "alignment": views["alignment"],
        "uniformity": views["uniformity"],
    }


def _differences(encoders: Mapping[str, Metrics], k: int) -> dict[str, float]:
    """Returns trained minus random of every headline figure; empty when one is missing."""
    if not {"trained", "random"} <= encoders.keys():
        return {}
    trained, random = headline(encoders["trained"], k), headline(encoders["random"], k)
    return {name: trained[name] - random[name] for name in trained}


def _picture_inputs(
    sources: Sources, encoders: dict[str, gallery.EncoderPictures], queries: np.ndarray
) -> gallery.PictureInputs:
    """Reads the data once more, for the images that the gallery shows."""
    shown = np.unique(np.concatenate([one.neighbours.ravel() for one in encoders.values()]))
    return gallery.PictureInputs(
        encoders=encoders,
        queries=queries,
        test_images=gallery.collect_images(sources.test_batches(), queries),
        train_images=gallery.collect_images(sources.train_batches(), shown),
        class_names=sources.class_names or tuple(map(str, range(sources.num_classes))),
    )


def evaluate(
    encoders: Mapping[str, Encode],
    sources: Sources,
    config: Any,
    *,
    split_qp: bool,
    mesh: Mesh | None = None,
    info: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Evaluates every encoder on the same data.

    Args:
      encoders: by name, normally {'trained': ..., 'random': ...}: jitted functions of images
        uint8 [N, S, S, 3] -> features [N, D].
      sources: the data.
      config: `config.evaluation`. Its `pixel_baseline` adds the row 'pixels'.
      split_qp: whether the encoders' features are states [q | p].
      mesh: devices that share the kNN's test rows; None = the default device.
      info: what was evaluated (such as {'step': 1200}); copied to `metrics['info']`.

    Returns:
      The metrics: `schema_version`, `info`, `num_classes`, `headline_k`, `encoders` (for each
      name: variant, feature_dim, knn, linear_probe, diagnostics, and, where asked for,
      qp_variants, few_shot, coarse, robustness) and `trained_minus_random`; and picture inputs.

    Raises:
      ValueError: no encoder, or data, labels or settings that do not fit (a sentence says which).
    """
    # Settings that are used late are checked early, so that no hours of work are lost to them.
    probe_settings(config)
    robustness.check_names(config.robustness)
    if not encoders:
        raise ValueError("There is no encoder to evaluate.")
    todo = [(name, encode, split_qp) for name, encode in encoders.items()]
    if config.pixel_baseline:
        todo.append((PIXELS, pixels, False))
    metrics: dict[str, Metrics] = {}
    pictures: dict[str, gallery.EncoderPictures] = {}
    queries = np.zeros(0, np.int64)
    pair = sources.augmented_pairs()
    for name, encode, split in todo:
        metrics[name], pictures[name], queries = _evaluate_encoder(
            encode, sources, pair, config, split, mesh
        )
    return Evaluation(
        metrics={
            "schema_version": SCHEMA_VERSION,
            "info": dict(info or {}),
            "num_classes": sources.num_classes,
            "headline_k": config.headline_k,
            "encoders": metrics,
            "trained_minus_random": _differences(metrics, config.headline_k),
        },
        pictures=_picture_inputs(sources, pictures, queries),
    )


def evaluate_encoders(
    encoders: Mapping[str, Encode],
    sources: Sources,
    config: Any,
    *,
    split_qp: bool,
    mesh: Mesh | None = None,
    info: Mapping[str, Any] | None = None,
) -> Metrics:
    """Returns the metrics of `evaluate` alone."""
    return evaluate(encoders, sources, config, split_qp=split_qp, mesh=mesh, info=info).metrics
