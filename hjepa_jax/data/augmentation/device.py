"""Augmentation on the device: the same operations as on the host, with the same parameters.

With `data.backend='device'` the host draws the parameters and sends them with the images: whole
images if all have the same shape (the device crops them too), else resized crops. Images that stay
on the device are not sent at all (`data.resident_mb`). Views agree with the host's up to rounding.

Not `jax.image.scale_and_translate`, which blends pixels from outside the crop into its border.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from hjepa_jax.config.data import Data
from hjepa_jax.data.augmentation.color import LUMA
from hjepa_jax.data.augmentation.parameters import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    unpack_views,
)

# Reduced precision (TF32 on GPUs, bfloat16 on TPUs) would move pixels by several levels.
_PRECISION = jax.lax.Precision.HIGHEST


def _filter_matrix(
    start: jax.Array, length: jax.Array, reverse: jax.Array, in_size: int, out_size: int
) -> jax.Array:
    """Returns the matrix [out_size, in_size] that crops and resizes one axis, as the host's."""
    step = length / out_size
    support = jnp.maximum(step, 1.0)
    position = jnp.arange(out_size, dtype=jnp.float32) + 0.5
    position = jnp.where(reverse > 0, out_size - position, position)
    center = start + position * step
    column = jnp.arange(in_size, dtype=jnp.float32)
    weights = jnp.maximum(1.0 - jnp.abs(column + 0.5 - center[:, None]) / support, 0.0)
    weights *= (column >= start) & (column < start + length)
    return weights / weights.sum(axis=1, keepdims=True)


def _crop(image: jax.Array, p: Mapping[str, jax.Array], size: int) -> jax.Array:
    """Returns planes [3, size, size] of the crop of image [H, W, 3], mirrored if `flip`."""
    height, width, _ = image.shape
    rows = _filter_matrix(p["top"], p["height"], jnp.float32(0), height, size)
    columns = _filter_matrix(p["left"], p["width"], p["flip"], width, size)
    return jnp.einsum("yh,hwc,xw->cyx", rows, image, columns, precision=_PRECISION)


def _luma(planes: jax.Array) -> jax.Array:
    return LUMA[0] * planes[0] + LUMA[1] * planes[1] + LUMA[2] * planes[2]


def _turn_hue(planes: jax.Array, shift: jax.Array) -> jax.Array:
    """Rotates the hue by a fraction of the color circle; see `color.adjust_hue`."""
    red, green, blue = planes
    value = planes.max(axis=0)
    chroma = value - planes.min(axis=0)
    scale = 1.0 / jnp.maximum(chroma, 1e-6)
    hexagon = jnp.where(
        value == red,
        (green - blue) * scale,
        jnp.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4),
    )
    corner = jnp.array([5.0, 3.0, 1.0], jnp.float32)[:, None, None]
    turn = hexagon + 6.0 * shift + corner
    turn -= 6.0 * jnp.floor(turn / 6.0)
    return value - chroma * jnp.clip(jnp.minimum(turn, 4.0 - turn), 0.0, 1.0)


def _jitter(planes: jax.Array, p: Mapping[str, jax.Array]) -> jax.Array:
    """Applies the color operations in the drawn order."""
    amounts = jnp.stack([p["brightness"], p["contrast"], p["saturation"], jnp.float32(1.0)])
    original = planes
    for position in range(4):
        operation = p[f"order_{position}"].astype(jnp.int32)
        factor = amounts[operation]
        gray = _luma(planes)
        # All but the hue blend with something: black, the mean gray, or each pixel's gray.
        base = jnp.select(
            [operation == BRIGHTNESS, operation == CONTRAST, operation == SATURATION],
            [jnp.zeros_like(gray), jnp.full_like(gray, gray.mean()), gray],
            gray,
        )
        blended = jnp.clip(planes * factor + (1.0 - factor) * base, 0.0, 255.0)
        planes = jnp.where(operation == HUE, _turn_hue(planes, p["hue"]), blended)
    return jnp.where(p["jitter"] > 0, planes, original)


