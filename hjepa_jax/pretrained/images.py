"""Images of any kind that a user has, one at a time, as 8-bit RGB."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from hjepa_jax.data.augmentation.resize import Decoded
from hjepa_jax.data.decode import (
    MAX_ENCODED_BYTES,
    CorruptImageError,
    decode_image,
    extensions,
    has_deep_pixels,
    upright_rgb,
)
from hjepa_jax.data.formats import pixels
from hjepa_jax.data.sources.tree import LeftOut, images_below
from hjepa_jax.errors import DataError, UserError, first_line
from hjepa_jax.storage.files import local_path, printable, read_regular


@runtime_checkable
class HasArray(Protocol):
    """An array of any library: NumPy, JAX, PyTorch."""

    def __array__(self) -> np.ndarray: ...


# One image, or anything that yields images.
OneImage: TypeAlias = "Image.Image | HasArray | str | os.PathLike[str]"
Images: TypeAlias = "OneImage | Iterable[OneImage | Iterable[OneImage]]"
Range: TypeAlias = tuple[float, float]

_CHANNELS = (1, 3, 4)
_KINDS = (
    "PIL images, arrays [H, W], [H, W, C] or [N, H, W, C] with 1, 3 or 4 channels, paths of image "
    "files or folders, and lists and iterators of these"
)


class Item(NamedTuple):
    """One image: its pixels, or the path of its file; and its name, for messages."""

    image: Decoded | str
    name: str


def is_one(images: Images) -> bool:
    """Returns whether this is one image, rather than something that holds any number of them."""
    if isinstance(images, Image.Image):
        return True
    if isinstance(images, (str, os.PathLike)):
        return not os.path.isdir(local_path(images, "images"))
    return isinstance(images, HasArray) and _array(images, "images").ndim < 4


def known_count(images: Images) -> int | None:
    """Returns the number of images if it is known without reading them."""
    if is_one(images):
        return 1
    if isinstance(images, (str, os.PathLike)):
        return None
    if isinstance(images, HasArray):
        return len(_array(images, "images"))
    if not isinstance(images, (list, tuple)):
        return None
    counts = [known_count(image) for image in images]
    return None if None in counts else sum(count for count in counts if count is not None)


def check_range(value_range: Range | None) -> None:
    """Refuses a range that is not two finite numbers, the lower one first.

    Raises:
      UserError: naming it.
    """
    if value_range is None:
        return
    bounds = np.asarray(value_range)
    fits = bounds.shape == (2,) and bounds.dtype.kind in "iuf" and np.isfinite(bounds).all()
    if not fits or bounds[0] >= bounds[1]:
        raise UserError(
            f"value_range is {value_range!r}: give the two values that become 0 and 255, the "
            "lower one first, for example (0, 4095)."
        )


def items(images: Images, value_range: Range | None, name: str = "images") -> Iterator[Item]:
    """Yields each image in order; nothing is read ahead.

    Args:
      images: see `hjepa_jax.pretrained.encoder.TrainedEncoder.encode`.
      value_range: see there.
      name: name of `images` in messages.

    Raises:
      UserError: naming an item that is no image, or whose values cannot be mapped.
    """
    if isinstance(images, Image.Image):
        yield Item(_of_pil(images, name, value_range), name)
    elif isinstance(images, (str, os.PathLike)):
        yield from (Item(path, printable(path)) for path in _files(images, name))
    elif isinstance(images, HasArray):
        yield from _of_array(_array(images, name), name, value_range)
    elif isinstance(images, Iterable) and not isinstance(images, (Mapping, Set, bytes, bytearray)):
        for number, image in enumerate(images):
            yield from items(image, value_range, f"{name}[{number}]")
    else:
        raise UserError(f"{name} is of type {type(images).__name__}, but images are {_KINDS}.")


def decoded(item: Item, value_range: Range | None) -> Decoded:
    """Returns the pixels of an item, reading its file if there is one.

    Raises:
      UserError: naming a file that cannot be read, or whose values cannot be mapped.
    """
    if not isinstance(item.image, str):
        return item.image
    try:
        encoded = read_regular(item.image, MAX_ENCODED_BYTES)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise DataError(f"The image {item.name} cannot be read: {reason}.") from error
    if value_range is None and has_deep_pixels(encoded):
        raise UserError(_unmapped(item.name, "more than 8 bits per channel"))
    ranges = None if value_range is None else pixels.Ranges(value_range, value_range)
    return decode_image(encoded, item.name, ranges=ranges)


def _unmapped(name: str, what: str) -> str:
    return (
        f"{name} has {what}: pass value_range=(low, high), the values that become 0 and 255, as in "
        "the training images, or convert it to uint8."
    )


def _files(given: str | os.PathLike[str], name: str) -> list[str]:
    """Returns the path of an image, or those of all images in and below a folder, sorted."""
    path = local_path(given, name)
    if not os.path.isdir(path):
        return [str(path)]
    try:
        found = images_below(str(path), LeftOut())
    except OSError as error:
        raise DataError(f"The folder {printable(path)} cannot be read: {error}.") from error
    if not found:
        raise DataError(
            f"The folder {printable(path)} has no images ({', '.join(extensions())}): give a "
            "folder that has."
        )
    return [str(path / inner) for inner in found]


def _of_pil(image: Image.Image, name: str, value_range: Range | None) -> Decoded:
    raw = pixels.raw_mode(image) if isinstance(image, ImageFile.ImageFile) else ""
    try:
        if not pixels.is_deep(image, raw):
            return upright_rgb(image)
        if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
            raise UserError(
                f"{name} has 16 bits per channel, of which Pillow keeps 8: pass the path of its "
                "file, and value_range."
            )
        return _rgb(np.asarray(image), name, value_range)
    except (UserError, MemoryError):
        raise
    # Pillow's plug-ins raise almost anything on damaged files.
    except Exception as error:
        raise CorruptImageError(f"Cannot decode {name}: {first_line(error)}.") from error


def _array(given: HasArray, name: str) -> np.ndarray:
    try:
        return np.asarray(given)
    # Another library's array may, for example, be on a device that NumPy cannot read.
    except Exception as error:
        raise UserError(f"{name} cannot be read as an array: {first_line(error)}.") from error


def _of_array(array: np.ndarray, name: str, value_range: Range | None) -> Iterator[Item]:
    shape = array.shape
    if array.ndim not in (2, 3, 4) or (array.ndim > 2 and shape[-1] not in _CHANNELS):
        first = array.ndim > 2 and shape[-3] in _CHANNELS
        order = (0, 2, 3, 1) if array.ndim == 4 else (1, 2, 0)
        hint = f" Put the channels last: images.transpose{order}." if first else ""
        raise UserError(
            f"{name} has shape {shape}, but an array is [H, W], [H, W, C] or [N, H, W, C] with 1, "
            f"3 or 4 channels.{hint}"
        )
    if array.ndim < 4:
        yield Item(_rgb(array, name, value_range), name)
        return
    for number, one in enumerate(array):
        yield Item(_rgb(one, f"{name}[{number}]", value_range), f"{name}[{number}]")


def _rgb(array: np.ndarray, name: str, value_range: Range | None) -> npt.NDArray[np.uint8]:
    """Returns an image [H, W] or [H, W, C] as uint8 [H, W, 3]; alpha is dropped."""
    if not array.size:
        raise UserError(f"{name} has shape {array.shape}: it is empty.")
    array = (array[..., None] if array.ndim == 2 else array)[..., :3]
    return np.broadcast_to(_bytes(array, name, value_range), (*array.shape[:2], 3))


def _bytes(array: np.ndarray, name: str, value_range: Range | None) -> npt.NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "iuf":
        raise UserError(f"{name} has dtype {array.dtype}: convert it to uint8, values 0 to 255.")
    if value_range is not None:
        return pixels.scale(array, value_range)
    low, high = array.min(), array.max()
    if array.dtype.kind != "f":
        raise UserError(_unmapped(name, f"dtype {array.dtype} and values from {low} to {high}"))
    # NaN fails both comparisons.
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"{name} has dtype {array.dtype} and values from {low:g} to {high:g}, but floats must "
            "be from 0 to 1: pass images that are not normalized, or value_range=(low, high), the "
            "values that become 0 and 255."
        )
    return pixels.scale(array, (0.0, 1.0))
