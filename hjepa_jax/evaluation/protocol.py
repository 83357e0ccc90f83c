"""The evaluation protocol: encoders and data in, one nested dictionary of metrics out.

Features come from images without augmentation. kNN and probes are fit on the training set and
tested on the test set. The spectrum and CKA use training features, which are more numerous; cosine
similarities and norms use test features; alignment and uniformity use pairs of augmented views.
In the coordinates H^{1/2} z (see `coordinates/`) all of these are of the transformed features, and
every set is encoded once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from hjepa_jax.config.sections.evaluation import Evaluation
from hjepa_jax.console import BOARD
from hjepa_jax.data.sources.base import has_label
from hjepa_jax.errors import DataError
from hjepa_jax.evaluation import diagnostics, geometry, robustness, validity
from hjepa_jax.evaluation.classify import (
    GALLERY_NEIGHBORS,
    Classification,
    ClassifyOptions,
    Metrics,
    attentive_metrics,
    check_few_shot,
    classify,
    classify_state_parts,
    coarse_metrics,
    few_shot_probe,
)
from hjepa_jax.evaluation.coordinates.encoded import Encoded
from hjepa_jax.evaluation.coordinates.transformed import Fit
from hjepa_jax.evaluation.diagnostics import AlarmKind
from hjepa_jax.evaluation.features import (
    Batch,
    Encode,
    Extracted,
    Extraction,
    encode_images,
    pixels,
    timed_features,
)
from hjepa_jax.evaluation.paired.per_image import Answers
from hjepa_jax.evaluation.report import gallery
from hjepa_jax.evaluation.report.summary import (
    PIXELS,
    differences,
    in_sqrt_h,
    minus_raw,
    notes_of,
)

# Version 2 added intervals, notes and null values, and counts kNN votes and pairs differently;
# version 3 renamed `variant` to `state_part` and `qp_variants` to `state_parts`.
SCHEMA_VERSION = 3
# (name of an encoder, what extracts its features) -> its features, which may be kept ones.
Keep: TypeAlias = Callable[[str, Callable[[], Extracted]], Extracted]


@dataclasses.dataclass(frozen=True)
class Sources:
    """The data of an evaluation.

    Attributes:
      train_batches, test_batches: each call iterates over the set in the same order, as dicts of
        'image' uint8 [N, S, S, 3], 'label' [N] and 'mask' [N] (see `extract_features`).
      augmented_pairs: returns two augmented views of the same images, uint8 [M, S, S, 3] each.
      num_classes: labels lie in 0..num_classes-1.
      class_names: names for pictures; () = class indices.
      label_maps: additional coarser labelings: name -> int [num_classes], the coarse class of
        each class.
    """

    train_batches: Callable[[], Iterable[Batch]]
    test_batches: Callable[[], Iterable[Batch]]
    augmented_pairs: Callable[[], tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]
    num_classes: int
    class_names: tuple[str, ...] = ()
    label_maps: Mapping[str, npt.NDArray[np.integer]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Results:
    """JSON-ready metrics, and the inputs of the pictures.

    Attributes:
      metrics: see `run_protocol`.
      encoders: what the pictures show of each encoder, by name.
      answers: what the classifiers answered, by encoder; none without accuracies.
      make_pictures: reads the images that the pictures show.
    """

    metrics: Metrics
    encoders: Mapping[str, gallery.EncoderPictures]
    answers: Mapping[str, Answers]
    make_pictures: Callable[[], gallery.PictureInputs]

    @functools.cached_property
    def pictures(self) -> gallery.PictureInputs:
        """Inputs of the pictures, read from the data on first access."""
        return self.make_pictures()


class _Common(NamedTuple):
    """Data and settings shared by all encoders of an evaluation; see `run_protocol`."""

    sources: Sources
    pair: Callable[[], tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]
    settings: Evaluation
    mesh: Mesh | None
    targets: Mapping[str, float] | None
    remedy: diagnostics.Remedy
    overlap: validity.Overlap
    sqrt_h: Fit | None
    # Of each encoder's sets; not among its metrics, which a repeated evaluation has alike.
    times: dict[str, dict[str, Extraction]]
    keep: Keep
    tokens: Mapping[str, Encode]


def _extract(name: str, encode: Encode, common: _Common) -> Extracted:
    """Encodes both sets; checks few-shot settings and set sizes before any other computation."""
    sources, settings, overlap = common.sources, common.settings, common.overlap
    with BOARD.busy(f"training features of the {name} encoder"):
        batches = overlap.watch("train", sources.train_batches())
        train, train_time = timed_features(encode, batches)
    for shots in () if validity.one_class(train.labels, "training") else settings.few_shot:
        check_few_shot(train.labels, shots, sources.num_classes)
    with BOARD.busy(f"test features of the {name} encoder"):
        batches = overlap.watch("test", sources.test_batches())
        test, test_time = timed_features(encode, batches)
    common.times[name] = {"train": train_time, "test": test_time}
    if min(len(train.labels), len(test.labels)) < 2:
        raise DataError(
            f"The evaluation needs at least two training and two test images, but there are "
            f"{len(train.labels)} and {len(test.labels)}."
        )
    first, second = (encode_images(encode, v, settings.batch_size) for v in common.pair())
    return Extracted(train, test, (first, second), overlap.shared())


def _encode(name: str, encode: Encode, split_qp: bool, common: _Common) -> Encoded:
    """Returns an encoder's states, as encoded."""
    train, test, views, shared = common.keep(name, lambda: _extract(name, encode, common))
    state_part = common.settings.state_part if split_qp else "qp"
    return Encoded(encode, train, test, views, test.features, shared, split_qp, state_part)


