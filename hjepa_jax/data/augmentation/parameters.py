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

# Slots of the draws of one view. Crops take four per try: the area of each try starting at _CROP,
# then as many for aspect ratio, top, and left.
_FLIP, _JITTER, _GRAY, _BLUR, _SIGMA, _SOLARIZE = range(6)
_ORDER = 6
_FACTORS = 10
_CROP = 14


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
    packed = np.empty((len(parameters.top), len(PACKED)), np.float32)
    for number, name in enumerate(PACKED):
        packed[:, number] = columns[name]
    return packed


def unpack_views(packed: jax.Array) -> dict[str, jax.Array]:
    """Returns the columns of packed parameters [..., len(PACKED)] by name."""
    return {name: packed[..., column] for column, name in enumerate(PACKED)}


def _draw_crops(
    key: int,
    coordinates: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    heights: npt.NDArray[np.int64],
    widths: npt.NDArray[np.int64],
    scale: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[npt.NDArray[np.int32], ...]:
    """Returns top, left, height and width [N] of the views at `coordinates` (index, view)."""
    # No try fits: use the largest centered crop within the aspect bounds, at least one pixel.
    shape = widths / heights
    central_width = np.where(shape > aspect[1], np.rint(heights * aspect[1]), widths)
    central_height = np.where(shape < aspect[0], np.rint(widths / aspect[0]), heights)
    width = np.maximum(central_width, 1).astype(np.int32)
    height = np.maximum(central_height, 1).astype(np.int32)
    top = ((heights - height) // 2).astype(np.int32)
    left = ((widths - width) // 2).astype(np.int32)
    log_low, log_high = math.log(aspect[0]), math.log(aspect[1])
    slots = _CROP + CROP_TRIES * np.arange(4)[:, None]
    left_over = np.arange(len(heights))
    for attempt in range(CROP_TRIES):
        at = tuple(coordinate[left_over] for coordinate in coordinates)
        draws = counter_random.uniforms(key, *at, slots + attempt)
        rows, columns = heights[left_over], widths[left_over]
        area = rows * columns * (scale[0] + (scale[1] - scale[0]) * draws[0])
        ratio = np.exp(log_low + (log_high - log_low) * draws[1])
        tried_width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        tried_height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (tried_width > 0) & (tried_width <= columns)
        fits &= (tried_height > 0) & (tried_height <= rows)
        views = left_over[fits]
        width[views], height[views] = tried_width[fits], tried_height[fits]
        top[views] = np.floor(draws[2] * (rows - tried_height + 1))[fits]
        left[views] = np.floor(draws[3] * (columns - tried_width + 1))[fits]
        left_over = left_over[~fits]
        if not len(left_over):
            break
    return top, left, height, width


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
    views = np.broadcast_to(np.asarray(view, np.int64), index.shape)
    draws = counter_random.uniforms(key, index, views, np.arange(_CROP)[:, None])
    heights = np.broadcast_to(np.asarray(height, np.int64), index.shape)
    widths = np.broadcast_to(np.asarray(width, np.int64), index.shape)
    top, left, crop_height, crop_width = _draw_crops(
        key, (index, views), heights, widths, scale, augment.crop_aspect
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
