"""Monitoring of a training run: sample views, collapse alarms, and a periodic kNN."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import numpy as np
import numpy.typing as npt
from jaxtyping import PyTree
from PIL import Image

from hjepa_jax.config import Settings, steps_in_epochs
from hjepa_jax.config.sections.evaluation import Evaluation
from hjepa_jax.config.sections.projection import evaluated_split
from hjepa_jax.console import BOARD
from hjepa_jax.data.augmentation.device import augment_batch, with_images
from hjepa_jax.data.contact_sheet import VIEWS, contact_sheet
from hjepa_jax.data.pipeline import eval_batches
from hjepa_jax.data.sources.base import ImageSource, decode
from hjepa_jax.data.sources.derived import labeled, subset
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import ConfigError, DataError
from hjepa_jax.evaluation import validity
from hjepa_jax.evaluation.classify import TRIVIAL_TOP5
from hjepa_jax.evaluation.coordinates.of_method import coordinates_of
from hjepa_jax.evaluation.diagnostics import (
    ALARM_DIM,
    Alarm,
    AlarmKind,
    Remedy,
    collapse_alarms,
    no_remedy,
)
from hjepa_jax.evaluation.distribution.norms import parts_of
from hjepa_jax.evaluation.distribution.volume import volume
from hjepa_jax.evaluation.features import extract_features, select_state_part
from hjepa_jax.evaluation.geometry import spreads
from hjepa_jax.evaluation.knn import knn_accuracy, usable_ks
from hjepa_jax.evaluation.ready import check_same_classes, shared_images
from hjepa_jax.evaluation.validity import wilson
from hjepa_jax.runtime import sharding
from hjepa_jax.training.prepare import PreparedRun, make_encode
from hjepa_jax.training.state import TrainState

if TYPE_CHECKING:
    from clu import metric_writers

_log = logging.getLogger(__name__)
_SHEET_IMAGES = 12


class AlarmLog:
    """Collapse alarms, each kind reported once per part of the state."""

    def __init__(self, targets: Mapping[str, float], remedy: Remedy = no_remedy):
        """Takes the method's target mean squares and its advice."""
        self._targets, self._remedy = targets, remedy
        self._reported: set[tuple[AlarmKind, str]] = set()

    def new(self, metrics: Mapping[str, float]) -> list[Alarm]:
        """Returns the alarms that were not raised before."""
        found = collapse_alarms(metrics, targets=self._targets, remedy=self._remedy)
        fresh = [alarm for alarm in found if (alarm.kind, alarm.subject) not in self._reported]
        self._reported |= {(alarm.kind, alarm.subject) for alarm in fresh}
        return fresh


def check_online_labels(settings: Evaluation, train: ImageSource) -> None:
    """Raises a DataError if the online probe's accuracy would be meaningless."""
    if not settings.online_probe:
        return
    sentence = validity.one_class(train.labels(), "training", train.class_names)
    if sentence:
        raise DataError(
            f"config.evaluation.online_probe is True, but {sentence}: set it to False, or give "
            f"labels of several classes ({train.description})."
        )


class OnlineKnn:
    """kNN of the encoder under training, on at most `online_images` images of each set.

    It tests on the test split or on `online_holdout`; unlabeled images of both sets are skipped.
    """

    def __init__(self, settings: Settings, run: PreparedRun, train: ImageSource):
        """Opens the test images and checks classes, labels and batch size.

        Raises:
          ConfigError, DataError: if they do not fit together.
        """
        evaluation = settings.evaluation
        sentence = sharding.divisibility_error(
            evaluation.batch_size, run.mesh, "config.evaluation.batch_size"
        )
        if sentence:
            raise ConfigError(sentence)
        test = open_split(settings, "test" if evaluation.online_holdout is None else "holdout")
        check_same_classes(
            train,
            test,
            "set config.evaluation.online_every_epochs=None, or give a test split of the same",
        )
        ranked = settings.checkpoint.keep_best and settings.checkpoint.best_metric
        num_classes = len(train.class_names)
        if ranked == "online/knn_top5" and num_classes <= TRIVIAL_TOP5:
            raise ConfigError(
                f"config.checkpoint.best_metric is {ranked!r}, but with {num_classes} classes "
                "top-5 accuracy is always 1: set it to 'online/knn_top1'."
            )
        self._data, self._evaluation, self._run = settings.data, evaluation, run
        self._split_qp = evaluated_split(settings)
        self._sources = _sets(evaluation, train, test)
        self._k = usable_ks((evaluation.headline_k,), len(self._sources[0]))
        epoch = run.method.steps_per_epoch
        self._in_coordinates = coordinates_of(evaluation, run.method, run.mesh)
        assert evaluation.online_every_epochs is not None
        self.every_steps = steps_in_epochs(evaluation.online_every_epochs, epoch)

    def __call__(self, state: TrainState) -> tuple[dict[str, float], npt.NDArray[np.float32]]:
        """Returns 'online/knn_top1' and 'online/knn_top5' of the state's encoder, and its states.

        Each comes with its 95 % interval over test images, as '_low' and '_high'. With five or
        fewer classes, top 5 is omitted. The states [N, D] are of the test images.
        """
        evaluation = self._evaluation
        raw = make_encode(self._run, state.params, state.batch_stats)
        encode = self._in_coordinates(raw, state.method_state, int(state.step))
        sets = []
        for source in self._sources:
            with eval_batches(self._data, source, evaluation.batch_size) as batches:
                sets.append(extract_features(encode, batches))
        part = evaluation.state_part
        train, test = (
            s._replace(features=select_state_part(s.features, part, self._split_qp)) for s in sets
        )
        num_classes = len(self._sources[0].class_names)
        found = knn_accuracy(
            *train,
            *test,
            ks=self._k,
            num_classes=num_classes,
            block=evaluation.knn_block,
            reference=evaluation.reference_evaluation,
            mesh=sharding.local_mesh(),
        )
        scores = {}
        for name in ("top1", "top5") if num_classes > TRIVIAL_TOP5 else ("top1",):
            share = found[name][0]
            low, high = wilson(share, len(test.labels))
            scores |= {
                f"online/knn_{name}": share,
                f"online/knn_{name}_low": low,
                f"online/knn_{name}_high": high,
            }
        return scores, test.features