def _optional_parts(data: Encoded, found: Classification, common: _Common) -> Metrics:
    """Returns few-shot, coarse-label and robustness metrics, if requested and meaningful."""
    sources, settings, mesh = common.sources, common.settings, common.mesh
    metrics: Metrics = {}
    if settings.few_shot and found.params is not None:
        metrics["few_shot"] = {
            str(n): few_shot_probe(data.train, data.test, sources.num_classes, n, settings)
            for n in settings.few_shot
        }
    if sources.label_maps and found.params is not None:
        options: ClassifyOptions = {"shared": data.shared, "names": ()}
        metrics["coarse"] = coarse_metrics(
            data.train, data.test, sources.label_maps, settings, mesh, **options
        )
    if settings.robustness and found.params is not None:
        metrics["robustness"] = robustness.robustness_metrics(
            data.encode,
            data.select,
            sources.test_batches,
            data.train,
            found,
            settings,
            mesh,
        )
    return metrics


class _Evaluated(NamedTuple):
    """An encoder's metrics, sets' labels, picture inputs, their queries, `shared`, and answers."""

    metrics: Metrics
    labels: tuple[np.ndarray, np.ndarray]
    pictures: gallery.EncoderPictures
    queries: np.ndarray
    shared: int
    answers: Answers | None


def _evaluate_encoder(
    name: str, encode: Encode, split_qp: bool, common: _Common
) -> dict[str, _Evaluated]:
    """Evaluates an encoder, encoding each set once, in one or both coordinates, by row name."""
    data, wanted = _encode(name, encode, split_qp, common), common.settings.coordinates
    found: dict[str, _Evaluated] = {}
    if wanted != "sqrt_h" or name == PIXELS:
        found[name] = _evaluate_states(data, common)
        _add_attentive(name, data, found[name].metrics, common)
    if wanted == "raw" or name == PIXELS:
        return found
    assert common.sqrt_h is not None
    fitted = common.sqrt_h(data.train_states.features)
    own = common._replace(targets={})  # those of the loss are of other states
    moved = _evaluate_states(data.moved(fitted), own)
    moved.metrics["coordinates"] = "sqrt_h"
    if fitted.record:
        moved.metrics["posthoc"] = fitted.record
    return {**found, (in_sqrt_h(name) if found else name): moved}


