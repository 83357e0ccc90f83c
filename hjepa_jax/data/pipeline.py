"""The input pipeline: streams of training and evaluation batches.

The position in the training stream is the step: a run continues by asking for the batches from its
step on, with any number of threads, worker processes and hosts.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from types import TracebackType
from typing import Any

import grain.python as grain
import numpy as np
import numpy.typing as npt
from absl import flags, logging

from hjepa_jax.data import augment, batches, counter_random
from hjepa_jax.data.batches import Batch
from hjepa_jax.data.counter_random import Purpose
from hjepa_jax.data.decode import CorruptImageError
from hjepa_jax.data.prefetch import WaitTimer, device_prefetch
from hjepa_jax.data.sources import ImageSource, subset
from hjepa_jax.errors import DataError

__all__ = [
    "BatchStream",
    "WaitTimer",
    "augmented_pairs",
    "device_prefetch",
    "eval_batches",
    "train_batches",
]

_PARENT_POLL_SECONDS = 0.5
_PAIRS_AT_ONCE = 64


def _watch_parent(worker_index: int, worker_count: int) -> None:
    """Ends a worker process soon after its parent is gone, which may have been killed.

    A stop is the parent's to handle: Ctrl-C and job schedulers signal the workers as well, without
    which the parent could not finish its step.
    """
    del worker_index, worker_count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    expected = os.getppid() if parent is None else parent.pid

    def watch() -> None:
        while os.getppid() == expected:
            time.sleep(_PARENT_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watch-parent").start()


def _out_of_shared_memory(values: npt.NDArray) -> npt.NDArray:
    """Returns a copy in ordinary memory, and frees the shared block at once.

    Grain frees it in a background thread that may come too late at the end of the program.
    """
    copied = np.array(values)
    block = getattr(values, "shm", None)
    if block is not None:
        setattr(values, "_unlink_on_del", False)  # noqa: B010
        block.unlink()
    return copied


class BatchStream(Iterator[Batch]):
    """An iterator over batches that can be closed, and counts corrupt images.

    Attributes:
      corrupt_count: Corrupt images replaced in, or masked out of, the batches handed out so far.
    """

    def __init__(self, iterator: Any, copy: bool):
        """Wraps a grain iterator over (batch, messages about corrupt images).

        Batches from worker processes lie in shared memory, which must not outlive the stream:
        `copy` copies them out.
        """
        self._iterator: Any = iterator
        self._copy = copy
        self._reported: set[str] = set()
        self._closed = False
        self.corrupt_count = 0

    def __next__(self) -> Batch:
        if self._closed:
            raise ValueError("This stream of batches is closed.")
        try:
            batch, corrupt = next(self._iterator)
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):
                raise
            self.close()
            raise DataError(
                f"A worker process of the input pipeline died ({error}). If it ran out of memory, "
                "lower data.num_workers, data.num_threads or data.prefetch_batches."
            ) from error
        if self._copy:
            batch = {name: _out_of_shared_memory(values) for name, values in batch.items()}
        self.corrupt_count += len(corrupt)
        for message in corrupt:
            if message not in self._reported:
                self._reported.add(message)
                logging.warning("Skipped a corrupt image. %s", message)
        return batch

    @property
    def corrupt_images(self) -> tuple[str, ...]:
        """What was said of each corrupt image so far, once each, in alphabetical order."""
        return tuple(sorted(self._reported))

    def close(self) -> None:
        """Stops threads and worker processes; may be called more than once."""
        if not self._closed:
            self._closed = True
            self._iterator.close()
            # Grain's iterators complain if they are left to the end of the interpreter.
            self._iterator = None

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _stream(
    make: Any, start: int, stop: int, data: Any, num_workers: int, num_threads: int
) -> BatchStream:
    """Returns the stream of make(start), ..., make(stop - 1), made ahead in order."""
    if min(data.num_threads, data.prefetch_batches) < 1 or data.num_workers < 0:
        raise ValueError(
            "data.num_threads and data.prefetch_batches must be at least 1 and data.num_workers "
            f"at least 0, not {data.num_threads}, {data.prefetch_batches} and {data.num_workers}."
        )
    per_worker = -(-data.prefetch_batches // max(1, num_workers))
    dataset = (
        grain.MapDataset.range(start, stop)
        .map(make)
        .to_iter_dataset(
            grain.ReadOptions(
                num_threads=num_threads,
                prefetch_buffer_size=max(per_worker, num_threads),
            )
        )
    )
    if num_workers:
        # Grain's workers refuse to start on absl flags that nobody parsed (notebooks, scripts).
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=num_workers, per_worker_buffer_size=per_worker
            ),
            worker_init_fn=_watch_parent,
        )
    return BatchStream(iter(dataset), copy=num_workers > 0)


def train_batches(
    config: Any,
    source: ImageSource,
    *,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_steps: int | None = None,
) -> BatchStream:
    """Returns the stream of this process's training batches from a step on.

    The content of a batch is a function of config.seed, the step and the source: the number of
    threads, workers and processes and the step at which the stream begins do not matter.

    Args:
      config: The whole configuration; `seed` and `data` are used.
      source: Training images.
      start_step: The step of the first batch.
      process_index: Number of this process, which gets rows [p b, (p + 1) b) of each batch.
      process_count: Number of processes P; b = batch_size / P.
      num_steps: Length of the stream; None = endless.

    Returns:
      An iterator, also a context manager, of dictionaries with
        'global_views': uint8 [Vg, b, image_size, image_size, 3],
        'local_views': uint8 [Vl, b, local_size, local_size, 3], absent without local views,
        'label', 'index': int32 [b].
      With data.backend='device', what `device_augment.augment_batch` makes these from.

    Raises:
      ValueError: If batch size, source and processes do not fit together.
      CorruptImageError: While iterating, if an image is corrupt and data.on_corrupt is 'error'.
      DataError: While iterating, if an image cannot be read or a worker process died.
    """
    batches.check_stream(config, source, process_count)
    if not 0 <= process_index < process_count or start_step < 0:
        raise ValueError(
            f"Process {process_index} of {process_count} at step {start_step} does not exist."
        )
    make = batches.BatchMaker(config, source, process_index, process_count)
    stop = sys.maxsize if num_steps is None else start_step + num_steps
    data = config.data
    return _stream(make, start_step, stop, data, data.num_workers, data.num_threads)


class _EvalBatchMaker:
    """Maps the number of an evaluation batch to the batch."""

    def __init__(self, config: Any, source: ImageSource, batch_size: int):
        self._data = config.data
        self._source = source
        self._batch_size = batch_size
        self._loader = batches.Loader(config, source, full_size=True)

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
                loaded = self._loader.decode(index)
            except CorruptImageError as error:
                if data.on_corrupt != "skip":
                    raise
                corrupt.append(str(error))
                continue
            images[row] = augment.eval_image(loaded.image, data.image_size, data.eval_resize)
            label[row] = loaded.label
            mask[row] = True
        return {"image": images, "label": label, "mask": mask}, corrupt


def eval_batches(config: Any, source: ImageSource, batch_size: int) -> BatchStream:
    """Returns the images of a source once, in order, without augmentation.

    Args:
      config: The whole configuration; `data` is used.
      source: Images.
      batch_size: Images per batch; the last batch is filled up with zeros, so that compiled
        functions see one shape.

    Returns:
      An iterator, also a context manager, of dictionaries with
        'image': uint8 [batch_size, image_size, image_size, 3],
        'label': int32 [batch_size],
        'mask': bool [batch_size], False for filling and for corrupt images that are skipped.

    Raises:
      ValueError: If the batch size is not positive.
      CorruptImageError: While iterating, if an image is corrupt and data.on_corrupt is 'error'.
    """
    if batch_size < 1:
        raise ValueError(f"The evaluation batch size must be positive, not {batch_size}.")
    make = _EvalBatchMaker(config, source, batch_size)
    # Decoding and resizing release Python's lock, so threads do here what workers do in training.
    threads = max(config.data.num_threads, config.data.num_workers)
    return _stream(make, 0, -(-len(source) // batch_size), config.data, 0, threads)


def augmented_pairs(
    config: Any, source: ImageSource, num: int, seed: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Returns two augmented global views of the first images of a seeded subset.

    Args:
      config: The whole configuration; `data` is used.
      source: Images.
      num: Number of images; all of the source's if it has fewer.
      seed: Seed of the choice and of the augmentation.

    Returns:
      Two arrays uint8 [num, image_size, image_size, 3].

    Raises:
      CorruptImageError: If an image is corrupt and data.on_corrupt is 'error'.
    """
    chosen = subset(source, num, seed)
    make = batches.BatchMaker(config, chosen, 0, 1)
    key = counter_random.stream_key(seed, Purpose.PAIRS)
    size = config.data.image_size
    pairs = np.empty((2, len(chosen), size, size, 3), np.uint8)

    def fill(start: int) -> None:
        part = np.arange(start, min(start + _PAIRS_AT_ONCE, len(chosen)))
        pairs[:, part] = make.make(key, part, 2, 0)[0]["global_views"]

    threads = max(config.data.num_threads, config.data.num_workers)
    with futures.ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(fill, range(0, len(chosen), _PAIRS_AT_ONCE)):
            pass
    return pairs[0], pairs[1]
