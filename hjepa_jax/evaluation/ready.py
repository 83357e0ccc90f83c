"""Checks of what an evaluation needs, made before hours of training."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from hjepa_jax.config import Settings
from hjepa_jax.data.sources.base import ImageSource, has_label
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.data.sources.splits import say_once
from hjepa_jax.errors import ConfigError, DataError
from hjepa_jax.evaluation import validity
from hjepa_jax.evaluation.classify import check_few_shot
from hjepa_jax.evaluation.coordinates.posthoc import check_posthoc
from hjepa_jax.evaluation.knn import usable_ks
from hjepa_jax.evaluation.probes.tokens import check_tokens
from hjepa_jax.runtime import distributed, sharding
from hjepa_jax.storage.files import check_writable_folder

_NAMES_SHOWN = 5
# Sets of at most this many images are compared byte by byte.
_COMPARED = 500


class Sets(NamedTuple):
    """The training and the test images of an evaluation."""

    train: ImageSource
    test: ImageSource


def check_same_classes(train: ImageSource, test: ImageSource, remedy: str) -> None:
    """Checks that both sets have the same classes in the same order.

    Raises:
      DataError: if not, naming the classes that only one has; the message ends with `remedy`.
    """
    if train.class_names == test.class_names:
        return
    differing = []
    for ours, theirs, which in ((test, train, "test"), (train, test, "training")):
        lone = sorted(set(ours.class_names) - set(theirs.class_names))
        if lone:
            more = f" and {len(lone) - _NAMES_SHOWN} more" if len(lone) > _NAMES_SHOWN else ""
            differing.append(f"only the {which} images have {', '.join(lone[:_NAMES_SHOWN])}{more}")
    raise DataError(
        f"the classes of the two splits differ: {len(train.class_names)} in {train.description}, "
        f"{len(test.class_names)} in {test.description} "
        f"({'; '.join(differing) or 'the same ones in another order'}): {remedy}."
    )


def shared_images(train: ImageSource, test: ImageSource) -> int:
    """Returns how many test images are also stored as training images."""

    def digests(source: ImageSource) -> Iterator[bytes]:
        for index in range(len(source)):
            try:
                record = source.record(index)
            except (OSError, ValueError):
                continue  # the evaluation reports it
            if record.encoded is not None:
                yield hashlib.blake2b(record.encoded, digest_size=12).digest()
            elif record.image is not None:
                yield validity.image_digest(record.image)

    known = set(digests(train))
    return sum(digest in known for digest in digests(test))


def _why_no_accuracy(sets: Sets) -> str | None:
    """Returns why the evaluation will report no accuracy, as far as that is known before it."""
    train, test = (one.labels() for one in sets)
    shared = 0
    if max(map(len, sets)) <= _COMPARED or sets.train.fingerprint() == sets.test.fingerprint():
        shared = shared_images(*sets)
    return validity.why_no_accuracy(train, test, shared, sets.train.class_names)


def open_sets(settings: Settings) -> Sets:
    """Opens the images of an evaluation and checks its settings against them.

    Raises:
      ConfigError, DataError: a missing or too small split, different classes, more neighbors,
        shots or folds than images, or no tokens for an attentive probe or too many.
    """
    evaluation = settings.evaluation
    sets = Sets(open_split(settings, "train"), open_split(settings, "test"))
    check_same_classes(*sets, "give a test split of the same classes")
    for source, which in zip(sets, ("training", "test"), strict=True):
        if len(source) < 2:
            raise DataError(
                f"{source.description}: the evaluation needs at least two {which} images."
            )
    reason = _why_no_accuracy(sets)
    if reason is not None:
        say_once(f"the evaluation reports no accuracy: {reason}")
    labels = sets.train.labels()
    labeled = int(np.count_nonzero(has_label(labels)))
    # Without accuracies, all images are neighbors.
    neighbors = labeled if reason is None else len(labels)
    wanted = (*evaluation.knn_k, evaluation.headline_k)
    if min(wanted) > neighbors:
        usable_ks(wanted, neighbors)
    if reason is not None:
        return sets
    check_tokens(settings, labeled)
    for shots in evaluation.few_shot:
        check_few_shot(labels, shots, len(sets.train.class_names))
    folds = evaluation.probe_folds
    if evaluation.probe_lr_sweep and folds > labeled:
        raise ConfigError(
            f"config.evaluation.probe_folds is {folds}, but only {labeled} training images have a "
            f"label: set it to {labeled} or less."
        )
    return sets


def check_evaluation_ready(settings: Settings, eval_dir: pathlib.Path | None, mesh: Mesh) -> Sets:
    """Checks everything that an evaluation needs but a checkpoint, and returns its images.

    Args:
      settings: the configuration.
      eval_dir: folder of reports, which is created; None = not checked.
      mesh: the mesh of `sharding.data_mesh`.

    Raises:
      UserError: something is missing or does not match; the message says what to do.
    """
    check_posthoc(settings)
    size = settings.evaluation.batch_size
    sentence = sharding.divisibility_error(size, mesh, "config.evaluation.batch_size")
    if sentence:
        raise ConfigError(sentence)
    if eval_dir is not None and distributed.is_primary():
        check_writable_folder(eval_dir, "--eval_dir")
    return open_sets(settings)
