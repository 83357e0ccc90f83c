"""The input pipeline: streams of training and evaluation batches.

The position in the training stream is the step: a resumed run continues the stream at its step,
with any number of threads, worker processes and hosts.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from types import TracebackType
from typing import TypeAlias

import grain.python as grain
import numpy as np
import numpy.typing as npt
from absl import flags

from hjepa_jax.config.data import Data
from hjepa_jax.data import batches, counter_random, loader
from hjepa_jax.data.augmentation import host
from hjepa_jax.data.batches import Batch
from hjepa_jax.data.counter_random import Stream
from hjepa_jax.data.decode import CorruptImageError
from hjepa_jax.data.prefetch import WaitTimer, device_prefetch
from hjepa_jax.data.sources.base import ImageSource
from hjepa_jax.data.sources.derived import subset
from hjepa_jax.data.sources.splits import warn_once
from hjepa_jax.data.workers import blocks, start
from hjepa_jax.data.workers.watched import StoppedWaiting, Watched, WorkerDied
from hjepa_jax.errors import DataError

__all__ = [
    "BatchStream",
    "WaitTimer",
    "augmented_pairs",
    "device_prefetch",
    "eval_batches",
    "train_batches",
]

_PAIRS_AT_ONCE = 64
# A batch, and messages about corrupt images.
_Made: TypeAlias = tuple[Batch, list[str]]
_Make: TypeAlias = Callable[[int], _Made]


class BatchStream(Iterator[Batch]):
    """A closable iterator over batches that counts corrupt images.

    Attributes:
      corrupt_count: number of corrupt images replaced in, or masked out of, the batches so far.
    """

    def __init__(self, iterator: Watched[_Made], on_close: Sequence[Callable[[], None]] = ()):
        """Wraps an iterator over (batch, messages about corrupt images).

        Args:
          iterator: closed together with the stream. Batches in shared memory are copied.
          on_close: called in order after the iterator is closed.
        """
        self._iterator = iterator
        self._on_close = on_close
        self._has_workers = bool(on_close)
        self._reported: set[str] = set()
        self._closed = False
        self._begun = False
        self.corrupt_count = 0

    def __next__(self) -> Batch:
        if self._closed:
            raise ValueError("This stream of batches is closed.")
        try:
            batch, corrupt = next(self._iterator)
        except StoppedWaiting:
            raise StopIteration from None
        except WorkerDied as error:
            self.close()
            raise DataError(self._death(error.exit_code)) from None
        except OSError as error:
            if self._begun or not self._has_workers:
                raise
            self.close()
            raise DataError(blocks.unusable(error)) from error
        except RuntimeError as error:
            found = re.search(r"Worker process was terminated .*exit code (-?\d+)", str(error))
            if found is None:
                raise
            self.close()
            raise DataError(self._death(int(found.group(1)))) from error
        self._begun = True
        batch = {name: blocks.taken_out(values) for name, values in batch.items()}
        self.corrupt_count += len(corrupt)
        self._reported.update(corrupt)
        for message in corrupt:
            # It is read again in every epoch.
            warn_once(f"Skipped a corrupt image. {message}")
        return batch

    @property
    def corrupt_images(self) -> tuple[str, ...]:
        """One message per corrupt image so far, sorted."""
        return tuple(sorted(self._reported))

    def _death(self, exit_code: int | None) -> str:
        """Returns the error message about a worker that died."""
        if not self._begun and (exit_code or 0) >= 0:
            return start.start_failure(exit_code)
        return (
            f"A worker process of the input pipeline died ({start.ending(exit_code)}). If it ran "
            "out of memory, lower data.num_workers, data.num_threads or data.prefetch_batches."
        )

    def close(self) -> None:
        """Stops threads and worker processes; may be called more than once."""
        if not self._closed:
            self._closed = True
            self._iterator.close()
            for call in self._on_close:
                call()

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


Stop = Callable[[float], bool]


def _stream(
    make: _Make, first: int, last: int, data: Data, num_threads: int, stop: Stop | None = None
) -> BatchStream:
    """Returns the stream of make(first), ..., make(last - 1), computed ahead by threads."""
    ahead = max(data.prefetch_batches, num_threads)
    return BatchStream(Watched(iter(_dataset(make, first, last, num_threads, ahead)), 0, stop))


def _dataset(
    make: _Make, first: int, last: int, num_threads: int, ahead: int
) -> grain.IterDataset[_Made]:
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=ahead)
    return grain.MapDataset.range(first, last).map(make).to_iter_dataset(options)


def _per_worker(data: Data) -> int:
    return -(-data.prefetch_batches // data.num_workers)


def _in_flight(data: Data) -> int:
    return blocks.in_flight(data.num_workers, _per_worker(data))


def shared_memory_needed(data: Data, source: ImageSource, process_count: int = 1) -> int:
    """Returns the bytes of shared memory that worker processes may fill; 0 without workers."""
    if not data.num_workers:
        return 0
    return _in_flight(data) * batches.batch_bytes(data, source, process_count)


def _worker_stream(
    make: batches.BatchMaker, first: int, last: int, data: Data, stop: Stop | None, needed: int
) -> BatchStream:
    """Returns the same stream as `_stream`, computed in worker processes.

    `needed` is the `shared_memory_needed`.

    Raises:
      DataError: if workers cannot be started or shared memory is too small for their batches.
    """
    start.check_can_start()
    blocks.remove_leftovers()
    shortage = blocks.shortage(needed)
    if shortage:
        raise DataError(shortage)
    # Grain's workers do not start if absl flags are unparsed (notebooks, scripts).
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    blocks.name_semaphores()
    prefix = blocks.new_prefix()
    handover = start.Handover(make)
    try:
        per_worker = _per_worker(data)
        ahead = max(per_worker, data.num_threads)
        dataset = _dataset(handover.function, first, last, data.num_threads, ahead)
        dataset = dataset.map(blocks.Share(prefix)).mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=data.num_workers, per_worker_buffer_size=per_worker
            ),
            worker_init_fn=start.begin_worker,
        )
        iterator = iter(dataset)
    except BaseException:
        handover.close()
        raise
    closing = (handover.close, functools.partial(blocks.remove, prefix))
    watched = Watched(iterator, data.num_workers, stop, length=last - first, ahead=_in_flight(data))
    return BatchStream(watched, closing)


def train_batches(
    data: Data,
    seed: int,
    source: ImageSource,
    *,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_steps: int | None = None,
    stop: Stop | None = None,
) -> BatchStream:
    """Returns the stream of this process's training batches, starting at a step.

    A batch depends only on the seed, the step and the source, not on the number of threads,
    workers and processes or on the step at which the stream starts.

    Args:
      data: the section `data`.
      seed: seed of the order, the augmentation and the replacements of corrupt images.
      source: training images.
      start_step: the step of the first batch.
      process_index: number of this process, which gets rows [p b, (p + 1) b) of each batch.
      process_count: number of processes P; b = batch_size / P.
      num_steps: length of the stream; None = endless.
      stop: called with the seconds spent waiting for the current batch; returning True ends the
        stream.

    Returns:
      An iterator, also a context manager, of dictionaries with
        'global_views': uint8 [Vg, b, image_size, image_size, 3],
        'local_views': uint8 [Vl, b, local_size, local_size, 3], absent without local views,
        'label', 'index': int32 [b].
      With data.backend='device', the input of `device.augment_batch`, which makes these views.

    Raises:
      ValueError: if batch size, source and number of processes are incompatible, or data.backend
        is 'auto'.
      CorruptImageError: while iterating, if an image is corrupt and data.on_corrupt is 'error'.
      DataError: if worker processes cannot be started; while iterating, if an image cannot be
        read or a worker process dies.
    """
    batches.check_stream(data, source, process_count)
    if not 0 <= process_index < process_count or start_step < 0:
        raise ValueError(
            f"Process {process_index} of {process_count} at step {start_step} does not exist."
        )
    make = batches.BatchMaker(data, seed, source, process_index, process_count)
    end = sys.maxsize if num_steps is None else start_step + num_steps
    if data.num_workers:
        needed = shared_memory_needed(data, source, process_count)
        return _worker_stream(make, start_step, end, data, stop, needed)
    return _stream(make, start_step, end, data, data.num_threads, stop)


class _EvalBatchMaker:
    """Maps the index of an evaluation batch to the batch."""

    def __init__(self, data: Data, source: ImageSource, batch_size: int):
        self._data = data
        self._source = source
        self._batch_size = batch_size
        self._decode = loader.Decoder(data, source, full_size=True)

    def __call__(self, number: int) -> tuple[Batch, list[str]]:
        data = self._data
        first = int(number) * self._batch_size
        indices = range(first, min(first + self._batch_size, len(self._source)))
        shape = (self._batch_size, data.image_size, data.image_size, 3)
        images, mask = np.zeros(shape, np.uint8), np.zeros(self._batch_size, bool)
        label = np.zeros(self._batch_size, np.int32)
        corrupt: list[str] = []
        for row, index in enumerate(indices):
            try:
                loaded = self._decode(index)
            except CorruptImageError as error:
                if data.on_corrupt != "skip":
                    raise
                corrupt.append(str(error))
                continue
            images[row] = host.eval_image(loaded.image, data.image_size, data.eval_resize)
            label[row] = loaded.label
            mask[row] = True
        return {"image": images, "label": label, "mask": mask}, corrupt


def eval_batches(data: Data, source: ImageSource, batch_size: int) -> BatchStream:
    """Returns the images of a source once, in order, without augmentation.

    Args:
      data: the section `data`.
      source: images.
      batch_size: images per batch; the last batch is padded with zeros, so compiled functions see a
        single shape.

    Returns:
      An iterator, also a context manager, of dictionaries with
        'image': uint8 [batch_size, image_size, image_size, 3],
        'label': int32 [batch_size],
        'mask': bool [batch_size], False for padding and for skipped corrupt images.

    Raises:
      ValueError: if the batch size is not positive.
      CorruptImageError: while iterating, if an image is corrupt and data.on_corrupt is 'error'.
    """
    if batch_size < 1:
        raise ValueError(f"The evaluation batch size must be positive, not {batch_size}.")
    make = _EvalBatchMaker(data, source, batch_size)
    # Decoding and resizing release the GIL, so threads suffice here.
    threads = max(data.num_threads, data.num_workers)
    return _stream(make, 0, -(-len(source) // batch_size), data, threads)


def augmented_pairs(
    data: Data, source: ImageSource, num: int, seed: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Returns two augmented global views of the first images of a seeded subset.

    Args:
      data: the section `data`.
      source: images.
      num: number of images; all images if the source has fewer.
      seed: seed of the subset, the augmentation and the replacements of corrupt images.

    Returns:
      Two arrays uint8 [num, image_size, image_size, 3].

    Raises:
      CorruptImageError: if an image is corrupt and data.on_corrupt is 'error'.
    """
    chosen = subset(source, num, seed)
    make = batches.BatchMaker(data, seed, chosen)
    key = counter_random.stream_key(seed, Stream.PAIRS)
    size = data.image_size
    pairs = np.empty((2, len(chosen), size, size, 3), np.uint8)

    def fill(start: int) -> None:
        part = np.arange(start, min(start + _PAIRS_AT_ONCE, len(chosen)))
        pairs[:, part] = make.make(key, part, 2, 0)[0]["global_views"]

    threads = max(data.num_threads, data.num_workers)
    with futures.ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(fill, range(0, len(chosen), _PAIRS_AT_ONCE)):
            pass
    return pairs[0], pairs[1]
