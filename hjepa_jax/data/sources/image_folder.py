"""Image folders: `<split>/<class>/<image>`, with encoded files read on demand."""

from __future__ import annotations

import collections
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hjepa_jax.data.cache import ByteCache
from hjepa_jax.data.decode import MAX_ENCODED_BYTES, extensions
from hjepa_jax.data.sources import splits
from hjepa_jax.data.sources.base import NO_LABEL, Record, describe, digest
from hjepa_jax.data.sources.splits import warn_once
from hjepa_jax.errors import DataError, counted
from hjepa_jax.storage.files import printable, read_regular

# Files and folders that operating systems and viewers leave behind, in lower case.
_JUNK = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "lost+found")


class LeftOut:
    """Counts the files that a listing skips.

    Attributes:
      hidden: number of hidden files and folders, and of those that viewers leave behind.
    """

    def __init__(self) -> None:
        self._kinds: collections.Counter[str] = collections.Counter()
        self._example = ""
        self.hidden = 0

    def __len__(self) -> int:
        return sum(self._kinds.values())

    def add(self, path: str, kind: str) -> None:
        """Counts a file that is not an image."""
        self._example = self._example or path
        self._kinds[kind] += 1

    def warn(self, what: str) -> None:
        """Logs one warning if files were skipped."""
        if self._kinds:
            kinds = ", ".join(f"{kind}: {count}" for kind, count in sorted(self._kinds.items()))
            hidden = f", besides {self.hidden} hidden ones" if self.hidden else ""
            count = "1 file is" if len(self) == 1 else f"{len(self)} files are"
            warn_once(
                f"{what}: {count} left out ({kinds}; for example "
                f"{printable(self._example)}){hidden}. Images are read from <class>/ and the "
                f"folders below it, if they end in {', '.join(extensions())}."
            )


class Found(NamedTuple):
    """Content of a folder: names of folders and images, each sorted."""

    folders: list[str]
    images: list[str]


def scan(folder: str, left_out: LeftOut) -> Found:
    """Sorts the entries of one folder; links count as their targets.

    Only the names of files are used, since there may be millions.
    """
    folders, images = list[str](), list[str]()
    known = frozenset(extensions())
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            kind = os.path.splitext(name)[1].lower()
            if name.startswith(".") or name.lower() in _JUNK:
                left_out.hidden += 1
            elif entry.is_dir(follow_symlinks=False):
                folders.append(name)
            elif kind in known:
                images.append(name)
            elif os.path.isdir(entry.path):
                folders.append(name)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                left_out.add(entry.path, "broken links")
            else:
                left_out.add(entry.path, kind or "no extension")
    return Found(sorted(folders), sorted(images))


