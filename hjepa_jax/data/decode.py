"""Encoded image bytes to RGB pixels, with bounds on what a file may cost."""

from __future__ import annotations

import io
from typing import cast

import numpy as np
from PIL import Image, ImageOps

from hjepa_jax.errors import DataError

# A file may hold at most this many bytes, and an image at most this many pixels.
MAX_ENCODED_BYTES = 256 * 2**20
MAX_PIXELS = 80_000_000
FORMATS = ("JPEG", "PNG", "WEBP")
_DEFAULT_ORIENTATION = 1
_ORIENTATION_TAG = 0x0112


class CorruptImageError(DataError):
    """An image cannot be decoded; the message names the file and the reason."""


def _to_rgb(image: Image.Image) -> Image.Image:
    """Returns an image in mode RGB; alpha is dropped, 16-bit values keep their high byte."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I":
        wide = np.asarray(image)
        return Image.fromarray((np.clip(wide, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _open(encoded: bytes) -> Image.Image:
    """Reads the header, within the bounds on size and format."""
    if len(encoded) > MAX_ENCODED_BYTES:
        raise ValueError(f"the file has {len(encoded)} bytes, more than {MAX_ENCODED_BYTES}")
    image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    # Checked before any pixel is decoded.
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"it has {image.width}x{image.height} pixels, more than the {MAX_PIXELS} allowed"
        )
    return image


def decode_image(encoded: bytes, name: str, smallest_crop: float | None = None) -> Image.Image:
    """Decodes one JPEG, PNG or WebP image.

    Args:
      encoded: The file's bytes.
      name: The file's name, for messages.
      smallest_crop: If given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as the
        geometric mean of its sides stays at least this many pixels.

    Returns:
      A loaded image in mode RGB, upright according to its EXIF orientation.

    Raises:
      CorruptImageError: If it cannot be decoded, or exceeds the bounds.
    """
    try:
        image = _open(encoded)
        if smallest_crop is not None and image.format == "JPEG":
            reduction = (image.width * image.height) ** 0.5 / smallest_crop
            if reduction >= 2:
                factor = 2 ** min(3, int(np.log2(reduction)))
                # Pillow takes the largest reduction that keeps at least the size asked for.
                image.draft("RGB", (image.width // factor, image.height // factor))
        image.load()
        if image.getexif().get(_ORIENTATION_TAG, _DEFAULT_ORIENTATION) != _DEFAULT_ORIENTATION:
            image = cast(Image.Image, ImageOps.exif_transpose(image))
        return _to_rgb(image)
    except MemoryError:
        raise
    # Pillow's plug-ins raise almost anything on hostile bytes.
    except Exception as error:
        reason = str(error).rstrip(".") or type(error).__name__
        raise CorruptImageError(f"Cannot decode the image {name}: {reason}.") from error
