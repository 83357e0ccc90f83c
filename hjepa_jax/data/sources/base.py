"""The interface of image sources (numbered images with labels) and of datasets."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from hjepa_jax.config import Settings
from hjepa_jax.config.parts import SOURCES
from hjepa_jax.data.decode import decode_image
from hjepa_jax.data.formats.pixels import Ranges
from hjepa_jax.errors import counted
from hjepa_jax.storage.files import local_path

# The label of an unlabeled image: it is trained on, but never votes and is never tested.
NO_LABEL = -1


class Record(NamedTuple):
    """One image as stored.

    Attributes:
      encoded: the bytes of an image file, or None. They are decoded by the threads or processes of
        the input pipeline, so a source that has them does not decode.
      image: decoded pixels uint8 [H, W, 3], or None; exactly one of the two is given.
      label: class number, an index into the source's `class_names`; NO_LABEL (-1) for none.
      name: origin of the image, for messages.
      ranges: scale of pixels of more than 8 bits, the same for all images of the dataset; None if
        it has no such images.
    """

    encoded: bytes | None
    image: npt.NDArray[np.uint8] | None
    label: int
    name: str
    ranges: Ranges | None = None


@runtime_checkable
class ImageSource(Protocol):
    """A fixed sequence of images with labels; picklable, and safe to read from several threads."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the label numbers; the same for every split."""
        ...

    @property
    def description(self) -> str:
        """One line with its kind and its numbers of images and classes."""
        ...

    def __len__(self) -> int: ...

    def record(self, index: int) -> Record:
        """Returns image number `index`, 0 <= index < len(self)."""
        ...

    def labels(self) -> npt.NDArray[np.int32]:
        """Returns all labels, int32 [len(self)]; NO_LABEL (-1) for unlabeled images."""
        ...

    def fingerprint(self) -> str:
        """Returns a cheap checksum of the listing (names, sizes, labels), not of all pixels."""
        ...


class DataSet(abc.ABC):
    """A dataset, selected by `config.data.name`; its splits are image sources.

    Attributes:
      sections: its configuration sections by name, dataclasses of `field(...)`.
      takes_argument: whether its name takes an argument, as in 'tfds:mnist'.
      example: such an argument, for messages.
    """

    sections: ClassVar[Mapping[str, type]] = {}
    takes_argument: ClassVar[bool] = False
    example: ClassVar[str] = "mnist"

    def __init__(self, settings: Settings, argument: str = ""):
        """Makes a dataset.

        Args:
          settings: the configuration; `settings.section` returns the dataset's own sections.
          argument: the text after the colon in `config.data.name`, as in 'tfds:mnist'.
        """
        self.settings = settings
        self.data = settings.data
        self.argument = argument

    @classmethod
    def problems(cls, settings: Settings) -> Iterator[str]:
        """Yields a sentence for each contradiction in the settings."""
        name, _, argument = settings.data.name.partition(":")
        if cls.takes_argument and not argument:
            yield (
                f"config.data.name is {settings.data.name!r}, which does not name a dataset: "
                f"append the name, for example '{name}:{cls.example}'."
            )
        elif argument and not cls.takes_argument and name in SOURCES:
            yield (
                f"config.data.name is {settings.data.name!r}, but {name!r} is one dataset and "
                f"takes no name: set it to {name!r}."
            )

    @property
    def root(self) -> str | None:
        """The local path in `config.data.root`; None if it is not set.

        Raises:
          UserError: if it is a remote address.
        """
        return self.data.root and str(local_path(self.data.root, "config.data.root"))

    @abc.abstractmethod
    def open(self, split: str, siblings: Sequence[str]) -> ImageSource:
        """Opens the images of one split.

        Args:
          split: name of the split.
          siblings: splits whose classes are numbered together, in this order.

        Raises:
          ValueError: if the data is damaged or inconsistent.
          FileNotFoundError: if the data is missing; the message says how to get it.
        """

    def label_maps(self, class_names: Sequence[str]) -> dict[str, npt.NDArray[np.int32]]:
        """Returns coarser labelings to evaluate as well.

        Args:
          class_names: the classes, in the order of their numbers.

        Returns:
          Name -> int32 [C], the coarse class of each class.
        """
        del class_names
        return {}


