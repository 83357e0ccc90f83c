"""Image sources: where images and labels come from.

`open_source` turns a configuration into an `ImageSource`; each kind of storage has a module of its
own. Sources hand out encoded bytes where the storage has them, so that decoding happens in the
input pipeline's threads or processes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from hjepa_jax.data import counter_random
from hjepa_jax.data.decode import decode_image, sample_limits
from hjepa_jax.data.formats.pixels import FULL, Ranges, choose_ranges
from hjepa_jax.data.sources.splits import warn_once
from hjepa_jax.storage.files import local_path

# The label of an image that has none: it is trained on, but never votes and is never tested.
NO_LABEL = -1
# Images of a split that decide how pixels of more than 8 bits are scaled.
_SAMPLED_IMAGES = 32


class Record(NamedTuple):
    """One image as stored.

    Attributes:
      encoded: The bytes of an image file, or None.
      image: Decoded pixels uint8 [H, W, 3], or None; exactly one of the two is given.
      label: Class number, an index into the source's `class_names`; NO_LABEL (-1) for none.
      name: Where the image comes from, for messages.
      ranges: How pixels of more than 8 bits are scaled, as for all images of the data set; None
        where it has no such images.
    """

    encoded: bytes | None
    image: npt.NDArray[np.uint8] | None
    label: int
    name: str
    ranges: Ranges | None = None


@runtime_checkable
class ImageSource(Protocol):
    """A fixed sequence of labelled images; picklable, and safe to read from several threads."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the label numbers; the same for every split."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes; images without a label are of none."""
        ...

    @property
    def description(self) -> str:
        """One line for people: what it is, and how many images and classes it has."""
        ...

    def __len__(self) -> int: ...

    def record(self, index: int) -> Record:
        """Returns image number `index`, 0 <= index < len(self)."""
        ...

    def labels(self) -> npt.NDArray[np.int32]:
        """Returns all labels, int32 [len(self)]; NO_LABEL (-1) for images that have none."""
        ...

    def fingerprint(self) -> str:
        """Returns a cheap checksum of the listing (names, sizes, labels), not of all pixels."""
        ...


def digest(*parts: bytes | str | Sequence[str]) -> str:
    """Returns a short hexadecimal SHA-256 of parts, for `ImageSource.fingerprint`."""
    hasher = hashlib.sha256()
    for part in parts:
        if not isinstance(part, (bytes, str)):
            part = "\0".join(part)
        # File names may hold bytes that are not UTF-8.
        data = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.hexdigest()[:16]


class ArraySource:
    """Decoded images in memory."""

    def __init__(
        self,
        name: str,
        images: npt.NDArray[np.uint8],
        labels: npt.ArrayLike,
        class_names: Sequence[str],
    ):
        """Makes a source of images [N, H, W, 3] with integer labels [N], NO_LABEL (-1) for none.

        Raises:
          ValueError: If shapes, types or labels do not fit.
        """
        self._labels = np.asarray(labels, np.int32)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"{name}: images must be uint8 [N, H, W, 3], not {images.dtype} {images.shape}."
            )
        if self._labels.shape != images.shape[:1]:
            raise ValueError(
                f"{name}: {len(images)} images, but labels of shape {self._labels.shape}."
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
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def description(self) -> str:
        height, width = self.images.shape[1:3]
        return (
            f"{self.name}: {len(self)} images of {height}x{width} pixels, "
            f"{self.num_classes} classes"
        )

    def __len__(self) -> int:
        return len(self.images)

    def record(self, index: int) -> Record:
        return Record(None, self.images[index], int(self._labels[index]), f"{self.name}[{index}]")

    def labels(self) -> npt.NDArray[np.int32]:
        return self._labels

    def fingerprint(self) -> str:
        # Some pixels of some images tell data sets apart; all of them would take seconds.
        sample = self.images[:: max(1, len(self) // 256)]
        return digest(self.name, self.class_names, self._labels.tobytes(), sample.tobytes())


@dataclasses.dataclass(frozen=True)
class _DerivedSource:
    """Images of another source, which has their classes."""

    parent: ImageSource

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.parent.class_names

    @property
    def num_classes(self) -> int:
        return self.parent.num_classes


@dataclasses.dataclass(frozen=True)
class SubsetSource(_DerivedSource):
    """A selection of the images of another source."""

    indices: npt.NDArray[np.int64]

    @property
    def description(self) -> str:
        return f"{len(self)} images of {self.parent.description}"

    def __len__(self) -> int:
        return len(self.indices)

    def record(self, index: int) -> Record:
        return self.parent.record(int(self.indices[index]))

    def labels(self) -> npt.NDArray[np.int32]:
        return self.parent.labels()[self.indices]

    def fingerprint(self) -> str:
        return digest(self.parent.fingerprint(), self.indices.tobytes())


@dataclasses.dataclass(frozen=True)
class RangedSource(_DerivedSource):
    """Another source, whose images of more than 8 bits a channel are all scaled alike."""

    ranges: Ranges

    @property
    def description(self) -> str:
        return self.parent.description

    def __len__(self) -> int:
        return len(self.parent)

    def record(self, index: int) -> Record:
        return self.parent.record(index)._replace(ranges=self.ranges)

    def labels(self) -> npt.NDArray[np.int32]:
        return self.parent.labels()

    def fingerprint(self) -> str:
        found = self.parent.fingerprint()
        # Whole 16-bit values are scaled as they always were.
        usual = self.ranges == Ranges((0.0, FULL))
        return found if usual else digest(found, str(self.ranges))


def sample_ranges(source: ImageSource) -> Ranges | None:
    """Returns how a sample of a source's images says that deep pixels are scaled.

    Returns:
      None if no sampled image has more than 8 bits a channel.
    """
    found = []
    for index in np.unique(np.linspace(0, len(source) - 1, _SAMPLED_IMAGES).round().astype(int)):
        try:
            record = source.record(int(index))
        except (OSError, ValueError):
            # The error is reported when the image is read for training.
            continue
        if record.encoded is None:
            return None
        limits = sample_limits(record.encoded)
        if limits is not None:
            found.append(limits)
    return choose_ranges(found)


def subset(source: ImageSource, num: int | None, seed: int) -> ImageSource:
    """Returns the first `num` images of a seeded shuffle; the source itself for None.

    Raises:
      ValueError: If `num` is not positive.
    """
    if num is None or num >= len(source):
        return source
    if num <= 0:
        raise ValueError(f"A subset must have at least one image, not {num}.")
    key = counter_random.stream_key(seed, counter_random.Purpose.SUBSET)
    return SubsetSource(source, counter_random.permutation(key, len(source))[:num])


def fixed_shape(source: ImageSource) -> tuple[int, ...] | None:
    """Returns the shape (H, W, 3) that all images have, if they are in memory; else None."""
    while isinstance(source, SubsetSource):
        source = source.parent
    return source.images.shape[1:] if isinstance(source, ArraySource) else None


def decode(record: Record) -> npt.NDArray[np.uint8]:
    """Returns the pixels uint8 [H, W, 3] of a record.

    Raises:
      CorruptImageError: If it cannot be decoded; the message has the record's name.
    """
    if record.image is not None:
        return record.image
    if record.encoded is None:
        raise ValueError(f"The record {record.name} has neither bytes nor pixels.")
    return np.asarray(decode_image(record.encoded, record.name, ranges=record.ranges))


def open_source(data: Any, split: str, siblings: Sequence[str] | None = None) -> ImageSource:
    """Opens the images of one split.

    Classes have the same numbers in every split: first those of the training split, then those
    that only others have. Images of more than 8 bits a channel are scaled to 8 alike in all splits,
    as a sample of the training split asks for (`pixels.choose_ranges`), with a warning.

    Args:
      data: `config.data`; `name` and `root` say what and where.
      split: Name of the split, usually `data.train_split` or `data.test_split`.
      siblings: Splits whose classes are numbered together, in this order; None = these two.

    Returns:
      The whole split; `subset` applies `data.max_train_images`.

    Raises:
      ValueError: If the name is unknown, or the data does not fit together.
      FileNotFoundError: If the data is not there; the message says how to get it.
    """
    siblings = siblings or (data.train_split, data.test_split)
    source = _open(data, split, siblings)
    own = sample_ranges(source)
    if own is None:
        return source
    ranges = own
    if split != data.train_split:
        try:
            reference = sample_ranges(_open(data, data.train_split, siblings))
        except (OSError, ValueError):
            reference = None
        if reference is not None:
            ranges = Ranges(reference.integer or own.integer, reference.real or own.real)
    for kind, bounds in (("integers", ranges.integer), ("floats", ranges.real)):
        if bounds is not None and bounds != (0.0, FULL):
            warn_once(
                f"{source.description}: some images have more than 8 bits a channel. In a sample, "
                f"their {kind} lie in {bounds[0]:g} .. {bounds[1]:g}, which becomes 0 .. 255 for "
                "every image; what lies outside saturates."
            )
    return RangedSource(source, ranges)


def _open(data: Any, split: str, siblings: Sequence[str]) -> ImageSource:
    # Imported here: each kind of source needs libraries that the others do not.
    name = data.name
    root = data.root and str(local_path(data.root, "config.data.root"))
    if name == "digits":
        from hjepa_jax.data.sources import digits

        return digits.open_digits(split)
    if name in ("cifar10", "cifar100"):
        from hjepa_jax.data.sources import cifar

        return cifar.open_cifar(name, root, split, data.cache_mb, siblings)
    if name == "folder":
        from hjepa_jax.data.sources import folder

        return folder.open_root(root, split, data.cache_mb, siblings)
    if name.startswith("tfds:"):
        from hjepa_jax.data.sources import tfds

        return tfds.open_tfds(name.removeprefix("tfds:"), root, split)
    raise ValueError(
        f"data.name is '{name}'; it must be 'digits', 'cifar10', 'cifar100', 'folder' or "
        "'tfds:<name>'."
    )
