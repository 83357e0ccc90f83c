"""The dataset 'folder': prepared shards, Parquet files or an image folder, whichever exists."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from hjepa_jax.data.download.unpacked import ENDINGS, is_archive, unpacked
from hjepa_jax.data.sources import image_folder, parquet, shards, splits
from hjepa_jax.data.sources.base import DataSet, ImageSource
from hjepa_jax.data.sources.derived import unlabeled
from hjepa_jax.data.sources.label_file import LabelFile
from hjepa_jax.data.sources.layout import AUTO, BY_FILE, FOLDERS, NONE
from hjepa_jax.data.sources.tree import LeftOut, images_below
from hjepa_jax.storage.files import local_path, printable


class Folder(DataSet):
    """Whatever `config.data.root` holds."""

    def open(self, split: str, siblings: Sequence[str]) -> ImageSource:
        """Opens a split of the folder; see `open_root`."""
        return open_root(self.root, split, self.data.cache_mb, siblings, self.data.labels)


def open_root(
    root: str | None,
    split: str,
    cache_mb: float,
    siblings: Sequence[str] = splits.SPLITS,
    labels: str = AUTO,
) -> ImageSource:
    """Opens a split of a folder or archive of prepared shards, Parquet files or images.

    Args:
      root: the folder or archive.
      split: name of the split.
      cache_mb: MiB of encoded images to keep in memory.
      siblings: splits whose classes are numbered together, in this order.
      labels: `config.data.labels`.

    Raises:
      ValueError: if no root is given, or the data is inconsistent.
      FileNotFoundError: if the root or the split does not exist.
    """
    if root is None:
        raise ValueError("data.name='folder' needs data.root, the folder that holds the images.")
    path = pathlib.Path(root).expanduser()
    if is_archive(path):
        path = unpacked(path)
    if not path.is_dir():
        raise FileNotFoundError(
            f"data.root {printable(path)} is not a folder or archive ({', '.join(ENDINGS)}); give "
            "the path of the images."
        )
    source: ImageSource | None = None
    if shards.is_prepared(path):
        source = shards.open_shards(path, split, cache_mb)
    elif parquet.has_parquet(path):
        source = parquet.open_parquet(path, split, siblings)
    if source is None and labels in (AUTO, NONE, FOLDERS):
        return image_folder.open_folder(path, split, cache_mb, siblings, labels)
    if source is None:
        found = image_folder.open_folder(path, split, cache_mb, siblings, BY_FILE)
        file = local_path(labels, "config.data.labels")
        return LabelFile(file, images_below(str(path), LeftOut())).applied(found, found.names)
    if labels not in (AUTO, NONE):
        raise ValueError(
            f"data.labels is {labels!r}, but {printable(path)} holds prepared shards or Parquet "
            f"files, which have their own labels: set it to '{AUTO}' or '{NONE}'."
        )
    return source if labels == AUTO else unlabeled(source)
