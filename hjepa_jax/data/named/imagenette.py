"""Imagenette: ten easy classes of ImageNet, short side 160 pixels (J. Howard, fast.ai)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from hjepa_jax.data.download.catalog import CATALOG, Archive
from hjepa_jax.data.download.store import stored
from hjepa_jax.data.sources import folder
from hjepa_jax.data.sources.base import DataSet, ImageSource

_FOLDER = "imagenette2-160"


class Imagenette(DataSet):
    """The splits 'train' and 'val', an image folder from `config.data.root` or the cache.

    Attributes:
      archive: what the cache is filled with.
    """

    archive: ClassVar[Archive] = CATALOG["imagenette"]

    def open(self, split: str, siblings: Sequence[str]) -> ImageSource:
        """Opens a split; see `folder.open_root`."""
        root = self.root or str(stored(self.archive, download=self.data.download) / _FOLDER)
        return folder.open_root(root, split, self.data.cache_mb, siblings)
