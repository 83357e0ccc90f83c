"""The dataset 'folder': prepared shards, Parquet files or an image folder, whichever exists."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from hjepa_jax.data.sources import image_folder, parquet, shards, splits
from hjepa_jax.data.sources.base import DataSet, ImageSource
from hjepa_jax.storage.files import printable


class Folder(DataSet):
    """Whatever `config.data.root` holds."""

    def open(self, split: str, siblings: Sequence[str]) -> ImageSource:
        """Opens a split of the folder; see `open_root`."""
        return open_root(self.root, split, self.data.cache_mb, siblings)


def open_root(
    root: str | None, split: str, cache_mb: float, siblings: Sequence[str] = splits.SPLITS
) -> ImageSource:
    """Opens a split of a folder of prepared shards, Parquet files or class folders.

    Args:
      root: the folder.
      split: name of the split.
      cache_mb: MiB of encoded images to keep in memory.
      siblings: splits whose classes are numbered together, in this order.

    Raises:
      ValueError: if no root is given, or the data is inconsistent.
      FileNotFoundError: if the root or the split does not exist.
    """
    if root is None:
        raise ValueError("data.name='folder' needs data.root, the folder that holds the images.")
    path = pathlib.Path(root).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(
            f"data.root {printable(path)} is not a folder; give the image folder's path."
        )
    if shards.is_prepared(path):
        return shards.open_shards(path, split, cache_mb)
    if parquet.has_parquet(path):
        return parquet.open_parquet(path, split, siblings)
    return image_folder.open_folder(path, split, cache_mb, siblings)
