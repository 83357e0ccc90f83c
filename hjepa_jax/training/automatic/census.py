"""What a choice of settings is made from: the images and the devices at hand, in a few numbers."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Sequence
from concurrent import futures
from typing import NamedTuple

import jax
import numpy as np
import numpy.typing as npt
from PIL import Image

from hjepa_jax.config import Settings
from hjepa_jax.data import counter_random
from hjepa_jax.data.augmentation import host
from hjepa_jax.data.counter_random import Stream
from hjepa_jax.data.decode import decode_image
from hjepa_jax.data.sources.base import ImageSource, has_label
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import DataError

# Images whose sizes and pixels are measured.
_SAMPLED = 256
# Side to which they are reduced for the moments of their pixels.
_SIDE = 64

Triple = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Census:
    """The images and the devices.

    Attributes:
      count: training images, those that may be held out included.
      has_test: whether there is a test split.
      labeled: how many of the training images have a label.
      classes: number of classes.
      sampled: number of images that were measured.
      short_side: the short sides in pixels that a tenth, half and nine tenths of them stay below.
      mean, std: of their channels, scaled to 0..1.
      files: whether images are decoded when they are needed, and not kept as pixels.
      platform: 'cpu', 'gpu' or 'tpu'.
      devices: number of devices of all processes.
      cores: CPU cores of this machine.
    """

    count: int
    has_test: bool
    labeled: int
    classes: int
    sampled: int
    short_side: tuple[int, int, int]
    mean: Triple
    std: Triple
    files: bool
    platform: str
    devices: int
    cores: int


class _Measured(NamedTuple):
    """The short side of an image in pixels, and the sums [3] of its channels and their squares."""

    short_side: int
    mean: npt.NDArray[np.float64]
    square: npt.NDArray[np.float64]
    encoded: bool


def take(settings: Settings) -> Census:
    """Returns the census of the images of a configuration and of this machine.

    Args:
      settings: the configuration; only `data`'s choice of images, and `seed`, are read.

    Raises:
      DataError: if the training images are missing, or none of a sample can be read.
    """
    whole = settings.replace({"data.test_holdout": None, "evaluation.online_holdout": None})
    source = open_split(whole, "train")
    found = _measure(source, settings.seed)
    sides = np.array([one.short_side for one in found])
    low, middle, high = np.quantile(sides, (0.1, 0.5, 0.9), method="lower")
    mean = np.mean([one.mean for one in found], axis=0)
    variance = np.mean([one.square for one in found], axis=0) - mean**2
    # A channel of one value would divide by zero.
    std = np.sqrt(np.maximum(variance, 1e-4))
    return Census(
        count=len(source),
        has_test=_has_test(whole),
        labeled=int(np.count_nonzero(has_label(source.labels()))),
        classes=len(source.class_names),
        sampled=len(found),
        short_side=(int(low), int(middle), int(high)),
        mean=_rounded(mean),
        std=_rounded(std),
        files=any(one.encoded for one in found),
        platform=jax.default_backend(),
        devices=jax.device_count(),
        cores=os.cpu_count() or 1,
    )


def _rounded(values: npt.NDArray[np.float64]) -> Triple:
    red, green, blue = (round(float(value), 4) for value in values)
    return red, green, blue


def _has_test(settings: Settings) -> bool:
    """Returns whether there is a test split; a damaged one is an error."""
    if settings.data.test_split == settings.data.train_split:
        return True
    try:
        open_split(settings, "test")
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return False
        raise
    return True


def _measure(source: ImageSource, seed: int) -> list[_Measured]:
    """Measures a seeded sample of the images; those that cannot be read are passed over.

    Raises:
      DataError: if none can be read.
    """
    order = counter_random.permutation(counter_random.stream_key(seed, Stream.SUBSET), len(source))[
        :_SAMPLED
    ]
    with futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        tried: Sequence[_Measured | Exception] = list(
            pool.map(lambda index: _measured(source, int(index)), order)
        )
    found = [one for one in tried if isinstance(one, _Measured)]
    if not found:
        raise DataError(f"None of {len(order)} images could be read; the first error: {tried[0]}")
    return found


def _measured(source: ImageSource, index: int) -> _Measured | Exception:
    try:
        record = source.record(index)
        if record.image is not None:
            image: Image.Image | npt.NDArray[np.uint8] = record.image
            short = min(record.image.shape[:2])
        else:
            encoded = record.encoded or b""
            image = decode_image(encoded, record.name, _SIDE, _SIDE, record.ranges)
            with Image.open(io.BytesIO(encoded)) as header:
                short = min(header.size)
    except (OSError, ValueError) as error:
        return error
    pixels = host.eval_image(image, _SIDE, None).astype(np.float64) / 255
    flat = pixels.reshape(-1, 3)
    return _Measured(short, flat.mean(0), np.square(flat).mean(0), record.image is None)
