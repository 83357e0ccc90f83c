"""What travels to the devices in a run: the choice of the backend, and images that stay there."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from hjepa_jax.config import Settings
from hjepa_jax.config.data import Data
from hjepa_jax.data.batches import is_resident, resident_mb
from hjepa_jax.data.pipeline import BatchStream, WaitTimer, device_prefetch
from hjepa_jax.data.sources.base import ImageSource
from hjepa_jax.data.sources.derived import stored_images
from hjepa_jax.errors import ConfigError, first_line
from hjepa_jax.runtime import distributed, sharding
from hjepa_jax.runtime.devices import on_cpu

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


def resident_images(data: Data, source: ImageSource, mesh: Mesh) -> dict[str, jax.Array]:
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
        placed = sharding.put_whole(mesh, name, images)
        return {name: jax.block_until_ready(placed)}
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(
            f"the {images.nbytes / 2**20:.1f} MiB of training images do not fit on a device: set "
            f"config.data.resident_mb=0 ({first_line(error)})."
        ) from error


def placed_batches(
    stream: BatchStream,
    mesh: Mesh,
    resident: dict[str, jax.Array],
    data: Data,
    timer: WaitTimer,
) -> Iterator[dict[str, jax.Array]]:
    """Yields the stream's batches, placed on the mesh ahead of their use, the wait timed."""
    put = functools.partial(sharding.put_batch, mesh)
    for batch in timer.measure(device_prefetch(stream, put, data.device_prefetch)):
        yield batch | resident
