"""Converts images of any mode to 8-bit RGB, scaling pixels of more than 8 bits.

8-bit images keep their values. Deeper pixels (16-bit grayscale or RGB, 32-bit integers, floats)
often use only part of their type: 12-bit data in 16-bit files, or floats from 0 to 1. The values
that map to 0 and 255 must be the same for all images of a dataset, so they are chosen once, from a
sample of the training images, when the dataset is opened (`open_source`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

# Candidate bit depths of integers: the first that holds every sampled value is used.
_BITS = (1, 2, 4, 8, 10, 12, 14, 16)
FULL = 65535.0
# Floats up to this are treated as 0 .. 1 with some overshoot.
_UNIT_OVERSHOOT = 2.0
# Floats that all stay below this would be nearly black in a range of 0 .. 1.
_DARK = 1 / 16
# Pillow reads the high byte of each 16-bit channel; this raw mode reads the low byte instead.
_CHANNELS = ("RGB", "RGBX", "RGBA", "CMYK")
_LITTLE, _BIG, _NATIVE = ([f"{name};16{order}" for name in _CHANNELS] for order in "LBN")
_LOW_BYTE = dict(zip(_LITTLE, _BIG)) | dict(zip(_BIG, _LITTLE))
_LOW_BYTE |= dict(zip(_NATIVE, _BIG if sys.byteorder == "little" else _LITTLE))
# 16-bit gray with alpha: the four bytes of a pixel, as four channels.
_GRAY_ALPHA = "LA;16B"


class Limits(NamedTuple):
    """Smallest and largest finite value of deep pixels; `real` is True for floats."""

    real: bool
    low: float
    high: float


class Ranges(NamedTuple):
    """The values that map to 0 and 255 in a dataset; None for a kind not found in its sample.

    Attributes:
      integer: (low, high) for integers of more than 8 bits.
      real: (low, high) for floats.
    """

    integer: tuple[float, float] | None = None
    real: tuple[float, float] | None = None


def raw_mode(image: ImageFile.ImageFile) -> str:
    """Returns the raw mode of an image that is not loaded yet; '' if unknown."""
    arguments = image.tile[0].args if image.tile else ""
    if isinstance(arguments, tuple) and arguments:
        arguments = arguments[0]
    return arguments if isinstance(arguments, str) else ""


def is_deep(image: Image.Image, raw: str) -> bool:
    """Returns whether an image, not loaded yet, has more than 8 bits per channel."""
    return (
        image.mode in ("I", "F")
        or image.mode.startswith("I;16")
        or raw in _LOW_BYTE
        or raw == _GRAY_ALPHA
    )


def read_low_bytes(image: ImageFile.ImageFile, raw: str) -> bool:
    """Sets an image, not loaded yet, to read the low bytes of its 16-bit channels.

    Args:
      image: modified in place.
      raw: its raw mode.

    Returns:
      Whether it has 16-bit channels. 16-bit gray with alpha is then read as its four bytes.
    """
    low = "RGBA" if raw == _GRAY_ALPHA else _LOW_BYTE.get(raw)
    if low is None:
        return False
    image.tile = [
        tile._replace(args=(low, *tile.args[1:]) if isinstance(tile.args, tuple) else low)
        for tile in image.tile
    ]
    return True


def deep_values(image: Image.Image, raw: str, low_bytes: Image.Image | None) -> npt.NDArray:
    """Returns the values of a deep image.

    Args:
      image: the loaded image.
      raw: its raw mode.
      low_bytes: the same image, loaded after `read_low_bytes`; None if that returned False.

    Returns:
      int32 or float32: [H, W], [H, W, 3] for RGB, or [H, W, 4] for CMYK. Alpha is dropped.
    """
    if low_bytes is None:
        values = np.asarray(image)
        return values if values.dtype == np.float32 else values.astype(np.int32)
    low = np.asarray(low_bytes).astype(np.int32)
    if raw == _GRAY_ALPHA:
        return low[..., 0] * 256 + low[..., 1]
    kept = 4 if image.mode == "CMYK" else 3
    return np.asarray(image).astype(np.int32)[..., :kept] * 256 + low[..., :kept]


def limits(values: npt.NDArray) -> Limits | None:
    """Returns the limits of an image's finite values; None if there are none."""
    real = values.dtype.kind == "f"
    if real:
        values = values[np.isfinite(values)]
    if not values.size:
        return None
    return Limits(real, float(values.min()), float(values.max()))


def _integer_range(low: float, high: float) -> tuple[float, float]:
    if low < 0:
        return low, max(high, low + 255)
    if high == 0:
        return 0.0, FULL
    bits = next((bits for bits in _BITS if high < 2**bits), None)
    return 0.0, float(2 ** (bits or int(high).bit_length()) - 1)


def _real_range(low: float, high: float) -> tuple[float, float]:
    if low < -0.1 * max(high, 1.0):
        return (-1.0, 1.0) if low >= -1.1 and high <= 1.1 else (low, max(high, low + 1))
    if high <= _UNIT_OVERSHOOT:
        return 0.0, high if 0 < high < _DARK else 1.0
    return _integer_range(0.0, float(np.floor(high)))


def choose_ranges(sampled: Sequence[Limits]) -> Ranges | None:
    """Chooses the ranges of a dataset from the limits of sampled images.

    Non-negative integers use the smallest of 1, 2, 4, 8, 10, 12, 14, 16 or more bits that holds all
    of them. Floats use 0..1, -1..1 if some are negative, or an integer range if some are larger.
    Other negative values, and floats that are all below 1/16, use the sample's own range.

    Args:
      sampled: limits of the sampled deep images.

    Returns:
      The ranges; None for an empty sample.
    """
    found: dict[bool, tuple[float, float]] = {}
    for real in {one.real for one in sampled}:
        low = min(one.low for one in sampled if one.real == real)
        high = max(one.high for one in sampled if one.real == real)
        found[real] = (_real_range if real else _integer_range)(low, high)
    return Ranges(found.get(False), found.get(True)) if found else None


def scale(values: npt.NDArray, bounds: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Scales values so that `bounds` map to 0 and 255; values outside saturate, NaN becomes 0."""
    low, high = bounds
    bits = int(high).bit_length()
    if values.dtype.kind != "f" and low == 0 and high == 2**bits - 1 and bits >= 8:
        # The high bits: the usual reduction from 16 bits to 8.
        return (np.clip(values, 0, int(high)) >> (bits - 8)).astype(np.uint8)
    scaled = (values.astype(np.float64) - low) * (255.0 / (high - low))
    # NaN marks pixels without a value.
    scaled = np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def image_of(values: npt.NDArray[np.uint8]) -> Image.Image:
    """Returns an RGB image of scaled values in one of the shapes of `deep_values`."""
    if values.ndim == 3 and values.shape[2] == 4:
        size = values.shape[1], values.shape[0]
        return Image.frombytes("CMYK", size, values.tobytes()).convert("RGB")
    return Image.fromarray(values).convert("RGB")


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of at most 8 bits per channel to RGB; alpha is dropped."""
    if image.mode == "RGB":
        return image
    if image.mode == "PA" or (image.mode == "P" and "transparency" in image.info):
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