def _add_attentive(name: str, data: Encoded, metrics: Metrics, common: _Common) -> None:
    """Adds the attentive probe of an encoder's tokens to its metrics, if it has both."""
    sources = common.sources
    if name in common.tokens and "no_accuracy" not in metrics:
        metrics["attentive"] = attentive_metrics(
            common.tokens[name],
            sources.train_batches,
            sources.test_batches,
            data.train_states,
            sources.num_classes,
            common.settings,
        )


def _evaluate_states(data: Encoded, common: _Common) -> _Evaluated:
    """Evaluates the states of an encoder in one kind of coordinates.

    Its metrics are those of `classify`, state_part, feature_dim, diagnostics, collapse, alarms,
    notes, and, if requested, state_parts, few_shot, coarse, and robustness.
    """
    sources, settings, mesh = common.sources, common.settings, common.mesh
    split_qp, views = data.split_qp, data.views
    options: ClassifyOptions = {"shared": data.shared, "names": sources.class_names}
    found = classify(data.train, data.test, sources.num_classes, settings, mesh, **options)
    with BOARD.busy("spectra and diagnostics"):
        described = diagnostics.diagnose(
            data.train.features,
            data.test.features,
            (data.select(views[0]), data.select(views[1])),
            settings,
        )
        alarms = diagnostics.state_alarms(
            data.train_states.features, split_qp, settings, common.targets, common.remedy
        )
    metrics: Metrics = {"state_part": data.state_part, "feature_dim": data.train.features.shape[1]}
    metrics |= found.metrics | {"diagnostics": described.metrics}
    metrics["notes"] = found.notes
    metrics["collapse"] = [
        a.sentence(advice=False) for a in alarms if a.kind is AlarmKind.ONE_POINT
    ]
    metrics["alarms"] = [alarm.sentence() for alarm in alarms]
    if split_qp:
        described.metrics["cka_q_p"] = diagnostics.cka_q_p(data.train_states.features, settings)
    if split_qp and settings.all_state_parts and found.params is not None:
        done = (data.state_part, found.metrics)
        metrics["state_parts"] = classify_state_parts(
            data.train_states,
            data.test_states,
            done,
            sources.num_classes,
            settings,
            mesh,
            **options,
        )
    metrics |= _optional_parts(data, found, common)
    shown = gallery.choose_queries(data.test.labels[found.tested], settings.seed)
    queries = found.tested[shown]
    rows = geometry.subsample_rows(len(data.test.labels), gallery.MAP_POINTS, settings.seed)
    pictures = gallery.EncoderPictures(
        cosine=described.cosine,
        features=data.test.features[rows],
        labels=data.test.labels[rows],
        states=data.raw[rows],
        query_states=data.raw[queries],
        neighbors=found.neighbors[shown, :GALLERY_NEIGHBORS],
    )
    # Not the features, which would take memory while the next encoder is evaluated.
    labels = (data.train_states.labels, data.test_states.labels)
    return _Evaluated(metrics, labels, pictures, queries, data.shared, found.answers)


def _picture_inputs(
    sources: Sources, encoders: dict[str, gallery.EncoderPictures], queries: np.ndarray
) -> gallery.PictureInputs:
    """Reads the data again for the images in the gallery."""
    shown = np.unique(np.concatenate([one.neighbors.ravel() for one in encoders.values()]))
    return gallery.PictureInputs(
        encoders=encoders,
        queries=queries,
        test_images=gallery.collect_images(sources.test_batches(), queries),
        train_images=gallery.collect_images(sources.train_batches(), shown),
        class_names=sources.class_names or tuple(map(str, range(sources.num_classes))),
    )


def _joined(
    encoders: Mapping[str, Metrics],
    last: _Evaluated,
    common: _Common,
    info: Mapping[str, Any],
    notes: Sequence[str],
) -> Metrics:
    """Returns the metrics of `run_protocol` from those of each encoder and the last one's sets."""
    train, test = last.labels
    headline_k = common.settings.headline_k
    tested = int(np.count_nonzero(has_label(test)))
    return {
        "schema_version": SCHEMA_VERSION,
        "info": dict(info),
        "num_classes": common.sources.num_classes,
        "num_test_images": tested,
        "largest_class_share": validity.largest_share(test),
        "headline_k": headline_k,
        "notes": notes_of(encoders, train, test, last.shared, notes),
        "encoders": encoders,
        "trained_minus_random": differences(encoders, headline_k, tested),
        "sqrt_h_minus_raw": minus_raw(encoders, headline_k, tested),
        "feature_extraction": {
            name: {split: time.figures() for split, time in sets.items()}
            for name, sets in common.times.items()
        },
    }


