"""Inputs of the pictures: some test images, their neighbors, and a sample of features."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping

import numpy as np

from hjepa_jax.evaluation.features import Batch
from hjepa_jax.evaluation.report import maps

NUM_QUERIES = 6
MAP_POINTS = 1500
# Position in its dataset -> (image uint8 [S, S, 3], label).
Images = Mapping[int, tuple[np.ndarray, int]]


@dataclasses.dataclass(frozen=True)
class EncoderPictures:
    """Inputs of the pictures from one encoder.

    Attributes:
      cosine: similarities of random pairs of test images, [P].
      features, labels: features [M, D] and labels int [M] of some test images.
      states: their full states, of which the features may be a part.
      query_states: the states [Q, D] of the queries.
      neighbors: training indices int [Q, K] of the queries' neighbors, nearest first.
    """

    cosine: np.ndarray
    features: np.ndarray
    labels: np.ndarray
    states: np.ndarray
    query_states: np.ndarray
    neighbors: np.ndarray

    @functools.cached_property
    def principal(self) -> maps.PrincipalAxes:
        """The first two principal axes of the features."""
        return maps.principal_axes(self.features, 2)

    @functools.cached_property
    def tsne(self) -> np.ndarray:
        """The features in two dimensions, [M, 2]; takes seconds."""
        return maps.tsne(self.features)


@dataclasses.dataclass(frozen=True)
class PictureInputs:
    """Inputs of the pictures.

    Attributes:
      encoders: by name, in the order of the tables.
      queries: test indices int [Q] of the gallery's rows.
      test_images, train_images: the images the gallery needs.
      class_names: one for each class.
    """

    encoders: dict[str, EncoderPictures]
    queries: np.ndarray
    test_images: Images
    train_images: Images
    class_names: tuple[str, ...]


def collect_images(batches: Iterable[Batch], indices: Iterable[int]) -> Images:
    """Returns the images at the given positions of a dataset (padding rows do not count).

    Stops after the last of them and closes `batches` if possible.
    """
    wanted = {int(i) for i in indices}
    found: dict[int, tuple[np.ndarray, int]] = {}
    start = 0
    for batch in batches:
        rows = np.arange(len(batch["label"]))
        if "mask" in batch:
            rows = np.flatnonzero(np.asarray(batch["mask"]))
        for position, row in enumerate(rows, start):
            if position in wanted:
                found[position] = (np.array(batch["image"][row]), int(batch["label"][row]))
        start += len(rows)
        if len(found) == len(wanted):
            break
    close = getattr(batches, "close", None)
    if close is not None:
        close()
    return found


def choose_queries(labels: np.ndarray, seed: int) -> np.ndarray:
    """Returns a seeded choice of test images, independent of results, distinct classes first."""
    order = np.random.default_rng(seed).permutation(len(labels))
    _, first = np.unique(labels[order], return_index=True)
    first = np.sort(first)
    rest = np.setdiff1d(np.arange(len(order)), first)
    return order[np.concatenate([first, rest])][:NUM_QUERIES]
