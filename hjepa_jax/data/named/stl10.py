"""STL-10 in its binary format, of which each image is read when it is used.

A. Coates, H. Lee, A. Y. Ng, "An analysis of single-layer networks in unsupervised feature
learning", AISTATS 2011.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from hjepa_jax.data.decode import CorruptImageError
from hjepa_jax.data.download.catalog import CATALOG, Archive
from hjepa_jax.data.download.store import stored
from hjepa_jax.data.sources.base import (
    NO_LABEL,
    DataSet,
    ImageSource,
    Record,
    describe,
    digest,
)
from hjepa_jax.errors import DataError
from hjepa_jax.storage import schema
from hjepa_jax.storage.files import check_regular, printable, read_regular

SIDE = 96
_SHAPE = (3, SIDE, SIDE)
_PIXELS = 3 * SIDE * SIDE
_FOLDER = "stl10_binary"
_NAMES = "class_names.txt"
_MAX_IMAGES = 10_000_000


class _Part(NamedTuple):
    """The files of images and labels of a part of the dataset; None = without labels."""

    images: str
    labels: str | None


_TRAIN = _Part("train_X.bin", "train_y.bin")
_UNLABELED = _Part("unlabeled_X.bin", None)
SPLITS: dict[str, tuple[_Part, ...]] = {
    "train": (_TRAIN,),
    "test": (_Part("test_X.bin", "test_y.bin"),),
    "unlabeled": (_UNLABELED,),
    "train+unlabeled": (_TRAIN, _UNLABELED),
}


class Stl10(DataSet):
    """STL-10, from `config.data.root` or the cache.

    Attributes:
      archive: what the cache is filled with.
    """

    archive: ClassVar[Archive] = CATALOG["stl10"]

    def open(self, split: str, siblings: Sequence[str]) -> ImageSource:
        """Opens a split; the classes have the same numbers in all of them.

        Raises:
          FileNotFoundError: if a file is missing.
          DataError: if there is no such split, or a file is damaged.
        """
        del siblings
        root = pathlib.Path(self.root or stored(self.archive, download=self.data.download))
        if split not in SPLITS:
            raise DataError(f"stl10 has the splits {', '.join(SPLITS)}, not {split!r}.")
        inner = root / _FOLDER
        return Stl10Source(inner if inner.is_dir() else root, split)


class Stl10Source:
    """A split of STL-10; pixels are read from the disk as they are used."""

    def __init__(self, folder: pathlib.Path, split: str):
        """Opens a split.

        Args:
          folder: the folder of the binary files.
          split: one of `SPLITS`.

        Raises:
          FileNotFoundError: if a file is missing.
          DataError: if a file is damaged.
        """
        self._folder = folder
        self._split = split
        self.class_names = _class_names(folder / _NAMES)
        parts = SPLITS[split]
        counts = [_count(folder / part.images) for part in parts]
        # The file of each part, and the number of images up to its end.
        self._files = [folder / part.images for part in parts]
        self._ends = np.cumsum(counts)
        self._labels = np.concatenate(
            [
                _labels(folder, part, count, len(self.class_names))
                for part, count in zip(parts, counts, strict=True)
            ]
        )

    def __reduce__(self) -> tuple[type[Stl10Source], tuple[pathlib.Path, str]]:
        # Worker processes open the files themselves.
        return Stl10Source, (self._folder, self._split)

    @property
    def description(self) -> str:
        return describe(f"stl10 {printable(self._folder)} ({self._split})", self)

    def __len__(self) -> int:
        return len(self._labels)

    def record(self, index: int) -> Record:
        """Returns an image.

        Raises:
          CorruptImageError: if its file has become shorter.
          OSError: if it cannot be read.
        """
        name = f"stl10/{self._split}[{index}]"
        return Record(None, self._image(index), int(self._labels[index]), name)

    def _image(self, index: int) -> npt.NDArray[np.uint8]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[part - 1]) if part else 0
        # Not memory-mapped: truncating a mapped file would kill the process.
        with self._files[part].open("rb") as file:
            file.seek((index - first) * _PIXELS)
            content = file.read(_PIXELS)
        if len(content) < _PIXELS:
            raise CorruptImageError(f"{printable(self._files[part])} ends within image {index}.")
        # Stored by channel, and in it by column.
        pixels = np.frombuffer(content, np.uint8).reshape(_SHAPE)
        return np.ascontiguousarray(pixels.transpose(2, 1, 0))

    def labels(self) -> npt.NDArray[np.int32]:
        return self._labels

    def fingerprint(self) -> str:
        sample = [self._image(i) for i in range(0, len(self), max(1, len(self) // 256))]
        return digest(
            self._split, self.class_names, self._labels.tobytes(), np.stack(sample).tobytes()
        )


def _found(path: pathlib.Path) -> pathlib.Path:
    if not path.exists():
        raise FileNotFoundError(
            f"{printable(path)} is missing: set config.data.root to the folder that "
            f"{CATALOG['stl10'].url} unpacks to; or leave it at None, delete the folder in the "
            "cache, and set config.data.download=True."
        )
    return path


def _class_names(path: pathlib.Path) -> tuple[str, ...]:
    """Returns the names of the classes, a line each."""
    text = read_regular(_found(path), schema.MAX_JSON_BYTES).decode(errors="replace")
    names = tuple(schema.readable(line) for line in text.split())
    if not names:
        raise DataError(f"{printable(path)} names no classes.")
    return names


def _count(path: pathlib.Path) -> int:
    """Returns the number of images in a file."""
    size = check_regular(_found(path), _MAX_IMAGES * _PIXELS).st_size
    if size == 0 or size % _PIXELS:
        raise DataError(
            f"{printable(path)} has {size} bytes, which are not a number of images of {_PIXELS} "
            "bytes: it is damaged."
        )
    return size // _PIXELS


def _labels(folder: pathlib.Path, part: _Part, count: int, classes: int) -> npt.NDArray[np.int32]:
    """Returns the class numbers int32 [count] of a part; stored from 1."""
    if part.labels is None:
        return np.full(count, NO_LABEL, np.int32)
    path = _found(folder / part.labels)
    stored_labels = np.frombuffer(read_regular(path, _MAX_IMAGES), np.uint8).astype(np.int32)
    if len(stored_labels) != count:
        raise DataError(
            f"{printable(path)} has {len(stored_labels)} labels for {count} images: it is damaged."
        )
    if stored_labels.min() < 1 or stored_labels.max() > classes:
        raise DataError(f"{printable(path)} has a label outside 1 .. {classes}: it is damaged.")
    return stored_labels - 1
