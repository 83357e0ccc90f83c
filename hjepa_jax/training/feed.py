"""What travels to the devices: images that stay there, and the batches of one or several steps."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from hjepa_jax.config import Settings
from hjepa_jax.config.data import Data
from hjepa_jax.config.training import Train
from hjepa_jax.data.augmentation.device import ResidentImages
from hjepa_jax.data.batches import Batch, batch_length, is_resident, resident_mb
from hjepa_jax.data.pipeline import WaitTimer, device_prefetch
from hjepa_jax.data.sources.base import ImageSource
from hjepa_jax.data.sources.derived import stored_images
from hjepa_jax.errors import ConfigError, first_line
from hjepa_jax.methods.base import Metrics
from hjepa_jax.runtime import distributed, sharding
from hjepa_jax.runtime.devices import on_cpu

# What None stands for on an accelerator that keeps the images.
_STEPS = 8
_log = logging.getLogger(__name__)


def with_backend(settings: Settings, saved: str, source: ImageSource) -> Settings:
    """Returns settings whose `data.backend` is 'host' or 'device', and logs the choice.

    Args:
      settings: the run's settings.
      saved: the backend of the run that is resumed, which 'auto' keeps; 'auto' for a new run.
      source: the training images.

    Raises:
      UserError: if processes choose differently.
    """
    chosen, why = settings.data.backend, "as config.data.backend says"
    if chosen == "auto" and saved != "auto":
        chosen, why = saved, "as in the run that is resumed"
    elif chosen == "auto":
        chosen, why = ("host", "a CPU") if on_cpu() else ("device", "an accelerator")
    distributed.check_same({"data.backend": chosen}, "start all of them on the same kind of device")
    settings = settings.replace({"data.backend": chosen})
    _log.info("augmentation on the %s (%s)%s", chosen, why, _residence(settings.data, source))
    return settings


def _residence(data: Data, source: ImageSource) -> str:
    """Returns where the images are, the end of a sentence about the backend."""
    if data.backend == "host":
        return ""
    size = resident_mb(source)
    if size is None:
        return "; each batch is sent, since the images are not held in memory at one size"
    if is_resident(data, source):
        return f", where all images stay ({size:.1f} MiB)"
    limit = f"config.data.resident_mb={data.resident_mb}"
    return f"; each batch is sent, since the images take {size:.1f} MiB ({limit})"


def resident_images(data: Data, source: ImageSource, mesh: Mesh) -> dict[str, ResidentImages]:
    """Returns the images that stay on every device, as an entry of each batch; {} if none do.

    Raises:
      ConfigError: if they do not fit there.
    """
    stored = stored_images(source) if is_resident(data, source) else None
    if stored is None:
        return {}
    name = "resident_images"
    images = stored.images if stored.rows is None else stored.take(np.arange(len(source)))
    try:
        placed = sharding.put_whole(mesh, name, images.reshape(len(images), -1))
        return {name: ResidentImages(jax.block_until_ready(placed), images.shape[1:])}
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(
            f"the {images.nbytes / 2**20:.1f} MiB of training images do not fit on a device: set "
            f"config.data.resident_mb=0 ({first_line(error)})."
        ) from error


class Dispatch(NamedTuple):
    """The placed batches of the next call of a program.

    Attributes:
      steps: their number K.
      batch: the only one's entries, or if there are several, each entry stacked [K, ...].
    """

    steps: int
    batch: dict[str, PyTree[jax.Array]]


def steps_per_dispatch(train: Train, resident: Mapping[str, ResidentImages]) -> int:
    """Returns `train.steps_per_dispatch`, or what its None stands for."""
    if train.steps_per_dispatch is not None:
        return train.steps_per_dispatch
    return _STEPS if resident and not on_cpu() else 1


def dispatch_lengths(
    first: int, last: int, most: int, ends: Callable[[int], bool]
) -> Iterator[int]:
    """Yields the numbers of steps to dispatch together, `most` or 1, so that two programs suffice.

    Args:
      first: steps done before.
      last: steps done after the last dispatch.
      most: steps of a long dispatch.
      ends: whether something is due after a step (numbered from 1), which must end a dispatch.
    """
    while first < last:
        free = first + most <= last and not any(map(ends, range(first + 1, first + most)))
        yield most if free else 1
        first += most if free else 1


def images_between(data: Data, num_images: int, first: int, last: int) -> int:
    """Returns how many images the batches of numbers first .. last - 1 have.

    Args:
      data: the section `data`.
      num_images: images of the training split.
      first: number of a batch.
      last: number of another.
    """
    sizes = (
        batch_length(n, num_images, data.batch_size, data.drop_last) for n in range(first, last)
    )
    return sum(sizes)


def unlike_batches(data: Data, num_images: int, skipped: int) -> Callable[[int], bool]:
    """Returns whether a dispatch must end after a step, since its batch or the next is partial.

    Args:
      data: the section `data`.
      num_images: images of the training split.
      skipped: batches skipped before, so that step s (numbered from 1) has batch s - 1 + skipped.
    """

    def is_partial(number: int) -> bool:
        return images_between(data, num_images, number, number + 1) < data.batch_size

    return lambda step: is_partial(step - 1 + skipped) or is_partial(step + skipped)


def dispatches(
    stream: Iterator[Batch],
    lengths: Iterable[int],
    mesh: Mesh,
    resident: dict[str, ResidentImages],
    data: Data,
    timer: WaitTimer,
) -> Iterator[Dispatch]:
    """Yields the stream's batches, placed on the mesh ahead of their use, the wait timed.

    Args:
      stream: the batches; if it ends early, a dispatch that is not complete is left out.
      lengths: the numbers of batches to place together.
      mesh: the devices.
      resident: result of `resident_images`.
      data: the section `data`.
      timer: receives the time of waiting for them.
    """

    def together() -> Iterator[list[Batch]]:
        for length in lengths:
            batches = list(itertools.islice(stream, length))
            if len(batches) < length:
                return
            yield batches

    def put(batches: list[Batch]) -> Dispatch:
        several = len(batches) > 1
        batch = batches[0]
        if several:
            batch = {name: np.stack([each[name] for each in batches]) for name in batch}
        placed = sharding.put_batch(mesh, batch, stacked=several)
        return Dispatch(len(batches), placed | resident)

    return timer.measure(device_prefetch(together(), put, data.device_prefetch))


def last_metrics(metrics: Metrics) -> dict[str, np.ndarray]:
    """Waits for the metrics of a dispatch and returns those of its last step."""
    found = jax.device_get(metrics)
    return {name: values if values.ndim == 0 else values[-1] for name, values in found.items()}