def _check(encoders: Mapping[str, Encode], settings: Evaluation, sqrt_h: Fit | None) -> None:
    """Checks first what is used late, so that an error does not waste hours."""
    robustness.check_names(settings.robustness)
    if not encoders:
        raise ValueError("There is no encoder to evaluate.")
    if settings.coordinates != "raw" and sqrt_h is None:
        raise ValueError(f"coordinates are {settings.coordinates!r}, but no H is given.")


def run_protocol(
    encoders: Mapping[str, Encode],
    sources: Sources,
    settings: Evaluation,
    *,
    split_qp: bool,
    mesh: Mesh | None = None,
    info: Mapping[str, object] | None = None,
    notes: Sequence[str] = (),
    targets: Mapping[str, float] | None = None,
    remedy: diagnostics.Remedy = diagnostics.no_remedy,
    sqrt_h: Fit | None = None,
    keep: Keep = lambda name, extract: extract(),
    tokens: Mapping[str, Encode] = MappingProxyType({}),
) -> Results:
    """Evaluates every encoder on the same data.

    Args:
      encoders: by name, as 'trained' and 'random', jitted: uint8 [N, S, S, 3] -> features [N, D].
      sources: the data.
      settings: `config.evaluation`. Its `pixel_baseline` adds the row 'pixels'.
      split_qp: whether the encoders' features are states [q | p].
      mesh: devices that share the kNN's test rows; None = the default device.
      info: what was evaluated (such as {'step': 1200}); copied to `metrics['info']`.
      notes: sentences placed first in `metrics['notes']`.
      targets: target mean squares of the raw 'q' and 'p', or 'z'; None = not checked.
      remedy: the method's advice, see `Method.remedy`.
      sqrt_h: gives an encoder its coordinates H^{1/2} z; None if these are not evaluated.
      keep: returns an encoder's features, by extracting them unless it has them.
      tokens: by name, encoders of images to tokens [N, T, C], which get an attentive probe.

    Returns:
      The metrics: `schema_version`, `info`, `num_classes`, `num_test_images` (with a label),
      `largest_class_share` (of these), `headline_k`, `notes` (caveats), `encoders` (see `classify`
      and `_evaluate_states`), `trained_minus_random`, `sqrt_h_minus_raw`, `feature_extraction` (see
      `Extraction`); and the picture inputs. With 'both' coordinates each encoder has two rows.

    Raises:
      ValueError: no encoder, no `sqrt_h`, or data, labels or settings that do not match.
    """
    _check(encoders, settings, sqrt_h)
    todo = [(name, encode, split_qp) for name, encode in encoders.items()]
    todo += [(PIXELS, pixels, False)] if settings.pixel_baseline else []
    overlap, pair = validity.Overlap(), functools.cache(sources.augmented_pairs)
    common = _Common(
        sources, pair, settings, mesh, targets, remedy, overlap, sqrt_h, {}, keep, tokens
    )
    found: dict[str, _Evaluated] = {}
    for name, encode, split in todo:
        found |= _evaluate_encoder(name, encode, split, common)
    metrics = {name: one.metrics for name, one in found.items()}
    pictures = {name: one.pictures for name, one in found.items()}
    *_, last = found.values()
    return Results(
        metrics=_joined(metrics, last, common, info or {}, notes),
        encoders=pictures,
        answers={name: one.answers for name, one in found.items() if one.answers},
        # Deferred: the numbers must not be lost if the data cannot be read again.
        make_pictures=lambda: _picture_inputs(sources, pictures, last.queries),
    )
