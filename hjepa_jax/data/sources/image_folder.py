"""Image folders: the images of one split or folder, with encoded files read on demand."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hjepa_jax.data.cache import ByteCache
from hjepa_jax.data.decode import MAX_ENCODED_BYTES, extensions
from hjepa_jax.data.sources import splits
from hjepa_jax.data.sources.base import NO_LABEL, Record, describe, digest
from hjepa_jax.data.sources.layout import (
    AUTO,
    Layout,
    Part,
    recognize,
    split_folders,
)
from hjepa_jax.errors import DataError, counted
from hjepa_jax.storage.files import printable, read_regular


class FolderSource:
    """The images of one split of an image folder.

    Attributes:
      class_names: names of the classes, in the order of the label numbers.
      names: paths of the images relative to the folder.
    """

    def __init__(
        self,
        root: pathlib.Path,
        split: str,
        files: Sequence[str],
        labels: npt.ArrayLike,
        class_names: Sequence[str],
        cache_mb: float,
        left_out: int = 0,
    ):
        """Makes a source of `files`, paths relative to `root`, with one label each.

        `left_out` is the number of files found that are not images.
        """
        self._root = root
        self._split = split
        self.names = tuple(files)
        self._labels = np.asarray(labels, np.int32)
        self._left_out = left_out
        self.class_names = tuple(class_names)
        self._cache = ByteCache(cache_mb)

    @property
    def description(self) -> str:
        left_out = f", {counted(self._left_out, 'file')} left out" if self._left_out else ""
        return describe(f"folder {printable(self._root)} ({self._split})", self) + left_out

    def __len__(self) -> int:
        return len(self.names)

    def record(self, index: int) -> Record:
        path = self._root / self.names[index]
        read = functools.partial(read_regular, path, MAX_ENCODED_BYTES)
        return Record(self._cache.get(index, read), None, int(self._labels[index]), printable(path))

    def labels(self) -> npt.NDArray[np.int32]:
        return self._labels

    def fingerprint(self) -> str:
        # Sizes of a sample of files detect replaced content without a stat of every file.
        sample = self.names[:: max(1, len(self) // 256)]
        sizes = [_size(self._root / name) for name in sample]
        return digest(self.class_names, self.names, self._labels.tobytes(), sizes)


def _size(path: pathlib.Path) -> str:
    try:
        return str(path.stat().st_size)
    except OSError:
        # A broken link, for example; the error is reported when the image is read.
        return "unreadable"


def _class_names(
    root: pathlib.Path, layout: Layout, own: tuple[str, Part], siblings: Sequence[str], labels: str
) -> tuple[str, ...]:
    """Returns the names of the class folders over all splits, in the order of their numbers."""
    split, part = own
    classes: dict[str, list[str]] = {}
    for name in splits.family(split, siblings):
        if name == split or layout.split_names is None:
            classes[name] = list(part.classes)
            continue
        try:
            folders = split_folders(layout, name)
            classes[name] = list(Part(folders, root, labels, whole=False).classes)
        except FileNotFoundError:
            continue
    return splits.number_classes(f"folder {printable(root)}", classes)


def open_folder(
    root: pathlib.Path,
    split: str,
    cache_mb: float = 0.0,
    siblings: Sequence[str] = splits.SPLITS,
    labels: str = AUTO,
) -> FolderSource:
    """Lists one split of an image folder.

    Every file that Pillow reads is an image, at any depth; one warning lists the skipped files, and
    one line says which layout was recognized. A folder without splits is a training split.

    Args:
      root: folder with `<split>/<class>/<image>`, `<class>/<image>`, or images at any depth without
        labels; for the names of splits see `splits.choose`.
      split: name of the split.
      cache_mb: MiB of encoded images to keep in memory.
      siblings: splits of the same dataset, the training split first. Classes are numbered by name
        in the first existing one, then in the next.
      labels: 'auto', 'none' or 'folders', see `layout.Part`.

    Raises:
      FileNotFoundError: if the root or the split does not exist.
      DataError: if there are no classes or images, a class is empty, or several folders could be
        the split.
    """
    layout = recognize(root, splits.family(split, siblings))
    whole = layout.split_names is None
    if whole and split != siblings[0]:
        raise FileNotFoundError(
            f"The image folder {printable(root)} has no split '{split}': its images are in no "
            f"split; expected {printable(root / split)}/<class>/<image>."
        )
    folders = split_folders(layout, split)
    part = Part(folders, root, labels, whole=whole)
    names = _class_names(root, layout, (split, part), siblings, labels)
    numbers = {name: number for number, name in enumerate(names)}
    files = part.images()
    found = [NO_LABEL] * len(files)
    for name, places in part.classes.items():
        images = part.of_class(name)
        if not images:
            raise DataError(
                f"The class folder {printable(places[0])} has no images "
                f"({', '.join(extensions())}); add images of '{printable(name)}' or remove it."
            )
        files += images
        found += [numbers[name]] * len(images)
    if not files:
        raise DataError(
            f"{printable(folders[0])} has no images ({', '.join(extensions())}) in it or below it."
        )
    what = f"folder {printable(root)} ({split})"
    part.left_out.warn(what, "<class>/ and below" if part.classes else "this folder and below")
    where = "a folder without splits" if whole else f"the split in {printable(folders[0].name)}/"
    splits.say_once(f"{what}: {where}, {part.reason}")
    shown = [printable(name) for name in names]
    return FolderSource(root, split, files, found, shown, cache_mb, len(part.left_out))