def images_below(folder: str, left_out: LeftOut) -> list[str]:
    """Returns the images in and below a folder, as sorted relative paths."""
    found: list[str] = []
    # Links to folders are followed, but not in circles.
    seen: set[tuple[int, int]] = set()
    todo = [""]
    while todo:
        inner = todo.pop()
        status = os.stat(os.path.join(folder, inner))
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        here = scan(os.path.join(folder, inner), left_out)
        found += [os.path.join(inner, name) for name in here.images]
        todo += [os.path.join(inner, name) for name in here.folders]
    return sorted(found)


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
        left_out: int = 0,
    ):
        """Makes a source of `files`, paths relative to `root`, with one label each.

        `left_out` is the number of files found that are not images.
        """
        self._root = root
        self._split = split
        self._files = tuple(files)
        self._labels = np.asarray(labels, np.int32)
        self._left_out = left_out
        self.class_names = tuple(class_names)
        self._cache = ByteCache(cache_mb)

    @property
    def description(self) -> str:
        left_out = f", {counted(self._left_out, 'file')} left out" if self._left_out else ""
        return describe(f"folder {printable(self._root)} ({self._split})", self) + left_out

    def __len__(self) -> int:
        return len(self._files)

    def record(self, index: int) -> Record:
        path = self._root / self._files[index]
        read = functools.partial(read_regular, path, MAX_ENCODED_BYTES)
        return Record(self._cache.get(index, read), None, int(self._labels[index]), printable(path))

    def labels(self) -> npt.NDArray[np.int32]:
        return self._labels

    def fingerprint(self) -> str:
        # Sizes of a sample of files detect replaced content without a stat of every file.
        sample = self._files[:: max(1, len(self) // 256)]
        sizes = [_size(self._root / name) for name in sample]
        return digest(self.class_names, self._files, self._labels.tobytes(), sizes)


def _size(path: pathlib.Path) -> str:
    try:
        return str(path.stat().st_size)
    except OSError:
        # A broken link, for example; the error is reported when the image is read.
        return "unreadable"


def split_folders(root: pathlib.Path, split: str) -> list[pathlib.Path]:
    """Returns the folders of a split, chosen by `splits.choose`.

    Raises:
      FileNotFoundError: if there are none.
      DataError: if several fit equally well.
    """
    present = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    found = splits.choose(split, present, printable(root))
    if not found:
        raise FileNotFoundError(
            f"The image folder {printable(root)} has no split '{split}' (folders there: "
            f"{', '.join(map(printable, present)) or 'none'}); expected "
            f"{printable(root / split)}/<class>/<image>."
        )
    return [root / name for name in found]


class _Split:
    """The class folders of one split, and the images outside them."""

    def __init__(self, folders: Sequence[pathlib.Path]):
        self.folder = folders[0]
        self.left_out = LeftOut()
        classes: dict[str, list[pathlib.Path]] = {}
        # Images outside a class folder, by their folder.
        self.loose: list[pathlib.Path] = []
        for folder in folders:
            found = scan(str(folder), self.left_out)
            self.loose += [folder / name for name in found.images]
            for name in found.folders:
                classes.setdefault(name, []).append(folder / name)
        # By name, in the sort order of paths.
        self.classes = dict(sorted(classes.items()))


def _class_names(root: pathlib.Path, split: str, siblings: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of the class folders over all splits, in the order of their numbers."""
    classes: dict[str, list[str]] = {}
    for name in splits.family(split, siblings):
        try:
            classes[name] = list(_Split(split_folders(root, name)).classes)
        except FileNotFoundError:
            continue
    return splits.number_classes(f"folder {printable(root)}", classes)


def open_folder(
    root: pathlib.Path, split: str, cache_mb: float = 0.0, siblings: Sequence[str] = splits.SPLITS
) -> FolderSource:
    """Lists one split of an image folder.

    Every file that Pillow reads is an image, at any depth below its class folder; one warning lists
    the skipped files. Images of a split without class folders have no labels.

    Args:
      root: folder with `<split>/<class>/<image>`; for the names of splits see `splits.choose`.
      split: name of the split.
      cache_mb: MiB of encoded images to keep in memory.
      siblings: splits of the same dataset. Classes are numbered by name in the first existing one,
        then in the next.

    Raises:
      FileNotFoundError: if the root or the split does not exist.
      DataError: if there are no classes or images, a class is empty, or several folders could be
        the split.
    """
    found = _Split(split_folders(root, split))
    names = _class_names(root, split, siblings)
    numbers = {name: number for number, name in enumerate(names)}
    files: list[str] = []
    labels: list[int] = []
    for name, folders in found.classes.items():
        images = [
            f"{below}/{image}"
            for folder, below in zip(folders, (os.path.relpath(f, root) for f in folders))
            for image in images_below(str(folder), found.left_out)
        ]
        if not images:
            raise DataError(
                f"The class folder {printable(folders[0])} has no images "
                f"({', '.join(extensions())}); add images of '{printable(name)}' or remove it."
            )
        files += images
        labels += [numbers[name]] * len(images)
    if found.classes:
        for path in found.loose:
            found.left_out.add(str(path), "outside class folders")
    else:
        files = [os.path.relpath(path, root) for path in found.loose]
        labels = [NO_LABEL] * len(files)
    if not files:
        raise DataError(
            f"{printable(found.folder)} has no class folders; expected "
            f"{printable(found.folder)}/<class>/<image>."
        )
    found.left_out.warn(f"folder {printable(root)} ({split})")
    shown = [printable(name) for name in names]
    return FolderSource(root, split, files, labels, shown, cache_mb, len(found.left_out))
