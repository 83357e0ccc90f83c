"""Crops, flips and resizes on the host: bilinear with antialiasing, like Pillow's.

Small images of one shape are resized together by batched matrix products, which also mirror them at
no cost; larger images go through Pillow one by one, which exploits the narrow filter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from hjepa_jax.data.augmentation.parameters import ViewParameters

UInt8Array: TypeAlias = npt.NDArray[np.uint8]
Float32Array: TypeAlias = npt.NDArray[np.float32]
# A decoded RGB image: an array [H, W, 3], or a Pillow image for large ones.
Decoded: TypeAlias = UInt8Array | Image.Image

# Images up to this side are resized by matrix products.
SMALL_SIDE = 64


def size_of(image: Decoded) -> tuple[int, int]:
    """Returns (height, width) of a decoded image."""
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    return image.height, image.width


def filter_matrices(
    start: npt.NDArray[np.int32],
    length: npt.NDArray[np.int32],
    reverse: npt.NDArray[np.bool_],
    in_size: int,
    out_size: int,
) -> Float32Array:
    """Returns the matrices [N, out_size, in_size] that crop and resize one axis.

    The filter is a triangle whose support grows with the reduction (antialiasing), cut off at the
    crop.

    Args:
      start: int32 [N], first pixel of each crop.
      length: int32 [N], pixels of each crop.
      reverse: bool [N], whether to mirror the result.
      in_size: pixels of the image along this axis.
      out_size: pixels of the result.
    """
    step = (length.astype(np.float32) / np.float32(out_size))[:, None]
    support = np.maximum(step, np.float32(1.0))
    position = np.arange(out_size, dtype=np.float32) + np.float32(0.5)
    position = np.where(reverse[:, None], np.float32(out_size) - position, position)
    center = (start[:, None] + position * step).astype(np.float32) / support
    pixel = (np.arange(in_size, dtype=np.float32) + np.float32(0.5)) / support
    weights = np.abs(pixel[:, None, :] - center[:, :, None])
    np.subtract(np.float32(1.0), weights, out=weights)
    np.maximum(weights, np.float32(0.0), out=weights)
    column = np.arange(in_size)
    inside = (column >= start[:, None]) & (column < (start + length)[:, None])
    weights *= inside[:, None, :]
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def _resize_small(images: UInt8Array, parameters: ViewParameters, size: int) -> Float32Array:
    """Returns [N, size, 3, size] from images [N, H, W, 3] of one shape."""
    count, height, width, _ = images.shape
    never = np.zeros(count, bool)
    rows = filter_matrices(parameters.top, parameters.height, never, height, size)
    columns = filter_matrices(parameters.left, parameters.width, parameters.flip, width, size)
    by_row = np.ascontiguousarray(images.transpose(0, 1, 3, 2), dtype=np.float32)
    resized: Float32Array = np.matmul(rows, by_row.reshape(count, height, 3 * width))
    resized = np.matmul(resized.reshape(count, size * 3, width), columns.transpose(0, 2, 1))
    return resized.reshape(count, size, 3, size)


def _resize_large(image: Decoded, parameters: ViewParameters, view: int, size: int) -> UInt8Array:
    """Returns uint8 [size, size, 3], one view of one image, through Pillow."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    left, top = int(parameters.left[view]), int(parameters.top[view])
    box = (left, top, left + int(parameters.width[view]), top + int(parameters.height[view]))
    resized = np.asarray(image.crop(box).resize((size, size), Image.Resampling.BILINEAR))
    return resized[:, ::-1] if parameters.flip[view] else resized


def crop_resize_flip(
    images: Sequence[Decoded] | UInt8Array,
    source: npt.NDArray[np.int64],
    parameters: ViewParameters,
    size: int,
) -> Float32Array:
    """Crops, resizes and mirrors N views.

    Args:
      images: decoded RGB images, or an array uint8 [M, H, W, 3] of them.
      source: int64 [N], the image in `images` that each view is made from.
      parameters: drawn parameters of the N views.
      size: side of the views in pixels.

    Returns:
      float32 [3, N, size, size], planes of values in [0, 255].
    """
    planes = np.empty((3, len(source), size, size), np.float32)
    if isinstance(images, np.ndarray) and max(images.shape[1:3]) <= SMALL_SIDE:
        planes[:] = _resize_small(images[source], parameters, size).transpose(2, 0, 1, 3)
        return planes
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for view, number in enumerate(source):
        image = images[number]
        shape = size_of(image)
        if max(shape) <= SMALL_SIDE:
            groups[shape].append(view)
        else:
            planes[:, view] = _resize_large(image, parameters, view, size).transpose(2, 0, 1)
    for views in groups.values():
        stack = np.stack([np.asarray(images[source[view]]) for view in views])
        resized = _resize_small(stack, parameters.take(views), size)
        planes[:, views] = resized.transpose(2, 0, 1, 3)
    return planes
