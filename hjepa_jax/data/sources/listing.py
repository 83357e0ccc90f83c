"""Finding the images below a folder, and telling what is left out."""

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
    """Counts what a listing leaves out.

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
        """Counts a file of a kind that is no image."""
        self._example = self._example or path
        self._kinds[kind] += 1

    def warn(self, what: str) -> None:
        """Logs one warning, if there is anything to say."""
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
    """What lies in a folder: names of folders and images, each sorted."""

    folders: list[str]
    images: list[str]


def scan(folder: str, left_out: LeftOut) -> Found:
    """Sorts the entries of one folder; a link counts as what it leads to.

    Nothing is asked of a file but its name: there may be millions.
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
    """Returns the images in a folder and in those below it, as sorted paths relative to it."""
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
