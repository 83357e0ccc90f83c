"""Color operations, grayscale, blur and solarization on the host.

All functions work in place on float32 planes [3, N, H, W] of red, green and blue in [0, 255]: with
the channel axis first, every operation is a pass over long contiguous rows.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from hjepa_jax.data.augmentation.parameters import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    ViewParameters,
)

Float32Array: TypeAlias = npt.NDArray[np.float32]

# Luma weights of ITU-R 601-2, which Pillow uses.
LUMA = (0.299, 0.587, 0.114)
# Blur taps beyond this many standard deviations are below 1e-5 of the sum.
_BLUR_REACH = 4.5


def _clip(planes: Float32Array) -> None:
    np.maximum(planes, np.float32(0.0), out=planes)
    np.minimum(planes, np.float32(255.0), out=planes)


def _per_view(values: npt.NDArray) -> Float32Array:
    """Shapes [N] to broadcast against [N, H, W]."""
    return values.astype(np.float32)[:, None, None]


def luma(planes: Float32Array) -> Float32Array:
    """Returns the gray values [N, H, W] of planes [3, N, H, W]."""
    gray = planes[0] * np.float32(LUMA[0])
    gray += planes[1] * np.float32(LUMA[1])
    gray += planes[2] * np.float32(LUMA[2])
    return gray


def adjust_brightness(planes: Float32Array, factor: Float32Array) -> None:
    """Multiplies each view by its factor [N]."""
    planes *= _per_view(factor)
    np.minimum(planes, np.float32(255.0), out=planes)


def adjust_contrast(planes: Float32Array, factor: Float32Array) -> None:
    """Moves each view away from (factor > 1) or toward its mean gray value."""
    count = planes.shape[1]
    mean = luma(planes).reshape(count, -1).mean(axis=1)
    planes *= _per_view(factor)
    planes += _per_view((np.float32(1.0) - factor) * mean)
    _clip(planes)


def adjust_saturation(planes: Float32Array, factor: Float32Array) -> None:
    """Moves each pixel away from (factor > 1) or toward its gray value."""
    gray = luma(planes)
    gray *= _per_view(np.float32(1.0) - factor)
    planes *= _per_view(factor)
    planes += gray
    _clip(planes)


def adjust_hue(planes: Float32Array, shift: Float32Array) -> None:
    """Rotates the hue of each view by `shift` [N], a fraction of the color circle."""
    red, green, blue = planes
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    scale = np.float32(1.0) / np.maximum(chroma, np.float32(1e-6))
    # Position on the color hexagon, in [-1, 5]: red at 0, green at 2, blue at 4.
    hexagon = np.where(
        value == red,
        (green - blue) * scale,
        np.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4),
    ).astype(np.float32)
    hexagon += _per_view(np.float32(6.0) * shift)
    # channel = value - chroma * clip(min(k, 4 - k), 0, 1) with k = (corner + hexagon) mod 6.
    for plane, corner in zip(planes, (5.0, 3.0, 1.0)):
        turn = hexagon + np.float32(corner)
        turn -= np.float32(6.0) * np.floor(turn * np.float32(1.0 / 6.0))
        np.minimum(turn, np.float32(4.0) - turn, out=turn)
        np.maximum(turn, np.float32(0.0), out=turn)
        np.minimum(turn, np.float32(1.0), out=turn)
        turn *= chroma
        np.subtract(value, turn, out=plane)


_OPERATIONS = {
    BRIGHTNESS: (adjust_brightness, "brightness"),
    CONTRAST: (adjust_contrast, "contrast"),
    SATURATION: (adjust_saturation, "saturation"),
    HUE: (adjust_hue, "hue"),
}


def color_jitter(planes: Float32Array, parameters: ViewParameters) -> None:
    """Applies the four color operations to each view in its own order."""
    for position in range(4):
        for operation, (adjust, name) in _OPERATIONS.items():
            amount = getattr(parameters, name)
            neutral = 0.0 if operation == HUE else 1.0
            chosen = parameters.jitter & (parameters.order[:, position] == operation)
            chosen &= amount != neutral
            if chosen.all():
                adjust(planes, amount)
            elif chosen.any():
                part = planes[:, chosen]
                adjust(part, amount[chosen])
                planes[:, chosen] = part


def to_gray(planes: Float32Array, chosen: npt.NDArray[np.bool_]) -> None:
    """Replaces the chosen views (bool [N]) by their gray values."""
    if chosen.any():
        planes[:, chosen] = luma(planes[:, chosen])


def blur_taps(sigma: Float32Array, kernel: int) -> Float32Array:
    """Returns the normalized Gaussian taps [N, kernel] for each positive sigma [N]."""
    offset = np.arange(kernel, dtype=np.float64) - (kernel - 1) / 2
    taps = np.exp(-0.5 * (offset / sigma.astype(np.float64)[:, None]) ** 2)
    return (taps / taps.sum(axis=1, keepdims=True)).astype(np.float32)


def _blur_axis(planes: Float32Array, taps: Float32Array, axis: int) -> Float32Array:
    """Returns planes [3, N, H, W] convolved with symmetric taps [N, 2r+1] along axis 2 or 3."""
    reach = taps.shape[1] // 2
    length = planes.shape[axis]
    padding = [(0, 0)] * 4
    padding[axis] = (reach, reach)
    padded = np.pad(planes, padding, mode="reflect")

    def shifted(offset: int) -> Float32Array:
        window = slice(reach + offset, reach + offset + length)
        return padded[:, :, window] if axis == 2 else padded[:, :, :, window]

    blurred = planes * _per_view(taps[:, reach])
    for offset in range(1, reach + 1):
        pair = shifted(-offset) + shifted(offset)
        pair *= _per_view(taps[:, reach + offset])
        blurred += pair
    return blurred


def gaussian_blur(planes: Float32Array, sigma: Float32Array, kernel: int) -> None:
    """Blurs the views whose sigma [N] is positive, with reflected borders.

    Args:
      planes: float32 [3, N, H, W].
      sigma: float32 [N], in pixels; 0 leaves a view unchanged.
      kernel: odd number of taps, at most 2 min(H, W) - 1.
    """
    # Views are blurred in groups of equal radius, which depends only on each view's sigma.
    needed = np.minimum(np.ceil(_BLUR_REACH * sigma), kernel // 2).astype(np.int64)
    for reach in np.unique(needed[sigma > 0]):
        chosen = np.flatnonzero((needed == reach) & (sigma > 0))
        middle = kernel // 2
        taps = blur_taps(sigma[chosen], kernel)[:, middle - reach : middle + reach + 1]
        part = _blur_axis(planes[:, chosen], taps, axis=3)
        planes[:, chosen] = _blur_axis(part, taps, axis=2)


def to_uint8(planes: Float32Array, solarize: npt.NDArray[np.bool_], threshold: int) -> npt.NDArray:
    """Returns rounded uint8 [N, H, W, 3]; views chosen by bool [N] are solarized at `threshold`."""
    np.rint(planes, out=planes)
    _clip(planes)
    values = planes.astype(np.uint8)
    if solarize.any():
        part = values[:, solarize]
        values[:, solarize] = np.where(part >= threshold, 255 - part, part)
    return np.ascontiguousarray(values.transpose(1, 2, 3, 0))