def _sets(settings: Evaluation, train: ImageSource, test: ImageSource) -> list[ImageSource]:
    """Returns the online kNN's training and test images; DataError if it would be meaningless."""
    sets: list[ImageSource] = []
    try:
        sets = [subset(labeled(s), settings.online_images, settings.seed) for s in (train, test)]
        known, tested = sets
        reason = validity.why_no_accuracy(
            known.labels(), tested.labels(), shared_images(known, tested), train.class_names
        )
    except ValueError as error:
        reason = str(error)
    if reason:
        raise DataError(
            f"config.evaluation.online_every_epochs is {settings.online_every_epochs}, but {reason}"
            " Set it to None, or give other images."
        )
    return sets


def _original(source: ImageSource, number: int, side: int) -> npt.NDArray[np.uint8]:
    """Returns an image as stored, fitted into a white square; all white if it is corrupt."""
    square = Image.new("RGB", (side, side), "white")
    with contextlib.suppress(OSError, ValueError):
        image = Image.fromarray(decode(source.record(number)))
        factor = side / max(image.size)
        width, height = (max(1, round(factor * length)) for length in image.size)
        small = image.resize((width, height), Image.Resampling.BICUBIC)
        square.paste(small, ((side - width) // 2, (side - height) // 2))
    return np.asarray(square)


def _first_rows(batch: Mapping[str, PyTree[jax.Array]]) -> dict[str, PyTree[jax.Array]]:
    """Returns this process's first images in a batch, on one device; what is whole stays whole."""

    def first(name: str, array: jax.Array) -> jax.Array:
        here = array.addressable_shards[0].data
        if name in sharding.WHOLE:
            return here
        return here[:, :_SHEET_IMAGES] if name in sharding.VIEW_MAJOR else here[:_SHEET_IMAGES]

    return {name: jax.tree.map(functools.partial(first, name), batch[name]) for name in batch}


def smallest_eigenvalues(states: npt.NDArray[np.float32], split_qp: bool) -> dict[str, float]:
    """Returns the smallest eigenvalue of q, p and z of states [N, D], as 'state/q_eigenvalue_min'.

    It is that of the covariance in at most 128 fixed random directions, see `volume`, and 0 in a
    collapse. States without halves have that of z alone, and a single state has none.
    """
    if len(states) < 2:
        return {}
    return {
        f"state/{name}_eigenvalue_min": volume(part, ALARM_DIM, 0.0).smallest
        for name, part in parts_of(states, split_qp).items()
    }


class TrainingMonitor:
    """Watches a run and writes to the log and TensorBoard; it never changes the state."""

    def __init__(
        self,
        settings: Settings,
        run: PreparedRun,
        source: ImageSource,
        writer: metric_writers.MetricWriter,
    ):
        """Sets up what `config.evaluation` asks for; raises the errors of `OnlineKnn`."""
        self._run, self._writer, self._source = run, writer, source
        self._data, self._split_qp = settings.data, evaluated_split(settings)
        self._alarms = AlarmLog(run.method.targets(), run.method.remedy)
        online = settings.evaluation.online_every_epochs is not None
        self._knn = OnlineKnn(settings, run, source) if online else None

    def show_views(self, step: int, batch: Mapping[str, PyTree[jax.Array]]) -> None:
        """Writes a contact sheet of this process's first images and their views."""
        with BOARD.busy("making the first views"):
            made = augment_batch(with_images(_first_rows(batch)), self._data)
            shown = {name: np.asarray(made[name]) for name in VIEWS if name in made}
        side = max(64, self._data.image_size)
        originals = [_original(self._source, int(n), side) for n in np.asarray(made["index"])]
        shown["image"] = np.stack(originals)
        self._writer.write_images(step, {"data/views": contact_sheet(shown, _SHEET_IMAGES)})

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs alarms that were not raised before."""
        for alarm in self._alarms.new(metrics):
            _log.warning("step %d: %s", step, alarm.sentence())

    def is_due(self, step: int) -> bool:
        """Returns whether `scores` should be called after this step."""
        if self._knn is None:
            return False
        return step % self._knn.every_steps == 0 or step == self._run.num_steps

    def scores(self, step: int, state: TrainState) -> dict[str, float]:
        """Runs the kNN, writes its accuracies, and returns them."""
        assert self._knn is not None
        scores, states = self._knn(state)
        self._writer.write_scalars(step, scores | smallest_eigenvalues(states, self._split_qp))
        found = {f"state/{name}": values for name, values in spreads(states).items()}
        self._writer.write_histograms(step, found)
        figures = (scores[f"online/knn_top1{end}"] for end in ("", "_low", "_high"))
        message = "step %d: kNN top-1 %.1f %% (95 %% interval %.1f to %.1f)"
        _log.info(message, step, *(100 * figure for figure in figures))
        return scores
