"""Checks whether accuracies are meaningful, and caveats about them, as sentences."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hjepa_jax.data.sources.base import has_label
from hjepa_jax.errors import counted

if TYPE_CHECKING:
    from hjepa_jax.evaluation.features import Batch

# Rows of pixels that are hashed; hashing all rows of a large image would take long.
_ROWS = 64
# Two-sided 95 % quantile of the normal distribution.
_Z = 1.959963984540054
# 95 % intervals with at least this half-width, in points, get a note.
_WIDE_POINTS = 5.0


def image_digest(image: npt.NDArray[np.uint8]) -> bytes:
    """Returns a digest of the pixels of an image [S, S, 3] (of at least 64 rows)."""
    part = np.ascontiguousarray(image[:: max(1, len(image) // _ROWS)])
    return hashlib.blake2b(part.data, digest_size=12).digest()


class Overlap:
    """Counts labeled test images that are also training images, while both sets are being read."""

    def __init__(self) -> None:
        """Starts with no images."""
        self._seen: dict[str, list[bytes]] = {}

    def watch(self, name: str, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yields the batches of the set `name` ('train' or 'test'), hashed on the first pass."""
        if name in self._seen:
            yield from batches
            return
        found: list[bytes] = []
        for batch in batches:
            keep = has_label(batch["label"])
            if "mask" in batch:
                keep &= np.asarray(batch["mask"], bool)
            found += [image_digest(batch["image"][row]) for row in np.flatnonzero(keep)]
            yield batch
        self._seen[name] = found

    def shared(self) -> int:
        """Returns how many labeled test images are also labeled training images."""
        known = set(self._seen.get("train", ()))
        return sum(digest in known for digest in self._seen.get("test", ()))


def one_class(labels: npt.ArrayLike, kind: str, names: Sequence[str] = ()) -> str | None:
    """Returns why the labels do not distinguish classes; None if they do."""
    values = np.asarray(labels)
    found = np.unique(values[has_label(values)])
    if not len(found):
        return f"no {kind} image has a label"
    if len(found) > 1:
        return None
    name = names[found[0]] if found[0] < len(names) else found[0]
    return f"all labeled {kind} images are of one class ({name})"


def why_no_accuracy(
    train_labels: npt.ArrayLike,
    test_labels: npt.ArrayLike,
    shared: int = 0,
    names: Sequence[str] = (),
) -> str | None:
    """Returns why an accuracy on these sets would be meaningless; None if it is not.

    Args:
      train_labels: int [N]; -1 = no label.
      test_labels: int [M]; -1 = no label.
      shared: number of labeled test images that are also training images.
      names: class names.
    """
    train, test = np.asarray(train_labels), np.asarray(test_labels)
    for labels, kind in ((train, "training"), (test, "test")):
        sentence = one_class(labels, kind, names)
        if sentence:
            return f"{sentence}, so an accuracy would say nothing about the features."
    if shared and shared == np.count_nonzero(has_label(test)):
        return (
            f"all {shared} test images are also training images, so an accuracy would only show "
            "that an image is similar to itself; use a test split of other images."
        )
    return None


def wilson(share: float, count: int) -> list[float]:
    """Returns the 95 % Wilson score interval [low, high] of a share of successes.

    For an accuracy on `count` test images, it bounds the accuracy on their population. Unlike the
    normal approximation, it has a positive width at 0 and 1 and stays within [0, 1].

    Args:
      share: successes over `count`, in [0, 1].
      count: trials, at least 1.

    Raises:
      ValueError: a share outside [0, 1], or no trial.
    """
    if count < 1 or not 0 <= share <= 1:
        raise ValueError(f"An interval needs a share in [0, 1] of trials, not {share} of {count}.")
    square = _Z * _Z / count
    center = (share + square / 2) / (1 + square)
    half = _Z / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    low = 0.0 if share == 0 else max(center - half, 0.0)
    high = 1.0 if share == 1 else min(center + half, 1.0)
    return [low, high]


def largest_share(labels: npt.ArrayLike) -> float | None:
    """Returns the share of the largest class among labels int [M], a constant answer's accuracy."""
    values = np.asarray(labels)
    values = values[has_label(values)]
    return float(np.bincount(values).max() / len(values)) if len(values) else None


def notes_on_sets(
    train_labels: npt.ArrayLike, test_labels: npt.ArrayLike, shared: int = 0
) -> list[str]:
    """Returns caveats about accuracies on these sets, as sentences.

    If accuracies are meaningless (`why_no_accuracy`), only unlabeled images are mentioned.
    """
    train, test = np.asarray(train_labels), np.asarray(test_labels)
    judged = why_no_accuracy(train, test, shared) is None
    return [*(_doubts(train, test, shared) if judged else ()), *_unlabeled(train, test)]


def _doubts(train: np.ndarray, test: np.ndarray, shared: int) -> list[str]:
    """Returns caveats about test images that are shared, few, or of classes unseen in training."""
    tested = int(np.count_nonzero(has_label(test)))
    notes = []
    if shared:
        notes.append(
            f"{shared} of the {tested} test images are also training images, which inflates "
            "every accuracy."
        )
    low, high = wilson(0.5, tested)
    points = 50 * (high - low)
    if points >= _WIDE_POINTS:
        notes.append(
            f"With {tested} test images, the 95 % interval of an accuracy is up to "
            f"±{points:.0f} points: smaller differences may be due to chance."
        )
    absent = np.setdiff1d(test[has_label(test)], train[has_label(train)])
    if len(absent):
        count = int(np.isin(test, absent).sum())
        number = counted(len(absent), "class", "classes")
        notes.append(
            f"{count} of the {tested} test images are of {number} without training images and "
            "cannot be classified correctly."
        )
    return notes


def _unlabeled(train: np.ndarray, test: np.ndarray) -> list[str]:
    """Returns a sentence for each set of which some images are unlabeled."""
    notes = []
    for labels, kind, fate in (
        (train, "training", "neither vote in kNN nor train a probe"),
        (test, "test", "are not tested"),
    ):
        missing = int(np.count_nonzero(~has_label(labels)))
        # Without any label, the reason for the missing accuracy says it.
        if 0 < missing < len(labels):
            notes.append(
                f"{missing} of the {len(labels)} {kind} images have no label: they {fate}."
            )
    return notes


def constant_notes(answers: Mapping[str, npt.ArrayLike], names: Sequence[str] = ()) -> list[str]:
    """Returns a sentence for each classifier (by name) that predicts one class for all images."""
    notes = []
    for classifier, given in answers.items():
        found = np.unique(np.asarray(given))
        if len(found) == 1:
            name = names[found[0]] if found[0] < len(names) else found[0]
            notes.append(
                f"{classifier} predicts one class ({name}) for every test image: its accuracy is "
                "that class's share of the test set and says nothing about the features."
            )
    return notes
