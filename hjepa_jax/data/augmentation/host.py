"""Augmentation on the host: makes uint8 views from images and drawn parameters.

In order: random resized crop, horizontal flip, color jitter, grayscale, Gaussian blur and
solarization. Parameters are drawn first (`draw_parameters`), then applied (`apply`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from hjepa_jax.config.data import Augment
from hjepa_jax.data.augmentation import color, resize
from hjepa_jax.data.augmentation.parameters import ViewParameters, draw_parameters
from hjepa_jax.data.augmentation.resize import size_of

__all__ = ["ViewParameters", "apply", "crop", "draw_parameters", "eval_image"]

# Above this ratio of the sides, the part dropped by the center crop is not resized first.
_THIN = 4.0
# Float planes of this many bytes at a time stay in a core's cache.
_CHUNK_BYTES = 400_000


def apply(
    images: Sequence[resize.Decoded] | npt.NDArray[np.uint8],
    source: npt.NDArray[np.int64],
    parameters: ViewParameters,
    size: int,
    augment: Augment,
) -> npt.NDArray[np.uint8]:
    """Makes N augmented views.

    Args:
      images: decoded RGB images of any sizes, or an array uint8 [M, H, W, 3] of one.
      source: int64 [N], the image in `images` that each view is made from.
      parameters: drawn parameters of the N views.
      size: side of the views in pixels.
      augment: `config.data.augment`.

    Returns:
      uint8 [N, size, size, 3]. Each view depends only on its image and parameters.
    """
    views = np.empty((len(source), size, size, 3), np.uint8)
    chunk = max(1, _CHUNK_BYTES // (12 * size * size))
    for start in range(0, len(source), chunk):
        part = slice(start, start + chunk)
        chosen = parameters.take(part)
        planes = resize.crop_resize_flip(images, source[part], chosen, size)
        color.color_jitter(planes, chosen)
        color.to_gray(planes, chosen.gray)
        color.gaussian_blur(planes, chosen.sigma, augment.blur_kernel)
        views[part] = color.to_uint8(planes, chosen.solarize, augment.solarize_threshold)
    return views


def crop(
    images: Sequence[resize.Decoded] | npt.NDArray[np.uint8],
    source: npt.NDArray[np.int64],
    parameters: ViewParameters,
    size: int,
) -> npt.NDArray[np.uint8]:
    """Returns N crops uint8 [N, size, size, 3], only resized and mirrored; arguments as `apply`."""
    planes = resize.crop_resize_flip(images, source, parameters, size)
    return color.to_uint8(planes, np.zeros(len(source), bool), 0)


def eval_image(image: resize.Decoded, size: int, resize: int | None) -> npt.NDArray[np.uint8]:
    """Returns the evaluation view uint8 [size, size, 3]: resized short side, center crop.

    Args:
      image: decoded RGB image.
      size: side of the result in pixels.
      resize: length of the short side before the crop; None resizes it to `size`, which leaves an
        image of the right size unchanged.

    Raises:
      ValueError: if `resize` is smaller than `size`.
    """
    short = size if resize is None else resize
    if short < size:
        raise ValueError(f"data.eval_resize {short} is smaller than data.image_size {size}.")
    height, width = size_of(image)
    if (height, width) == (size, size) and short == size:
        return np.asarray(image)
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    # torchvision's Resize truncates the long side, its CenterCrop rounds the offset.
    if height <= width:
        height, width = short, int(short * width / height)
    else:
        height, width = int(short * height / width), short
    left, top = round((width - size) / 2), round((height - size) / 2)
    if max(image.size) > _THIN * min(image.size):
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image.crop((left, top, left + size, top + size)))