def has_label(labels: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Returns which of the labels int [N] are class numbers, bool [N]."""
    return np.asarray(labels) != NO_LABEL


def describe(what: str, source: ImageSource) -> str:
    """Returns `ImageSource.description`: what a source is, and its numbers of images and classes.

    Args:
      what: kind, place and split of the source.
      source: the source.
    """
    names = source.class_names
    classes = counted(len(names), "class", "classes") if names else "no labels"
    return f"{what}: {counted(len(source), 'image')}, {classes}"


def digest(*parts: bytes | str | Sequence[str]) -> str:
    """Returns a short hexadecimal SHA-256 of parts, for `ImageSource.fingerprint`."""
    hasher = hashlib.sha256()
    for part in parts:
        if not isinstance(part, (bytes, str)):
            part = "\0".join(part)
        # File names may contain bytes that are not UTF-8.
        data = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.hexdigest()[:16]


def decode(record: Record) -> npt.NDArray[np.uint8]:
    """Returns the pixels uint8 [H, W, 3] of a record.

    Raises:
      CorruptImageError: if it cannot be decoded; the message has the record's name.
      ValueError: if it has neither bytes nor pixels.
    """
    if record.image is not None:
        return record.image
    if record.encoded is None:
        raise ValueError(f"The record {record.name} has neither bytes nor pixels.")
    return np.asarray(decode_image(record.encoded, record.name, ranges=record.ranges))


class ArraySource:
    """Decoded images in memory."""

    def __init__(
        self,
        name: str,
        images: npt.NDArray[np.uint8],
        labels: npt.ArrayLike,
        class_names: Sequence[str],
    ):
        """Makes a source of images in memory.

        Args:
          name: name of the source, for messages and the fingerprint.
          images: uint8 [N, H, W, 3].
          labels: integer [N]; NO_LABEL (-1) for unlabeled images.
          class_names: names of the classes, in the order of the label numbers.

        Raises:
          ValueError: if shapes, types or labels do not match.
        """
        self._labels = np.asarray(labels, np.int32)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"{name}: images must be uint8 [N, H, W, 3], not {images.dtype} {images.shape}."
            )
        if self._labels.shape != images.shape[:1]:
            raise ValueError(
                f"{name}: {counted(len(images), 'image')}, but labels of shape "
                f"{self._labels.shape}."
            )
        if len(images) == 0:
            raise ValueError(f"{name}: there are no images.")
        if self._labels.min() < NO_LABEL or self._labels.max() >= len(class_names):
            raise ValueError(
                f"{name}: a label is outside 0 .. {len(class_names) - 1} and is not {NO_LABEL}, "
                "which means no label."
            )
        self.name = name
        self.images = images
        self.class_names = tuple(class_names)

    @property
    def description(self) -> str:
        height, width = self.images.shape[1:3]
        images = counted(len(self), "image")
        classes = counted(len(self.class_names), "class", "classes")
        return f"{self.name}: {images} of {height}x{width} pixels, {classes}"

    def __len__(self) -> int:
        return len(self.images)

    def record(self, index: int) -> Record:
        return Record(None, self.images[index], int(self._labels[index]), f"{self.name}[{index}]")

    def labels(self) -> npt.NDArray[np.int32]:
        return self._labels

    def fingerprint(self) -> str:
        # A sample of the pixels distinguishes datasets; hashing all of them would take seconds.
        sample = self.images[:: max(1, len(self) // 256)]
        return digest(self.name, self.class_names, self._labels.tobytes(), sample.tobytes())
