"""Recognizes how an image folder is laid out: in splits or whole, by classes or unlabeled."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from hjepa_jax.data.sources import splits
from hjepa_jax.data.sources.tree import LeftOut, holds_image, images_below, scan
from hjepa_jax.errors import DataError, counted
from hjepa_jax.storage.files import printable

# How `config.data.labels` says where labels come from, unless it names a CSV file.
AUTO, NONE, FOLDERS = "auto", "none", "folders"
# Labels are not taken from folders, but from a file.
BY_FILE = "file"


class Layout(NamedTuple):
    """Where the images of a dataset are.

    Attributes:
      base: folder that holds the splits or classes, at or below the root.
      split_names: folders of `base` by split; None = there are no splits, and all images are those
        of the training split.
    """

    base: pathlib.Path
    split_names: dict[str, list[str]] | None


def _entered(root: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
    """Returns the first folder at or below `root` that holds more than one folder, or a split."""
    seen = set[tuple[int, int]]()
    while True:
        status = root.stat()
        found = scan(str(root), LeftOut())
        again = (status.st_dev, status.st_ino) in seen
        if again or found.images or len(found.folders) != 1 or _splits(found.folders, names):
            return root
        seen.add((status.st_dev, status.st_ino))
        root = root / found.folders[0]


def _splits(present: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Returns the folders of each split that is there."""
    found = {}
    for name in names:
        try:
            chosen = splits.choose(name, present, "")
        except DataError:
            # Reported by the split that is opened.
            chosen = list(present)
        if chosen:
            found[name] = chosen
    return found


def recognize(root: pathlib.Path, names: Sequence[str]) -> Layout:
    """Returns the layout of a folder.

    Args:
      root: the folder. Folders around its only folder are entered.
      names: names of the splits, the training split first.
    """
    base = _entered(root, names)
    found = scan(str(base), LeftOut())
    present = _splits(found.folders, names)
    whole = not present and splits.is_training(names[0]) and any(found)
    return Layout(base, None if whole else present)


def split_folders(layout: Layout, split: str) -> list[pathlib.Path]:
    """Returns the folders of a split, chosen by `splits.choose`.

    Raises:
      FileNotFoundError: if there are none.
      DataError: if several fit equally well.
    """
    base = layout.base
    if layout.split_names is None:
        return [base]
    present = scan(str(base), LeftOut()).folders
    found = splits.choose(split, present, printable(base))
    if not found:
        raise FileNotFoundError(
            f"The image folder {printable(base)} has no split '{split}' (folders there: "
            f"{', '.join(map(printable, present)) or 'none'}); expected "
            f"{printable(base / split)}/<class>/<image>."
        )
    return [base / name for name in found]


class Part:
    """The images of one split, or of a folder without splits.

    Attributes:
      classes: the folders of each class, sorted by name; {} without labels.
      left_out: the files that are not images.
      reason: what was recognized, for one line.
    """

    def __init__(
        self, folders: Sequence[pathlib.Path], root: pathlib.Path, labels: str, *, whole: bool
    ):
        """Looks for classes; the images are listed by `images` and `of_class`.

        Args:
          folders: folders of the split.
          root: the folder that paths are relative to.
          labels: AUTO, NONE, FOLDERS or BY_FILE. AUTO takes class names from folders that hold
            images themselves; a folder without splits needs two of them, and no image beside them.
          whole: whether the folder has no splits.

        Raises:
          DataError: if folders shall name the classes, and there are none.
        """
        self.left_out = LeftOut()
        self._root = root
        self._loose: list[pathlib.Path] = []
        inner: dict[str, list[pathlib.Path]] = {}
        for folder in folders:
            found = scan(str(folder), self.left_out)
            self._loose += [folder / name for name in found.images]
            for name in found.folders:
                inner.setdefault(name, []).append(folder / name)
        self._inner = dict(sorted(inner.items()))
        if whole:
            self._drop_empty()
        unlabeled = self._why_no_classes(labels, whole=whole)
        self.classes = self._inner if unlabeled is None else {}
        self.reason = unlabeled or f"labels from {counted(len(self.classes), 'folder')}"
        if self.classes:
            for path in self._loose:
                self.left_out.add(str(path), "outside class folders")

    def _drop_empty(self) -> None:
        """Leaves out folders without an image, such as one of notes."""
        for name, places in list(self._inner.items()):
            if not any(holds_image(str(p)) or images_below(str(p), LeftOut()) for p in places):
                self.left_out.add(str(places[0]), "folders without images")
                del self._inner[name]

    def images(self) -> list[str]:
        """Returns the images without labels, as sorted paths; [] if there are classes."""
        if self.classes:
            return []
        loose = [os.path.relpath(path, self._root) for path in self._loose]
        return sorted([*loose, *(image for name in self._inner for image in self._below(name))])

    def of_class(self, name: str) -> list[str]:
        """Returns the images of a class, as paths."""
        return self._below(name)

    def _below(self, name: str) -> list[str]:
        return [
            os.path.join(os.path.relpath(place, self._root), image)
            for place in self._inner[name]
            for image in images_below(str(place), self.left_out)
        ]

    def _why_no_classes(self, labels: str, *, whole: bool) -> str | None:
        """Returns why the folders are not classes; None if they are."""
        if labels == BY_FILE:
            return "labels from a file"
        if labels == NONE:
            return f"no labels, as config.data.labels='{NONE}' says"
        if labels == FOLDERS:
            if not self._inner:
                raise DataError(
                    f"config.data.labels is '{FOLDERS}', but {printable(self._root)} has no "
                    f"folders that could name the classes: set it to '{NONE}'."
                )
            return None
        if not self._inner:
            return "no labels, since no folders name classes"
        count = counted(len(self._inner), "folder")
        how = f"; config.data.labels='{FOLDERS}' takes the names of the {count} as labels"
        if whole and len(self._inner) == 1:
            return f"no labels, since one folder alone distinguishes no classes{how}"
        if whole and self._loose:
            return f"no labels, since images lie beside folders{how}"
        deep = next((n for n, places in self._inner.items() if _only_folders(places)), None)
        if deep is not None:
            return f"no labels, since folders such as {printable(deep)} hold only folders{how}"
        return None


def _only_folders(places: Sequence[pathlib.Path]) -> bool:
    """Returns whether folders hold images, but only in folders of their own."""
    if any(holds_image(str(place)) for place in places):
        return False
    return any(images_below(str(place), LeftOut()) for place in places)
