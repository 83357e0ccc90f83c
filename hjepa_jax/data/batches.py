"""Makes one batch: choosing images, decoding them, and augmenting their views.

A batch depends only on (seed, step) and the source. `pipeline` runs this in threads and worker
processes.
"""

from __future__ import annotations

import errno
import functools
import math
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hjepa_jax.config import steps_per_epoch
from hjepa_jax.config.data import Data
from hjepa_jax.data import counter_random
from hjepa_jax.data.augmentation import host, resize
from hjepa_jax.data.augmentation.parameters import PACKED, ViewParameters, pack_views
from hjepa_jax.data.counter_random import Stream
from hjepa_jax.data.decode import CorruptImageError, decode_image
from hjepa_jax.data.sources.base import ImageSource
from hjepa_jax.data.sources.derived import fixed_shape
from hjepa_jax.errors import DataError
from hjepa_jax.storage.files import printable

Batch = dict[str, npt.NDArray]

# Decoded images are augmented in groups of at most this many images and pixels.
_GROUP_IMAGES = 128
_GROUP_PIXELS = 8_000_000
# Local views are numbered from here, so global views do not depend on how many there are.
_FIRST_LOCAL_VIEW = 1 << 16
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


def check_stream(data: Data, source: ImageSource, process_count: int) -> None:
    """Checks that a stream of batches can be made from a source.

    Args:
      data: the settings.
      source: the training images.
      process_count: number of processes that share a batch.

    Raises:
      ValueError: if batch size, source and number of processes are incompatible.
    """
    batch_size = data.batch_size
    if batch_size % process_count:
        raise ValueError(
            f"data.batch_size {batch_size} must be a multiple of the {process_count} processes."
        )
    if len(source) < batch_size:
        raise ValueError(
            f"data.batch_size {batch_size} is larger than the {len(source)} images of "
            f"{source.description}; make it smaller."
        )


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, length: int) -> npt.NDArray[np.int64]:
    return counter_random.permutation(counter_random.stream_key(seed, Stream.ORDER, epoch), length)


def batch_indices(
    seed: int, step: int, length: int, batch_size: int
) -> tuple[int, npt.NDArray[np.int64]]:
    """Returns the epoch of a step and the source indices of its global batch.

    Every epoch has its own permutation of the source; its last partial batch is dropped.

    Args:
      seed: the run's seed.
      step: training step, starting at 0.
      length: number of images in the source.
      batch_size: images per step over all processes.

    Returns:
      The epoch, and int64 [batch_size] indices below `length`.
    """
    epoch, within = divmod(step, steps_per_epoch(length, batch_size))
    order = _epoch_order(seed, epoch, length)
    return epoch, order[within * batch_size : (within + 1) * batch_size]


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


class ViewGroup(NamedTuple):
    """The global or the local views: their numbers, side in pixels and range of crop area."""

    name: str
    numbers: npt.NDArray[np.int64]
    size: int
    scale: tuple[float, float]


def _view_groups(data: Data, num_global: int, num_local: int) -> list[ViewGroup]:
    groups = [ViewGroup("global", np.arange(num_global), data.image_size, data.global_scale)]
    if num_local:
        numbers = _FIRST_LOCAL_VIEW + np.arange(num_local)
        groups.append(ViewGroup("local", numbers, data.local_size, data.local_scale))
    return groups


def _parameters(
    data: Data, key: int, group: Sequence[Loaded], view_group: ViewGroup
) -> tuple[npt.NDArray[np.int64], ViewParameters]:
    """Returns each view's position in `group` (view-major) and the drawn parameters."""
    count = len(group)
    source = np.tile(np.arange(count), len(view_group.numbers))
    sizes = np.array([resize.size_of(loaded.image) for loaded in group])[source]
    drawn = host.draw_parameters(
        data.augment,
        view_group.scale,
        key=key,
        index=np.array([loaded.number for loaded in group])[source],
        view=np.repeat(view_group.numbers, count),
        height=sizes[:, 0],
        width=sizes[:, 1],
    )
    return source, drawn


