"""Random parameters of the augmentation, drawn separately from the pixels they act on.

The distributions are those of torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter,
RandomGrayscale, GaussianBlur and RandomSolarize. Both backends (`host.apply` and
`device.augment_on_device`) take the same parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from hjepa_jax.config.data import Augment
from hjepa_jax.data import counter_random

if TYPE_CHECKING:
    import jax

# The color operations, as numbered in ViewParameters.order.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
CROP_TRIES = 10

# Slots of the draws of one view. The crop takes four per try, starting at _CROP.
_FLIP, _JITTER, _GRAY, _BLUR, _SIGMA, _SOLARIZE = range(6)
_ORDER = 6
_FACTORS = 10
_CROP = 14
_NUM_SLOTS = _CROP + 4 * CROP_TRIES


class ViewParameters(NamedTuple):
    """What happens to each of N views; every field is an array whose first axis is N.

    Attributes:
      top, left, height, width: int32 [N], the crop in pixels of the image.
      flip: bool [N], mirror the crop left to right.
      jitter: bool [N], apply the color operations.
      order: int8 [N, 4], the color operations in order of application.
      brightness, contrast, saturation: float32 [N], factors; 1 changes nothing.
      hue: float32 [N], shift as a fraction of the color circle.
      gray: bool [N], convert to grayscale.
      sigma: float32 [N], standard deviation of the blur in pixels; 0 for no blur.
      solarize: bool [N], invert the values at and above the threshold.
    """

    top: npt.NDArray[np.int32]
    left: npt.NDArray[np.int32]
    height: npt.NDArray[np.int32]
    width: npt.NDArray[np.int32]
    flip: npt.NDArray[np.bool_]
    jitter: npt.NDArray[np.bool_]
    order: npt.NDArray[np.int8]
    brightness: npt.NDArray[np.float32]
    contrast: npt.NDArray[np.float32]
    saturation: npt.NDArray[np.float32]
    hue: npt.NDArray[np.float32]
    gray: npt.NDArray[np.bool_]
    sigma: npt.NDArray[np.float32]
    solarize: npt.NDArray[np.bool_]

    def take(self, selection: slice | Sequence[int]) -> ViewParameters:
        """Returns the parameters of the views in a slice or list of indices."""
        return ViewParameters._make(field[selection] for field in self)


# The columns of packed parameters, for the device.
PACKED = (
    *("top", "left", "height", "width", "flip", "jitter"),
    *("order_0", "order_1", "order_2", "order_3"),
    *("brightness", "contrast", "saturation", "hue", "gray", "sigma", "solarize"),
)


def pack_views(parameters: ViewParameters) -> npt.NDArray[np.float32]:
    """Packs the parameters of N views into float32 [N, len(PACKED)], which holds them exactly."""
    columns: dict[str, npt.NDArray] = parameters._asdict()
    columns.update({f"order_{i}": parameters.order[:, i] for i in range(4)})
    return np.stack([columns[name].astype(np.float32) for name in PACKED], axis=-1)


def unpack_views(packed: jax.Array) -> dict[str, jax.Array]:
    """Returns the columns of packed parameters [..., len(PACKED)] by name."""
    return {name: packed[..., column] for column, name in enumerate(PACKED)}


def _draw_crops(
    draws: npt.NDArray[np.float64],
    heights: npt.NDArray[np.int64],
    widths: npt.NDArray[np.int64],
    scale: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[npt.NDArray[np.int32], ...]:
    """Returns top, left, height and width [N] from draws [4, tries, N]."""
    area = heights * widths * (scale[0] + (scale[1] - scale[0]) * draws[0])
    log_low, log_high = math.log(aspect[0]), math.log(aspect[1])
    ratio = np.exp(log_low + (log_high - log_low) * draws[1])
    crop_widths = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    crop_heights = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (crop_widths > 0) & (crop_widths <= widths)
    fits &= (crop_heights > 0) & (crop_heights <= heights)
    first = np.argmax(fits, axis=0)[None]
    found = fits.any(axis=0)

    def chosen(values: npt.NDArray) -> npt.NDArray:
        return np.take_along_axis(values, first, axis=0)[0]

    # No try fits: use the largest centered crop within the aspect bounds, at least one pixel.
    shape = widths / heights
    central_width = np.where(shape > aspect[1], np.rint(heights * aspect[1]), widths)
    central_height = np.where(shape < aspect[0], np.rint(widths / aspect[0]), heights)
    central_width, central_height = np.maximum(central_width, 1), np.maximum(central_height, 1)
    width = np.where(found, chosen(crop_widths), central_width).astype(np.int32)
    height = np.where(found, chosen(crop_heights), central_height).astype(np.int32)
    room_y, room_x = heights - height, widths - width
    top = np.where(found, np.floor(chosen(draws[2]) * (room_y + 1)), room_y // 2)
    left = np.where(found, np.floor(chosen(draws[3]) * (room_x + 1)), room_x // 2)
    return top.astype(np.int32), left.astype(np.int32), height, width


def _factors(
    draws: npt.NDArray[np.float64], jitter: npt.NDArray[np.bool_], strength: float
) -> npt.NDArray[np.float32]:
    """Maps draws in [0, 1) to color factors in 1 +- strength, at least 0; 1 without jitter."""
    lowest = max(0.0, 1.0 - strength)
    drawn = lowest + (1.0 + strength - lowest) * draws
    return np.where(jitter, drawn, 1.0).astype(np.float32)


def draw_parameters(
    augment: Augment,
    scale: tuple[float, float],
    *,
    key: int,
    index: npt.ArrayLike,
    view: npt.ArrayLike,
    height: npt.ArrayLike,
    width: npt.ArrayLike,
) -> ViewParameters:
    """Draws the augmentation parameters of N views.

    Args:
      augment: `config.data.augment`.
      scale: range of the crop's area as a fraction of the image's.
      key: `counter_random.stream_key` of the seed and epoch.
      index: integer [N], the image's index in its source.
      view: integer [N] or scalar, the view's number among those of its image.
      height: integer [N] or scalar, height of the image in pixels.
      width: integer [N] or scalar, width of the image in pixels.

    Returns:
      The parameters, which depend only on `key` and on each view's index, number and size.
    """
    index = np.asarray(index, np.int64)
    slots = np.arange(_NUM_SLOTS)[:, None]
    draws = counter_random.uniforms(
        key, np.asarray(index), np.broadcast_to(np.asarray(view), index.shape), slots
    )
    heights = np.broadcast_to(np.asarray(height, np.int64), index.shape)
    widths = np.broadcast_to(np.asarray(width, np.int64), index.shape)
    top, left, crop_height, crop_width = _draw_crops(
        draws[_CROP:].reshape(4, CROP_TRIES, -1), heights, widths, scale, augment.crop_aspect
    )
    jitter = draws[_JITTER] < augment.jitter_probability
    low, high = augment.blur_sigma
    sigma = np.where(
        draws[_BLUR] < augment.blur_probability, low + (high - low) * draws[_SIGMA], 0.0
    )

    return ViewParameters(
        top=top,
        left=left,
        height=crop_height,
        width=crop_width,
        flip=draws[_FLIP] < augment.flip_probability,
        jitter=jitter,
        order=np.argsort(draws[_ORDER : _ORDER + 4], axis=0, kind="stable").T.astype(np.int8),
        brightness=_factors(draws[_FACTORS + BRIGHTNESS], jitter, augment.brightness),
        contrast=_factors(draws[_FACTORS + CONTRAST], jitter, augment.contrast),
        saturation=_factors(draws[_FACTORS + SATURATION], jitter, augment.saturation),
        hue=np.where(jitter, augment.hue * (2.0 * draws[_FACTORS + HUE] - 1.0), 0.0).astype(
            np.float32
        ),
        gray=draws[_GRAY] < augment.gray_probability,
        sigma=sigma.astype(np.float32),
        solarize=draws[_SOLARIZE] < augment.solarize_probability,
    )
