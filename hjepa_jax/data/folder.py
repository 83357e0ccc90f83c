"""Image folders: `<split>/<class>/<image>`, with encoded files read on demand."""

from __future__ import annotations

import functools
import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hjepa_jax.data.cache import ByteCache
from hjepa_jax.data.decode import MAX_ENCODED_BYTES
from hjepa_jax.data.sources import ImageSource, Record, digest
from hjepa_jax.files import printable, read_regular

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
# Folder names that serve for a split, in the order of preference.
_ALIASES = {
    "train": ("train",),
    "test": ("test", "val", "validation"),
    "val": ("val", "validation", "test"),
    "validation": ("validation", "val", "test"),
}


class FolderSource:
    """The images of one split of an image folder."""

    def __init__(
        self,
        root: pathlib.Path,
        split: str,
        files: Sequence[str],
        labels: npt.ArrayLike,
        class_names: Sequence[str],
        cache_mb: float,
    ):
        """Makes a source of `files`, paths relative to `root`, with one label each."""
        self._root = root
        self._split = split
        self._files = tuple(files)
        self._labels = np.asarray(labels, np.int32)
        self.class_names = tuple(class_names)
        self._cache = ByteCache(cache_mb)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def description(self) -> str:
        return (
            f"folder {self._root} ({self._split}): {len(self)} images, {self.num_classes} classes"
        )

    def __len__(self) -> int:
        return len(self._files)

    def record(self, index: int) -> Record:
        path = self._root / self._files[index]
        read = functools.partial(read_regular, path, MAX_ENCODED_BYTES)
        return Record(self._cache.get(index, read), None, int(self._labels[index]), printable(path))

    def labels(self) -> npt.NDArray[np.int32]:
        return self._labels

    def fingerprint(self) -> str:
        # Sizes of a sample of files notice replaced content without a stat of every file.
        sample = self._files[:: max(1, len(self) // 256)]
        sizes = [str((self._root / name).stat().st_size) for name in sample]
        return digest(self.class_names, self._files, self._labels.tobytes(), sizes)


def split_folders(root: pathlib.Path, split: str) -> list[pathlib.Path]:
    """Returns the folders that make up a split: `<split>`, an alias, or parts `<split>.X1` etc.

    Raises:
      FileNotFoundError: If there is none.
    """
    present = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    for name in _ALIASES.get(split, (split,)):
        if name in present:
            return [root / name]
        parts = [entry for entry in present if re.fullmatch(re.escape(name) + r"\.X\d*", entry)]
        if parts:
            return [root / part for part in parts]
    raise FileNotFoundError(
        f"The image folder {root} has no split '{split}' (folders there: "
        f"{', '.join(present) or 'none'}); expected {root}/{split}/<class>/<image>."
    )


def _class_folders(folders: Sequence[pathlib.Path]) -> dict[str, list[pathlib.Path]]:
    """Returns class name -> its folders over the parts of a split, sorted by name."""
    classes: dict[str, list[pathlib.Path]] = {}
    for folder in folders:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir() and not entry.name.startswith("."):
                    classes.setdefault(entry.name, []).append(folder / entry.name)
    return dict(sorted(classes.items()))


def _images_in(folder: pathlib.Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".")
        )


def _check_same_classes(root: pathlib.Path, split: str, names: Sequence[str]) -> None:
    """Raises ValueError if the training split of the same root has other classes."""
    try:
        reference = _class_folders(split_folders(root, "train"))
    except FileNotFoundError:
        return
    extra = sorted(set(names) - set(reference))
    missing = sorted(set(reference) - set(names))
    if extra or missing:
        raise ValueError(
            f"The classes of split '{split}' in {root} differ from those of 'train': "
            f"only in '{split}': {', '.join(extra[:5]) or 'none'}; "
            f"only in 'train': {', '.join(missing[:5]) or 'none'}. Label numbers would not agree."
        )


def open_folder(root: pathlib.Path, split: str, cache_mb: float = 0.0) -> FolderSource:
    """Lists one split of an image folder; classes are numbered in the order of their names.

    Args:
      root: Folder with `<split>/<class>/<image>`; 'test' also finds `val`, and parts such as
        `train.X1`, `train.X2` make one split together.
      split: Name of the split.
      cache_mb: MiB of encoded images to keep in memory.

    Raises:
      FileNotFoundError: If the root or the split does not exist.
      ValueError: If there are no classes or images, a class is empty, or the classes differ from
        those of the training split.
    """
    folders = split_folders(root, split)
    classes = _class_folders(folders)
    if not classes:
        raise ValueError(
            f"{folders[0]} has no class folders; expected {folders[0]}/<class>/<image>."
        )
    _check_same_classes(root, split, list(classes))
    files: list[str] = []
    labels: list[int] = []
    for label, (name, class_folders) in enumerate(classes.items()):
        found = [
            str((folder / image).relative_to(root))
            for folder in class_folders
            for image in _images_in(folder)
        ]
        if not found:
            raise ValueError(
                f"The class folder {class_folders[0]} has no images "
                f"({', '.join(EXTENSIONS)}); add images of '{name}' or remove it."
            )
        files += found
        labels += [label] * len(found)
    return FolderSource(root, split, files, labels, list(classes), cache_mb)


def open_root(root: str | None, split: str, cache_mb: float) -> ImageSource:
    """Opens whatever `data.root` holds: prepared shards, Parquet files or an image folder.

    Raises:
      ValueError: If no root is given, or the data does not fit together.
      FileNotFoundError: If the root or the split does not exist.
    """
    if root is None:
        raise ValueError("data.name='folder' needs data.root, the folder that holds the images.")
    path = pathlib.Path(root).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"data.root {path} is not a folder; give the image folder's path.")
    from hjepa_jax.data import parquet, shards

    if shards.is_prepared(path):
        return shards.open_shards(path, split, cache_mb)
    if parquet.has_parquet(path):
        return parquet.open_parquet(path, split)
    return open_folder(path, split, cache_mb)