def batch_bytes(data: Data, source: ImageSource, process_count: int = 1) -> int:
    """Returns the bytes of the views (or whole images) of one process's share of a batch."""
    local_size = data.batch_size // process_count
    groups = _view_groups(data, data.num_global_views, data.num_local_views)
    shape = fixed_shape(source) if data.backend == "device" else None
    if shape is not None:
        return local_size * math.prod(shape)
    return local_size * sum(
        3 * len(view_group.numbers) * view_group.size**2 for view_group in groups
    )


class BatchMaker:
    """Maps a step to this process's share of its batch; can be pickled for worker processes."""

    def __init__(
        self,
        data: Data,
        seed: int,
        source: ImageSource,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self._data, self._seed = data, seed
        self._source = source
        self._process_index = process_index
        self._local_size = data.batch_size // process_count
        self._loader = Loader(data, seed, source)

    def __call__(self, step: int) -> tuple[Batch, list[str]]:
        """Returns the batch, and messages about the corrupt images that were replaced."""
        data, seed = self._data, self._seed
        epoch, indices = batch_indices(seed, int(step), len(self._source), data.batch_size)
        # Process p holds rows [p b, (p + 1) b): the global batch is the same for every number of
        # processes, its order included.
        first = self._process_index * self._local_size
        indices = indices[first : first + self._local_size]
        key = counter_random.stream_key(seed, Stream.AUGMENTATION, epoch)
        on_device = data.backend == "device"
        return self.make(key, indices, data.num_global_views, data.num_local_views, on_device)

    def make(
        self,
        key: int,
        indices: npt.NDArray[np.int64],
        num_global: int,
        num_local: int,
        on_device: bool = False,
    ) -> tuple[Batch, list[str]]:
        """Makes the views of chosen images.

        Args:
          key: random stream of the augmentation, from `counter_random.stream_key`.
          indices: int64 [B], indices into the source.
          num_global: number of global views Vg.
          num_local: number of local views Vl.
          on_device: whether to leave the augmentation to `device.augment_batch`.

        Returns:
          The batch: 'label' and 'index' int32 [B], 'global_views' uint8 [Vg, B, S, S, 3] and, with
          local views, 'local_views' uint8 [Vl, B, s, s, 3]. With `on_device` the views are only
          cropped, or are replaced by 'images' uint8 [B, H, W, 3] if all images have the same shape,
          and '<global or local>_parameters' float32 [V, B, F] are added. Also, a message for each
          corrupt image that was replaced.

        Raises:
          CorruptImageError: if an image is corrupt and may not be skipped.
          DataError: if this process lacks the memory or file handles to read an image.
        """
        data, count = self._data, len(indices)
        groups = _view_groups(data, num_global, num_local)
        shape = fixed_shape(self._source) if on_device else None
        batch: Batch = {name: np.empty(count, np.int32) for name in ("label", "index")}
        if shape is not None:
            batch["images"] = np.empty((count, *shape), np.uint8)
        for name, numbers, size, _ in groups:
            if shape is None:
                batch[f"{name}_views"] = np.empty((len(numbers), count, size, size, 3), np.uint8)
            if on_device:
                columns = len(PACKED)
                batch[f"{name}_parameters"] = np.empty((len(numbers), count, columns), np.float32)
        corrupt: list[str] = []
        for part, group in self._loader.groups(indices, corrupt):
            images = [loaded.image for loaded in group]
            batch["label"][part] = [loaded.label for loaded in group]
            batch["index"][part] = [loaded.number for loaded in group]
            if shape is not None:
                batch["images"][part] = np.stack([np.asarray(image) for image in images])
            for views in groups:
                source, drawn = _parameters(data, key, group, views)
                name, size = views.name, views.size
                layout = (len(views.numbers), len(group))
                if on_device:
                    batch[f"{name}_parameters"][:, part] = pack_views(drawn).reshape(*layout, -1)
                    if shape is None:
                        pixels = host.crop(images, source, drawn, size)
                        batch[f"{name}_views"][:, part] = pixels.reshape(*layout, size, size, 3)
                else:
                    pixels = host.apply(images, source, drawn, size, data.augment)
                    batch[f"{name}_views"][:, part] = pixels.reshape(*layout, size, size, 3)
        return batch, corrupt
