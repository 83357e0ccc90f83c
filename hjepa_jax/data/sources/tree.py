"""Listing of image folders: which entries are images, and which are left out."""

from __future__ import annotations

import collections
import os
from typing import NamedTuple

from hjepa_jax.data.decode import extensions
from hjepa_jax.data.sources.splits import warn_once
from hjepa_jax.storage.files import printable

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

    def warn(self, what: str, read_from: str) -> None:
        """Logs one warning if files were skipped; `read_from` says where images are expected."""
        if self._kinds:
            kinds = ", ".join(f"{kind}: {count}" for kind, count in sorted(self._kinds.items()))
            hidden = f", besides {self.hidden} hidden ones" if self.hidden else ""
            count = "1 file is" if len(self) == 1 else f"{len(self)} files are"
            warn_once(
                f"{what}: {count} left out ({kinds}; for example "
                f"{printable(self._example)}){hidden}. Images are read from {read_from}, if they "
                f"end in {', '.join(extensions())}."
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


def holds_image(folder: str) -> bool:
    """Returns whether there is an image in a folder itself."""
    known = frozenset(extensions())
    with os.scandir(folder) as entries:
        return any(
            os.path.splitext(entry.name)[1].lower() in known
            and not entry.name.startswith(".")
            and not entry.is_dir()
            for entry in entries
        )


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
