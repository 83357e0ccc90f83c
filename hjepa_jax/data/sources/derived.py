"""Sources made from another source: subsets, held-out images, one scale for deep pixels."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hjepa_jax.data import counter_random
from hjepa_jax.data.counter_random import Stream
from hjepa_jax.data.decode import sample_limits
from hjepa_jax.data.formats.pixels import FULL, Ranges, choose_ranges
from hjepa_jax.data.sources.base import (
    NO_LABEL,
    ArraySource,
    ImageSource,
    Record,
    digest,
    has_label,
)
from hjepa_jax.errors import counted

# Number of sampled images that determine the scale of pixels with more than 8 bits.
_SAMPLED_IMAGES = 32


@dataclasses.dataclass(frozen=True)
class SubsetSource:
    """A selection of the images of another source.

    Attributes:
      parent: the other source.
      indices: int64 [N], the selected images of the parent.
    """

    parent: ImageSource
    indices: npt.NDArray[np.int64]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.parent.class_names

    @property
    def description(self) -> str:
        return f"{counted(len(self), 'image')} of {self.parent.description}"

    def __len__(self) -> int:
        return len(self.indices)

    def record(self, index: int) -> Record:
        return self.parent.record(int(self.indices[index]))

    def labels(self) -> npt.NDArray[np.int32]:
        return self.parent.labels()[self.indices]

    def fingerprint(self) -> str:
        return digest(self.parent.fingerprint(), self.indices.tobytes())


@dataclasses.dataclass(frozen=True)
class RangedSource:
    """Another source, with one scale for its images of more than 8 bits per channel.

    Attributes:
      parent: the other source.
      ranges: the values that map to 0 and 255.
    """

    parent: ImageSource
    ranges: Ranges

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.parent.class_names

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
        fingerprint = self.parent.fingerprint()
        # The full 16-bit range is the default, which keeps the parent's fingerprint.
        default = self.ranges == Ranges((0.0, FULL))
        return fingerprint if default else digest(fingerprint, str(self.ranges))


@dataclasses.dataclass(frozen=True)
class RelabeledSource:
    """Another source with other labels.

    Attributes:
      parent: the other source.
      given: int32 [N], the labels.
      class_names: their names.
    """

    parent: ImageSource
    given: npt.NDArray[np.int32]
    class_names: tuple[str, ...]

    @property
    def description(self) -> str:
        return self.parent.description

    def __len__(self) -> int:
        return len(self.parent)

    def record(self, index: int) -> Record:
        return self.parent.record(index)._replace(label=int(self.given[index]))

    def labels(self) -> npt.NDArray[np.int32]:
        return self.given

    def fingerprint(self) -> str:
        return digest(self.parent.fingerprint(), self.class_names, self.given.tobytes())


def unlabeled(source: ImageSource) -> ImageSource:
    """Returns a source without its labels."""
    return RelabeledSource(source, np.full(len(source), NO_LABEL, np.int32), ())


def names_of(source: ImageSource) -> tuple[str, ...] | None:
    """Returns the file name of each image relative to the folder; None without files."""
    if isinstance(source, SubsetSource):
        names = names_of(source.parent)
        return names and tuple(names[index] for index in source.indices)
    if isinstance(source, (RangedSource, RelabeledSource)):
        return names_of(source.parent)
    return getattr(source, "names", None)


def sample_ranges(source: ImageSource) -> Ranges | None:
    """Chooses the scale for pixels of more than 8 bits from a sample of the images.

    Args:
      source: images, of which up to 32 are read.

    Returns:
      The scale; None if no sampled image has more than 8 bits per channel.
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
    """Returns the first `num` images of a seeded shuffle.

    Args:
      source: images.
      num: number of images; None or at least `len(source)` returns the source itself.
      seed: seed of the shuffle.

    Raises:
      ValueError: if `num` is not positive.
    """
    if num is None or num >= len(source):
        return source
    if num <= 0:
        raise ValueError(f"A subset must have at least one image, not {num}.")
    key = counter_random.stream_key(seed, Stream.SUBSET)
    return SubsetSource(source, counter_random.permutation(key, len(source))[:num])


