"""Makes one batch: choosing images, decoding them, and augmenting their views.

A batch depends only on (seed, step) and the source. `pipeline` runs this in threads and worker
processes.
"""

from __future__ import annotations

import functools
import math
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
from hjepa_jax.data.loader import Loader
from hjepa_jax.data.sources.base import ImageSource
from hjepa_jax.data.sources.derived import stored_images

Batch = dict[str, npt.NDArray]

# Local views are numbered from here, so global views do not depend on how many there are.
_FIRST_LOCAL_VIEW = 1 << 16


def check_stream(data: Data, source: ImageSource, process_count: int) -> None:
    """Checks that a stream of batches can be made from a source.

    Args:
      data: the settings.
      source: the training images.
      process_count: number of processes that share a batch.

    Raises:
      ValueError: if batch size, source and number of processes are incompatible, or the backend is
        not chosen yet.
    """
    if data.backend == "auto":
        raise ValueError("data.backend is 'auto': set it to 'host' or 'device' first.")
    batch_size = data.batch_size
    if batch_size % process_count:
        raise ValueError(
            f"data.batch_size {batch_size} must be a multiple of the {process_count} processes."
        )
    rest = len(source) % batch_size
    if not data.drop_last and rest % process_count:
        raise ValueError(
            f"data.drop_last is False, but the last batch has {rest} images, which must be a "
            f"multiple of the {process_count} processes."
        )
    if len(source) < batch_size:
        raise ValueError(
            f"data.batch_size {batch_size} is larger than the {len(source)} images of "
            f"{source.description}; make it smaller."
        )


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, length: int) -> npt.NDArray[np.int64]:
    return counter_random.permutation(counter_random.stream_key(seed, Stream.ORDER, epoch), length)


def batch_length(step: int, length: int, batch_size: int, drop_last: bool) -> int:
    """Returns the number of images in the batch of a step; arguments as in `batch_indices`."""
    within = step % steps_per_epoch(length, batch_size, drop_last)
    return min(batch_size, length - within * batch_size)


def batch_indices(
    seed: int, step: int, length: int, batch_size: int, drop_last: bool = True
) -> tuple[int, npt.NDArray[np.int64]]:
    """Returns the epoch of a step and the source indices of its global batch.

    Every epoch has its own permutation of the source.

    Args:
      seed: the run's seed.
      step: training step, starting at 0.
      length: number of images in the source.
      batch_size: images per step over all processes.
      drop_last: whether the images that do not fill a batch are left out, or are the last one.

    Returns:
      The epoch, and int64 [batch_size] indices below `length`; fewer in a last partial batch.
    """
    epoch, within = divmod(step, steps_per_epoch(length, batch_size, drop_last))
    order = _epoch_order(seed, epoch, length)
    return epoch, order[within * batch_size : (within + 1) * batch_size]


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


class Images(NamedTuple):
    """Decoded images, with their place in a batch.

    Attributes:
      part: positions in the batch.
      images: n decoded images; an array uint8 [n, H, W, 3] if the source stores one, and nothing
        if no pixels are needed.
      numbers: int64 [n], their numbers in the source.
      labels: int32 [n].
      sizes: int64 [n, 2], heights and widths in pixels.
    """

    part: slice
    images: Sequence[resize.Decoded] | npt.NDArray[np.uint8]
    numbers: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32]
    sizes: npt.NDArray[np.int64]


def _parameters(
    data: Data, key: int, images: Images, view_group: ViewGroup
) -> tuple[npt.NDArray[np.int64], ViewParameters]:
    """Returns each view's position in `images` (view-major) and the drawn parameters."""
    count = len(images.numbers)
    source = np.tile(np.arange(count), len(view_group.numbers))
    drawn = host.draw_parameters(
        data.augment,
        view_group.scale,
        key=key,
        index=images.numbers[source],
        view=np.repeat(view_group.numbers, count),
        height=images.sizes[source, 0],
        width=images.sizes[source, 1],
    )
    return source, drawn


