"""Decodes image files to RGB pixels, with bounds on the memory a file may take."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import re

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError, features

from hjepa_jax.data.formats import pixels
from hjepa_jax.errors import DataError

_log = logging.getLogger(__name__)

# A file may hold at most this many bytes, and an image at most this many pixels.
MAX_ENCODED_BYTES = 256 * 2**20
MAX_PIXELS = 80_000_000
# Supported formats by the names of Pillow's modules; only the first frame or page is read.
_FORMATS = {
    **{"JPEG": "Jpeg", "MPO": "Mpo", "PNG": "Png", "WEBP": "WebP", "BMP": "Bmp", "DIB": "Bmp"},
    **{"GIF": "Gif", "TIFF": "Tiff", "AVIF": "Avif", "JPEG2000": "Jpeg2K", "PPM": "Ppm"},
}
# Formats that Pillow may have been built without.
_FEATURES = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}
# The largest reduction that JPEG decoders support.
_MAX_REDUCTION = 8
_ORIENTATION_TAG = 0x0112
# The operation that undoes each EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>")


class CorruptImageError(DataError):
    """An image cannot be decoded or read; the message names the file and the reason."""


@functools.cache
def formats() -> tuple[str, ...]:
    """Returns the supported image formats, by Pillow's names."""
    for module in _FORMATS.values():
        # Older versions have no AVIF.
        with contextlib.suppress(ImportError):
            importlib.import_module(f"PIL.{module}ImagePlugin")
    return tuple(
        name
        for name in _FORMATS
        if name in Image.OPEN and (name not in _FEATURES or features.check(_FEATURES[name]))
    )


@functools.cache
def extensions() -> tuple[str, ...]:
    """Returns the file extensions of `formats()`, lower case and sorted."""
    # Pillow opens an MPO, which cameras make, as a JPEG.
    known = (*formats(), "MPO")
    return tuple(sorted(e for e, name in Image.registered_extensions().items() if name in known))


def _open(encoded: bytes) -> ImageFile.ImageFile:
    """Opens an image without decoding it.

    Raises:
      ValueError: if it is empty or exceeds the bounds on bytes or pixels.
    """
    if not encoded:
        raise ValueError("it is empty: no bytes are stored")
    if len(encoded) > MAX_ENCODED_BYTES:
        raise ValueError(f"the file has {len(encoded)} bytes, more than {MAX_ENCODED_BYTES}")
    image = Image.open(io.BytesIO(encoded), formats=formats())
    # Checked before any pixel is decoded.
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"it has {image.width}x{image.height} pixels, more than the {MAX_PIXELS} allowed"
        )
    return image


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 (upright) if the EXIF data is unreadable."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG)
    # Pixels are valid even if the metadata is not; parsing it can raise almost anything.
    except Exception:
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _load(image: Image.Image) -> tuple[Image.Image, int]:
    """Decodes the pixels and returns the image as stored, with its EXIF orientation."""
    if image.format != "TIFF":
        image.load()
        # A PNG may have its EXIF data after the pixels.
        return image, _orientation(image)
    orientation = _orientation(image)
    if orientation == 1:
        image.load()
        return image, 1
    # Otherwise Pillow rotates the image itself and rewrites its EXIF, which can fail.
    image.getexif().pop(_ORIENTATION_TAG, None)
    image.load()
    # Pillow has rotated the size anyway; that of a copy is the size of the pixels.
    return image.copy(), orientation


def _deep_values(encoded: bytes, image: Image.Image, raw: str) -> np.ndarray:
    """Returns the values of a loaded deep image; see `pixels.deep_values`."""
    second = _open(encoded)
    if not pixels.read_low_bytes(second, raw):
        return pixels.deep_values(image, raw, None)
    return pixels.deep_values(image, raw, _load(second)[0])


def has_deep_pixels(encoded: bytes) -> bool:
    """Returns whether a file's header says more than 8 bits per channel; False if unreadable."""
    try:
        image = _open(encoded)
        return pixels.is_deep(image, pixels.raw_mode(image))
    except MemoryError:
        raise
    # The error is reported when the image is read.
    except Exception:
        return False


def upright_rgb(image: Image.Image) -> Image.Image:
    """Returns an image of at most 8 bits per channel in mode RGB, upright by its EXIF orientation.

    Raises:
      Exception: whatever Pillow raises for a damaged file.
    """
    image, orientation = _load(image)
    return _turned(pixels.to_rgb(image), orientation)


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation != 1 else image


