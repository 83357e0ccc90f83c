"""The handwritten digits included in scikit-learn: real images without a download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from hjepa_jax.data.counter_random import Stream
from hjepa_jax.data.sources.base import ArraySource, DataSet
from hjepa_jax.data.sources.derived import stratified_sample

SIDE = 32
NUM_TEST = 360
# The split is part of the dataset, so it does not depend on config.seed.
_SPLIT_SEED = 0


class Digits(DataSet):
    """The digits, split into 1,437 'train' and 360 'test' images."""

    def open(self, split: str, siblings: Sequence[str]) -> ArraySource:
        """Opens a split; the classes have the same numbers in both."""
        del siblings
        return open_digits(split)


def open_digits(split: str) -> ArraySource:
    """Returns the 1,437 'train' or 360 'test' digits as 32x32 RGB images (8x8 upscaled).

    Raises:
      ValueError: if the split is neither 'train' nor 'test'.
    """
    if split not in ("train", "test"):
        raise ValueError(f"The digits have the splits 'train' and 'test', not '{split}'.")
    from sklearn.datasets import load_digits

    loaded: Any = load_digits()
    gray = np.rint(loaded.images * (255.0 / 16.0)).astype(np.uint8)
    labels = np.asarray(loaded.target, np.int32)
    test = np.zeros(len(labels), bool)
    test[stratified_sample(labels, NUM_TEST, _SPLIT_SEED, Stream.SUBSET)] = True
    chosen = np.flatnonzero(test if split == "test" else ~test)
    upscaled = [
        np.asarray(Image.fromarray(gray[i]).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        for i in chosen
    ]
    images = np.repeat(np.stack(upscaled)[..., None], 3, axis=-1)
    return ArraySource(f"digits/{split}", images, labels[chosen], [str(n) for n in range(10)])
