"""The handwritten digits that come with scikit-learn: real images without any download."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from hjepa_jax.data import counter_random
from hjepa_jax.data.sources.base import ArraySource

SIDE = 32
NUM_TEST = 360
# The split is part of the data set, so it does not follow config.seed.
_SPLIT_SEED = 0


def stratified_test_indices(labels: np.ndarray, num_test: int) -> np.ndarray:
    """Returns sorted indices of a test set in which each class has its share of the images."""
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * num_test / len(labels)
    share = np.floor(exact).astype(int)
    # Largest remainders get the images that rounding down left over.
    for position in np.argsort(share - exact, kind="stable")[: num_test - share.sum()]:
        share[position] += 1
    chosen = []
    for class_number, size in zip(classes, share):
        members = np.flatnonzero(labels == class_number)
        key = counter_random.stream_key(
            _SPLIT_SEED, counter_random.Purpose.SUBSET, int(class_number)
        )
        chosen.append(members[counter_random.permutation(key, len(members))[:size]])
    return np.sort(np.concatenate(chosen))


def open_digits(split: str) -> ArraySource:
    """Returns the 1,437 'train' or 360 'test' digits as 32x32 RGB images (8x8 upscaled).

    Raises:
      ValueError: If the split is neither 'train' nor 'test'.
    """
    if split not in ("train", "test"):
        raise ValueError(f"The digits have the splits 'train' and 'test', not '{split}'.")
    from sklearn.datasets import load_digits

    loaded: Any = load_digits()
    grey = np.rint(loaded.images * (255.0 / 16.0)).astype(np.uint8)
    labels = np.asarray(loaded.target, np.int32)
    test = np.zeros(len(labels), bool)
    test[stratified_test_indices(labels, NUM_TEST)] = True
    chosen = np.flatnonzero(test if split == "test" else ~test)
    upscaled = [
        np.asarray(Image.fromarray(grey[i]).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        for i in chosen
    ]
    images = np.repeat(np.stack(upscaled)[..., None], 3, axis=-1)
    return ArraySource(f"digits/{split}", images, labels[chosen], [str(n) for n in range(10)])