def _blur(planes: jax.Array, sigma: jax.Array, kernel: int) -> jax.Array:
    """Returns planes [3, H, W] blurred with reflected borders; unchanged for sigma 0."""
    reach = kernel // 2
    offsets = jnp.arange(-reach, reach + 1, dtype=jnp.float32)
    taps = jnp.exp(-0.5 * (offsets / jnp.where(sigma > 0, sigma, 1.0)) ** 2)
    taps /= taps.sum()
    blurred = planes
    for axis in (1, 2):
        padding = [(0, 0)] * 3
        padding[axis] = (reach, reach)
        padded = jnp.pad(blurred, padding, mode="reflect")
        length = planes.shape[axis]
        shifted = [
            jax.lax.slice_in_dim(padded, offset, offset + length, axis=axis)
            for offset in range(kernel)
        ]
        blurred = sum(tap * part for tap, part in zip(taps, shifted, strict=True))
    return jnp.where(sigma > 0, blurred, planes)


def _one_view(
    image: jax.Array, packed: jax.Array, *, size: int, crop: bool, kernel: int, threshold: int
) -> jax.Array:
    """Returns one view uint8 [size, size, 3]."""
    p = unpack_views(packed)
    image = image.astype(jnp.float32)
    planes = _crop(image, p, size) if crop else image.transpose(2, 0, 1)
    planes = _jitter(planes, p)
    planes = jnp.where(p["gray"] > 0, _luma(planes)[None], planes)
    planes = jnp.clip(jnp.rint(_blur(planes, p["sigma"], kernel)), 0.0, 255.0)
    inverted = jnp.where(planes >= threshold, 255.0 - planes, planes)
    planes = jnp.where(p["solarize"] > 0, inverted, planes)
    return planes.astype(jnp.uint8).transpose(1, 2, 0)


@functools.partial(jax.jit, static_argnames=("size", "kernel", "threshold"))
def augment_on_device(
    images: jax.Array, parameters: jax.Array, *, size: int, kernel: int, threshold: int
) -> jax.Array:
    """Makes the views of a batch.

    Args:
      images: uint8 [B, H, W, 3] (whole images) or [V, B, size, size, 3] (crops).
      parameters: float32 [V, B, F], `parameters.pack_views` of the drawn parameters.
      size: side of the views in pixels.
      kernel: odd size of the Gaussian kernel.
      threshold: solarization threshold.

    Returns:
      uint8 [V, B, size, size, 3]. B may be sharded, since images do not mix.
    """
    crop = images.ndim == 4
    one = functools.partial(_one_view, size=size, crop=crop, kernel=kernel, threshold=threshold)
    return jax.vmap(jax.vmap(one), in_axes=(None if crop else 0, 0))(images, parameters)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["rows"], meta_fields=["shape"])
@dataclasses.dataclass(frozen=True)
class ResidentImages:
    """All images of one shape, as an entry of a batch that stays on the device.

    Rows, since a TPU's layout of images [N, H, W, 3] makes each step copy them all before it takes
    some of them.

    Attributes:
      rows: uint8 [N, H * W * 3].
      shape: (H, W, 3), static.
    """

    rows: jax.Array
    shape: tuple[int, ...]

    def take(self, index: jax.Array) -> jax.Array:
        """Returns images uint8 [B, H, W, 3] by their numbers int32 [B]."""
        rows = self.rows.at[index].get(mode="promise_in_bounds")
        return rows.reshape(len(index), *self.shape)


def with_images(batch: Mapping[str, PyTree[jax.Array]]) -> dict[str, jax.Array]:
    """Takes the images of a batch out of its entry 'resident_images', if it has one."""
    rest = dict(batch)
    resident = rest.pop("resident_images", None)
    if resident is not None:
        rest["images"] = resident.take(rest["index"])
    return rest


def augment_batch(batch: Mapping[str, jax.Array], data: Data) -> dict[str, jax.Array]:
    """Makes the views of a batch that was prepared with `data.backend='device'`.

    Args:
      batch: a batch of `train_batches`, put on the devices, after `with_images`; may be traced.
      data: `config.data`.

    Returns:
      The batch with views as the host makes them; unchanged if the host made them already.
    """
    made = {
        name: value
        for name, value in batch.items()
        if name != "images" and not name.endswith("_parameters")
    }
    for kind, size in (("global", data.image_size), ("local", data.local_size)):
        if f"{kind}_parameters" in batch:
            images = batch["images"] if "images" in batch else batch[f"{kind}_views"]
            made[f"{kind}_views"] = augment_on_device(
                images,
                batch[f"{kind}_parameters"],
                size=size,
                kernel=data.augment.blur_kernel,
                threshold=data.augment.solarize_threshold,
            )
    return made