def batch_bytes(data: Data, source: ImageSource, process_count: int = 1) -> int:
    """Returns the bytes of the views, or of what makes them, of a process's share of a batch."""
    local_size = data.batch_size // process_count
    groups = _view_groups(data, data.num_global_views, data.num_local_views)
    stored = stored_images(source) if data.backend == "device" else None
    if stored is not None:
        views = sum(len(view_group.numbers) for view_group in groups)
        pixels = 0 if is_resident(data, source) else math.prod(stored.shape)
        return local_size * (pixels + 4 * views * len(PACKED))
    return local_size * sum(
        3 * len(view_group.numbers) * view_group.size**2 for view_group in groups
    )


def resident_mb(source: ImageSource) -> float | None:
    """Returns the MiB of the images of a source that holds them in memory; None for others."""
    stored = stored_images(source)
    return None if stored is None else len(source) * math.prod(stored.shape) / 2**20


def is_resident(data: Data, source: ImageSource) -> bool:
    """Returns whether the images stay on the devices, so that batches hold their numbers alone."""
    size = resident_mb(source) if data.backend == "device" else None
    return size is not None and size <= data.resident_mb


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
        self._process_index, self._process_count = process_index, process_count
        self._loader = Loader(data, seed, source)
        self._stored = stored_images(source)
        self._resident = is_resident(data, source)

    def __call__(self, step: int) -> tuple[Batch, list[str]]:
        """Returns the batch, and messages about the corrupt images that were replaced."""
        data, seed = self._data, self._seed
        epoch, indices = batch_indices(
            seed, int(step), len(self._source), data.batch_size, data.drop_last
        )
        # Process p holds rows [p b, (p + 1) b): the global batch is the same for every number of
        # processes, its order included.
        local_size = len(indices) // self._process_count
        first = self._process_index * local_size
        indices = indices[first : first + local_size]
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
          cropped, or are replaced by 'images' uint8 [B, H, W, 3] if all images have the same shape
          (by nothing if `is_resident`), and '<global or local>_parameters' float32 [V, B, F] are
          added. Also, a message for each corrupt image that was replaced.

        Raises:
          CorruptImageError: if an image is corrupt and may not be skipped.
          DataError: if this process lacks the memory or file handles to read an image.
        """
        data, count = self._data, len(indices)
        groups = _view_groups(data, num_global, num_local)
        whole = on_device and self._stored is not None  # then all images are one part
        batch: Batch = {name: np.empty(count, np.int32) for name in ("label", "index")}
        for name, numbers, size, _ in groups:
            if not whole:
                batch[f"{name}_views"] = np.empty((len(numbers), count, size, size, 3), np.uint8)
            if on_device:
                columns = len(PACKED)
                batch[f"{name}_parameters"] = np.empty((len(numbers), count, columns), np.float32)
        corrupt: list[str] = []
        for found in self._decoded(indices, corrupt, pixels=not (whole and self._resident)):
            part = found.part
            batch["label"][part], batch["index"][part] = found.labels, found.numbers
            if whole and not self._resident:
                batch["images"] = np.asarray(found.images)
            for views in groups:
                source, drawn = _parameters(data, key, found, views)
                name, size = views.name, views.size
                layout = (len(views.numbers), len(found.numbers))
                if on_device:
                    batch[f"{name}_parameters"][:, part] = pack_views(drawn).reshape(*layout, -1)
                if whole:
                    continue
                if on_device:
                    pixels = host.crop(found.images, source, drawn, size)
                else:
                    pixels = host.apply(found.images, source, drawn, size, data.augment)
                batch[f"{name}_views"][:, part] = pixels.reshape(*layout, size, size, 3)
        return batch, corrupt

    def _decoded(
        self, indices: npt.NDArray[np.int64], corrupt: list[str], *, pixels: bool
    ) -> Iterator[Images]:
        """Yields images by their indices in the source, stored ones perhaps without their pixels.

        See `Loader.groups`.
        """
        if self._stored is not None:
            count = len(indices)
            sizes = np.broadcast_to(np.array(self._stored.shape[:2]), (count, 2))
            images = self._stored.take(indices) if pixels else ()
            yield Images(slice(0, count), images, indices, self._stored.labels[indices], sizes)
            return
        for part, group in self._loader.groups(indices, corrupt):
            yield Images(
                part,
                [loaded.image for loaded in group],
                np.array([loaded.number for loaded in group]),
                np.array([loaded.label for loaded in group], np.int32),
                np.array([resize.size_of(loaded.image) for loaded in group]),
            )
