"""Reads and decodes images of a source, replacing corrupt ones."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hjepa_jax.config.data import Data
from hjepa_jax.data import counter_random
from hjepa_jax.data.augmentation import resize
from hjepa_jax.data.counter_random import Stream
from hjepa_jax.data.decode import CorruptImageError, decode_image
from hjepa_jax.data.sources.base import ImageSource
from hjepa_jax.errors import DataError
from hjepa_jax.storage.files import printable

# Decoded images are augmented in groups of at most this many images and pixels.
_GROUP_IMAGES = 128
_GROUP_PIXELS = 8_000_000
_REPLACEMENT_TRIES = 100

# Read errors that do not mean that the file is corrupt.
_OUR_FAULTS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Loaded(NamedTuple):
    """A decoded image with its label, and its number in the source."""

    image: resize.Decoded
    label: int
    number: int


def _sentence(error: OSError) -> str:
    """Returns the readable message of a file system error."""
    if error.filename is None or error.strerror is None:
        # The caller appends its own advice.
        return f"{str(error).rstrip('.').removesuffix('; remove or replace it')}."
    return f"{printable(os.fsdecode(error.filename))}: {error.strerror}."


class Decoder:
    """Decodes images of a source, large ones only at the resolution that the views need."""

    def __init__(self, data: Data, source: ImageSource, full_size: bool = False):
        """Makes a decoder; `full_size` forbids decoding large JPEGs at a reduced size."""
        self._source = source
        sides = [data.image_size / data.global_scale[0] ** 0.5]
        if data.num_local_views:
            sides.append(data.local_size / data.local_scale[0] ** 0.5)
        # The geometric mean side that keeps the smallest crop, at the worst aspect, full.
        needed = max(sides) * data.augment.crop_aspect[1] ** 0.5
        self._smallest = None if full_size else needed
        # Crops of thin images are at most as high as the image, whatever their area.
        self._largest_view = max(data.image_size, data.local_size if data.num_local_views else 0)

    def __call__(self, index: int) -> Loaded:
        """Returns image `index`.

        Raises:
          CorruptImageError: if it cannot be read or decoded.
          DataError: if this process lacks the memory or file handles to read it.
        """
        try:
            record = self._source.record(index)
        except OSError as error:
            # A broken link or a pipe is one corrupt image; a lack of file handles ends the run.
            unreadable = CorruptImageError if error.errno not in _OUR_FAULTS else DataError
            raise unreadable(f"Cannot read image {index}: {_sentence(error)}") from error
        if record.image is not None:
            return Loaded(record.image, record.label, index)
        image = decode_image(
            record.encoded or b"", record.name, self._smallest, self._largest_view, record.ranges
        )
        small = max(image.size) <= resize.SMALL_SIDE
        return Loaded(np.asarray(image) if small else image, record.label, index)


class Loader:
    """Decodes images of a source and, if `data.on_corrupt` is 'skip', replaces corrupt ones."""

    def __init__(self, data: Data, seed: int, source: ImageSource, full_size: bool = False):
        """Makes a loader; `seed` selects replacements, and `full_size` is as in `Decoder`."""
        self._count = len(source)
        self._skip = data.on_corrupt == "skip"
        self._key = counter_random.stream_key(seed, Stream.REPLACEMENT)
        self._decode = Decoder(data, source, full_size)

    def load(self, index: int, corrupt: list[str]) -> Loaded:
        """Returns image `index`, or its replacement if it is corrupt and may be skipped.

        Args:
          index: the image's index in the source.
          corrupt: receives a message for each corrupt image encountered.

        Returns:
          The image. A replacement depends only on the seed and `index`.

        Raises:
          CorruptImageError: if the image is corrupt and may not be skipped, or if too many
            replacements are corrupt too.
          DataError: if this process lacks the memory or file handles to read it.
        """
        tried = index
        for attempt in range(_REPLACEMENT_TRIES):
            try:
                return self._decode(tried)
            except CorruptImageError as error:
                if not self._skip:
                    raise CorruptImageError(
                        f"{error} Remove or replace it, or set data.on_corrupt='skip'."
                    ) from error
                corrupt.append(str(error))
                draw = counter_random.hashes(self._key, index, attempt)[0]
                tried = int(draw % np.uint64(self._count))
        raise CorruptImageError(
            f"{_REPLACEMENT_TRIES} images tried in place of image {index} are corrupt too "
            f"({corrupt[-1]}); the dataset is damaged."
        )

    def groups(
        self, indices: Sequence[int] | npt.NDArray[np.int64], corrupt: list[str]
    ) -> Iterator[tuple[slice, list[Loaded]]]:
        """Decodes images in groups that are bounded in number and pixels.

        Args:
          indices: indices into the source.
          corrupt: receives a message for each corrupt image; see `load`.

        Yields:
          The positions in `indices` that a group covers, and its images.
        """
        start, pixels, group = 0, 0, list[Loaded]()
        for position, index in enumerate(indices):
            group.append(self.load(int(index), corrupt))
            height, width = resize.size_of(group[-1].image)
            pixels += height * width
            if len(group) == _GROUP_IMAGES or pixels > _GROUP_PIXELS:
                yield slice(start, position + 1), group
                start, pixels, group = position + 1, 0, list[Loaded]()
        if group:
            yield slice(start, start + len(group)), group
