"""Images with a label, and a part of them that is held out of the training."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hjepa_jax.data import counter_random
from hjepa_jax.data.sources.base import ImageSource, SubsetSource


def labeled(source: ImageSource) -> ImageSource:
    """Returns the images of a source that have a label (-1 = none); itself where all have.

    Raises:
      ValueError: If none has one.
    """
    rows = np.flatnonzero(source.labels() >= 0)
    if not len(rows):
        raise ValueError(f"No image of {source.description} has a label.")
    return source if len(rows) == len(source) else SubsetSource(source, rows)


def _shares(counts: npt.NDArray[np.int64], num: int) -> npt.NDArray[np.int64]:
    """Returns how many of `num` go to each class, by largest remainders."""
    exact = counts * num / counts.sum()
    share = np.floor(exact).astype(int)
    for position in np.argsort(share - exact, kind="stable")[: num - share.sum()]:
        share[position] += 1
    return share


def hold_out(source: ImageSource, num: int, seed: int) -> tuple[ImageSource, ImageSource]:
    """Splits a source into what is left and `num` labeled images, each class with its share.

    Which images are held out depends on the seed, the labels and `num` alone.

    Returns:
      (rest, held out), both in the order of the source; the rest keeps images without a label.

    Raises:
      ValueError: If fewer than `num` + 1 images have a label, or `num` is not positive.
    """
    labels = source.labels()
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    if not 1 <= num < counts.sum():
        raise ValueError(
            f"{num} images cannot be held out of {source.description}: {counts.sum()} of them have "
            "a label, and at least one must be left."
        )
    held = np.zeros(len(source), bool)
    for class_number, size in zip(classes, _shares(counts, num), strict=True):
        members = np.flatnonzero(labels == class_number)
        key = counter_random.stream_key(seed, counter_random.Purpose.HOLDOUT, int(class_number))
        held[members[counter_random.permutation(key, len(members))[:size]]] = True
    return (
        SubsetSource(source, np.flatnonzero(~held)),
        SubsetSource(source, np.flatnonzero(held)),
    )