def labeled(source: ImageSource) -> ImageSource:
    """Returns the labeled images of a source; the source itself if all are labeled.

    Raises:
      ValueError: if no image is labeled.
    """
    rows = np.flatnonzero(has_label(source.labels()))
    if not len(rows):
        raise ValueError(f"No image of {source.description} has a label.")
    return source if len(rows) == len(source) else SubsetSource(source, rows)


def stratified_sample(
    labels: npt.NDArray[np.int32], num: int, seed: int, stream: Stream
) -> npt.NDArray[np.int64]:
    """Draws labeled images so that each class keeps its share.

    Args:
      labels: int32 [N]; images without a label are never drawn.
      num: number of images to draw, at most the number of labeled images.
      seed: seed of the draw.
      stream: stream of random numbers, with one key per class.

    Returns:
      int64 [num], sorted indices into `labels`.
    """
    classes, counts = np.unique(labels[has_label(labels)], return_counts=True)
    exact = counts * num / counts.sum()
    share = np.floor(exact).astype(int)
    # The largest remainders get the images that rounding down left over.
    for position in np.argsort(share - exact, kind="stable")[: num - share.sum()]:
        share[position] += 1
    chosen = []
    for class_number, size in zip(classes, share, strict=True):
        members = np.flatnonzero(labels == class_number)
        key = counter_random.stream_key(seed, stream, int(class_number))
        chosen.append(members[counter_random.permutation(key, len(members))[:size]])
    return np.sort(np.concatenate(chosen))


def hold_out(source: ImageSource, num: int, seed: int) -> tuple[ImageSource, ImageSource]:
    """Splits off `num` labeled images, with each class keeping its share.

    The split depends only on the seed, the labels and `num`. If no image is labeled, they are drawn
    from all.

    Args:
      source: images.
      num: number of images to hold out.
      seed: seed of the draw.

    Returns:
      (remaining, held out), both in source order; unlabeled images remain if others are labeled.

    Raises:
      ValueError: if fewer than `num` + 1 images are labeled, or `num` is not positive.
    """
    labels = source.labels()
    if not has_label(labels).any():
        labels = np.zeros(len(source), np.int32)
    num_labeled = int(np.count_nonzero(has_label(labels)))
    if not 1 <= num < num_labeled:
        raise ValueError(
            f"{num} images cannot be held out of {source.description}: {num_labeled} of them can "
            "be, and at least one must remain."
        )
    held = np.zeros(len(source), bool)
    held[stratified_sample(labels, num, seed, Stream.HOLDOUT)] = True
    return (
        SubsetSource(source, np.flatnonzero(~held)),
        SubsetSource(source, np.flatnonzero(held)),
    )


class StoredImages(NamedTuple):
    """Images of one shape that a source holds decoded in memory.

    Attributes:
      images: uint8 [M, H, W, 3].
      labels: int32 [N], of the source's images.
      rows: int64 [N], the row of `images` of each image of the source; None = all, in order.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int64] | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (H, W, 3) of an image."""
        return self.images.shape[1:]

    def take(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Returns images of the source, uint8 [len(indices), H, W, 3]."""
        return self.images[indices if self.rows is None else self.rows[indices]]


def stored_images(source: ImageSource) -> StoredImages | None:
    """Returns the images of a source that holds them in memory; None for other sources."""
    labels, rows = source.labels(), None
    while isinstance(source, SubsetSource):
        rows = source.indices if rows is None else source.indices[rows]
        source = source.parent
    # A class derived from it may read its images in its own way.
    if not isinstance(source, ArraySource) or type(source).record is not ArraySource.record:
        return None
    return StoredImages(source.images, labels, rows)