def sample_limits(encoded: bytes) -> pixels.Limits | None:
    """Returns the smallest and largest value of an image with more than 8 bits per channel.

    Args:
      encoded: the file's bytes.

    Returns:
      The limits; None for at most 8 bits (then only the header is read) and for unreadable images.

    Raises:
      MemoryError: if there is not enough memory to decode it.
    """
    try:
        image = _open(encoded)
        raw = pixels.raw_mode(image)
        if not pixels.is_deep(image, raw):
            return None
        image, _ = _load(image)
        return pixels.limits(_deep_values(encoded, image, raw))
    except MemoryError:
        raise
    # The error is reported when the image is read for training.
    except Exception:
        return None


@functools.cache
def _warn_unseen(real: bool) -> None:
    kind, used = ("floating-point", "0 .. 1, else 0 .. 255,") if real else ("16-bit", "0 .. 65535")
    _log.warning(
        "An image has %s pixels, unlike all sampled images of its dataset: %s becomes 0 .. 255.",
        kind,
        used,
    )


@functools.cache
def _warn_saturated(bounds: tuple[float, float]) -> None:
    _log.warning(
        "An image has values above %g, the largest value in the sampled images of its dataset: "
        "they become 255. If this affects many images, convert them to 8 bits yourself.",
        bounds[1],
    )


def _deep_to_rgb(
    encoded: bytes, image: Image.Image, raw: str, ranges: pixels.Ranges | None
) -> Image.Image:
    known = ranges or pixels.Ranges()
    real = image.mode == "F"
    bounds = known.real if real else known.integer
    values: np.ndarray | None = None
    if bounds is None:
        _warn_unseen(real)
        bounds = (0.0, pixels.FULL)
        if real:
            values = _deep_values(encoded, image, raw)
            found = pixels.limits(values)
            bounds = (0.0, 255.0) if found and found.high > 1 else (0.0, 1.0)
    if bounds == (0.0, pixels.FULL) and image.mode in ("RGB", "RGBA", "CMYK"):
        # Pillow has read the high bytes already.
        return pixels.to_rgb(image)
    if values is None:
        values = _deep_values(encoded, image, raw)
    if not real and values.max() > bounds[1]:
        _warn_saturated(bounds)
    return pixels.image_of(pixels.scale(values, bounds))


def _reduce(image: Image.Image, smallest_crop: float, largest_view: int) -> None:
    """Sets a JPEG to decode at 1/2, 1/4 or 1/8 of its size if that suffices."""
    short = min(image.size)
    reduction = min(
        (image.width * image.height) ** 0.5 / smallest_crop,
        short / max(1, largest_view),
        _MAX_REDUCTION,
    )
    if reduction >= 2:
        factor = 2 ** int(np.log2(reduction))
        # Pillow takes the largest reduction that keeps at least the requested size.
        image.draft("RGB", (image.width // factor, image.height // factor))


def _reason(error: Exception) -> str:
    """Returns why an image cannot be read, without memory addresses, which vary between runs."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is not an intact image of a known format ({', '.join(formats())})"
    text = _ADDRESS.sub("the file", str(error)).rstrip(".")
    return text or type(error).__name__


def decode_image(
    encoded: bytes,
    name: str,
    smallest_crop: float | None = None,
    largest_view: int = 1,
    ranges: pixels.Ranges | None = None,
) -> Image.Image:
    """Decodes an image file of any format that Pillow reads; the first of several frames or pages.

    Args:
      encoded: the file's bytes.
      name: the file's name, for messages.
      smallest_crop: if given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as the
        geometric mean of its sides stays at least this many pixels.
      largest_view: lower bound on the short side, in pixels, when decoding at a reduced size.
      ranges: values of more than 8 bits that map to 0 and 255. If None, integers use 0..65535 and
        floats 0..1 (0..255 if there are values above 1).

    Returns:
      A loaded image in mode RGB, rotated upright by its EXIF orientation if that is readable.

    Raises:
      CorruptImageError: if it cannot be decoded, or exceeds the bounds.
      MemoryError: if there is not enough memory to decode it.
    """
    try:
        image = _open(encoded)
        if smallest_crop is not None and image.format in ("JPEG", "MPO"):
            _reduce(image, smallest_crop, largest_view)
        raw = pixels.raw_mode(image)
        deep = pixels.is_deep(image, raw)
        image, orientation = _load(image)
        rgb = _deep_to_rgb(encoded, image, raw, ranges) if deep else pixels.to_rgb(image)
        return _turned(rgb, orientation)
    except MemoryError:
        raise
    # Pillow's plug-ins raise almost anything on hostile bytes.
    except Exception as error:
        raise CorruptImageError(f"Cannot decode the image {name}: {_reason(error)}.") from error
