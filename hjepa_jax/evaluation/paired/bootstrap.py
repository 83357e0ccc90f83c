"""Bootstrap over test images of contrasts between encoders.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile
interval).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Effect(NamedTuple):
    """A difference of accuracies and its interval.

    Attributes:
      difference: share of the test images, in [-1, 1].
      low, high: the interval over test images.
    """

    difference: float
    low: float
    high: float


def image_effect(
    ours: Sequence[npt.ArrayLike],
    theirs: Sequence[npt.ArrayLike],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Effect:
    """Returns the mean accuracy of `ours` minus that of `theirs`, paired by image.

    The images are resampled with replacement, all encoders together. The interval thus holds for
    these trained encoders on other test images; it does not contain the spread over seeds.

    Args:
      ours: for each encoder whether its answer to each image is right, bool [M].
      theirs: the same of the encoders to compare with, for the same images.
      confidence: of the interval.
      resamples: number of draws.
      seed: of the draws.

    Raises:
      ValueError: no encoder, no image, or different numbers of images.
    """
    groups = [[np.asarray(one, bool) for one in group] for group in (ours, theirs)]
    lengths = {one.shape for group in groups for one in group}
    if not all(groups) or len(lengths) != 1 or 0 in next(iter(lengths)):
        raise ValueError(
            f"A paired comparison needs the same images in both groups, not {lengths}."
        )
    first, second = (np.sum(group, axis=0) for group in groups)
    # Differences of means times a common denominator are whole, so there are few different ones.
    scaled = first * len(groups[1]) - second * len(groups[0])
    values, counts = np.unique(scaled, return_counts=True)
    unit = 1 / (len(groups[0]) * len(groups[1]) * len(scaled))
    draws = np.random.default_rng(seed).multinomial(
        len(scaled), counts / len(scaled), size=resamples
    )
    tail = 50 * (1 - confidence)
    low, high = np.percentile(draws @ values * unit, [tail, 100 - tail])
    return Effect(float(scaled.sum() * unit), float(low), float(high))
