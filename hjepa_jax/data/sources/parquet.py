"""Parquet files with an image column, as the Hugging Face hub stores datasets.

Needs pyarrow (`pip install hjepa_jax[parquet]`).
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hjepa_jax.data.decode import MAX_ENCODED_BYTES, CorruptImageError
from hjepa_jax.data.formats.parquet_labels import FoundLabels, read_labels
from hjepa_jax.data.formats.parquet_tables import (
    IMAGE_COLUMNS,
    concatenate,
    pyarrow_module,
    read_tables,
)
from hjepa_jax.data.sources import splits
from hjepa_jax.data.sources.base import Record, describe, digest
from hjepa_jax.errors import DataError, first_line
from hjepa_jax.storage.files import printable, read_regular

# The split in a file's name: 'train' of 'train-00000-of-00001.parquet' and 'train_0.parquet'.
_SPLIT_ENDS = re.compile(r"[-.]|_\d")
_PART_OF = re.compile(r"[-_](\d+)[-_]of[-_](\d+)(?=[-_.]|$)")


def has_parquet(root: pathlib.Path) -> bool:
    """Returns whether there are Parquet files in a folder or in its folder `data`."""
    return bool(_present(root))


def _present(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns the Parquet files in a folder and in its folder `data`, sorted."""
    return sorted(
        path
        for folder in (root, root / "data")
        if folder.is_dir()
        for path in folder.iterdir()
        if path.suffix.lower() == ".parquet"
    )


class ParquetSource:
    """Encoded images from Parquet files; the columns stay in memory, memory-mapped if possible."""

    def __init__(
        self,
        root: pathlib.Path,
        split: str,
        files: Sequence[pathlib.Path],
        class_names: Sequence[str],
        found: FoundLabels,
    ):
        """Reads the images of a split.

        Args:
          root: the dataset's folder.
          split: name of the split.
          files: the files of the split.
          class_names: classes of the whole dataset.
          found: the split's labels.
        """
        self._root = root
        self._split = split
        self._files = tuple(files)
        self._found = found
        self.class_names = tuple(class_names)
        tables = read_tables(self._files, IMAGE_COLUMNS)
        self._images = concatenate(tables).column(0)
        # End of each file's rows, to find images stored next to that file.
        self._ends = np.cumsum([len(table) for table in tables])
        self._labels = found.numbers(self.class_names)
        if len(self._labels) == 0:
            raise DataError(f"The Parquet files of {root} ({split}) have no rows.")

    def __reduce__(self) -> tuple[type[ParquetSource], tuple[object, ...]]:
        # Worker processes read the images again instead of receiving their content.
        arguments = (self._root, self._split, self._files, self.class_names, self._found)
        return ParquetSource, arguments

    @property
    def description(self) -> str:
        return describe(f"parquet {printable(self._root)} ({self._split})", self)

    def __len__(self) -> int:
        return len(self._labels)

    def record(self, index: int) -> Record:
        """Returns a row.

        Raises:
          CorruptImageError: if it has neither image bytes nor a path to an image file.
        """
        name = f"{printable(self._root)} ({self._split}) row {index}"
        try:
            value, path = self._images[index].as_py(), None
            if isinstance(value, dict):
                value, path = value.get("bytes"), value.get("path")
            if isinstance(path, (str, bytes)) and path:
                path = os.fsdecode(path)
                name = f"{name} ({printable(path)})"
                value = value or self._read_beside(index, path, name)
        # Text that is not UTF-8, a path with a null character, a cycle of links.
        except (ValueError, RuntimeError) as error:
            raise CorruptImageError(f"Cannot read {name}: {first_line(error)}.") from error
        return Record(value or b"", None, int(self._labels[index]), name)

    def _read_beside(self, index: int, path: str, name: str) -> bytes:
        """Reads an image whose row stores only the path.

        Raises:
          FileNotFoundError: if it is not below the folder of its Parquet file.
        """
        folder = self._files[int(np.searchsorted(self._ends, index, side="right"))].parent
        file = (folder / path).resolve()
        if not file.is_relative_to(folder.resolve()) or not file.exists():
            raise FileNotFoundError(
                f"{name} stores no bytes, and its path is not a file in {folder}; store the "
                "images' bytes in the Parquet file, or put the files there"
            )
        return read_regular(file, MAX_ENCODED_BYTES)

    def labels(self) -> npt.NDArray[np.int32]:
        return self._labels

    def fingerprint(self) -> str:
        sizes = [f"{path.name} {path.stat().st_size}" for path in self._files]
        return digest(self.class_names, sizes, self._labels.tobytes())


def _check_complete(files: Sequence[pathlib.Path], split: str) -> None:
    """Raises DataError if a file is duplicated, or a part of the split is missing."""
    names = [path.name for path in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"The file {printable(twice)} is both in {printable(files[0].parent)} and in "
            f"{printable(files[-1].parent)}, so its images would count twice. Remove one of them."
        )
    # The part numbers found, by name and by the number of parts in the name.
    parts: dict[str, dict[int, list[int]]] = {}
    for path in files:
        match = _PART_OF.search(path.name)
        if match:
            versions = parts.setdefault(path.name[: match.start() + 1], {})
            versions.setdefault(int(match.group(2)), []).append(int(match.group(1)))
    where = f"The split '{split}' in {printable(files[0].parent)}" if files else ""
    for stem, versions in parts.items():
        dash = stem[-1]
        shown = [f"{printable(stem)}*{dash}of{dash}{total:05d}" for total in sorted(versions)]
        if len(versions) > 1:
            raise DataError(
                f"{where} has files of several versions: {' and '.join(shown)}. Keep those of one "
                "version, and remove the others."
            )
        [(total, numbers)] = versions.items()
        # Otherwise half of a dataset would be trained on silently.
        absent = next((number for number in range(total) if number not in numbers), None)
        if absent is not None:
            raise DataError(
                f"{where} is not complete: {len(numbers)} of {total} files {shown[0]} are there; "
                f"part {absent:05d} is missing. Download all of them."
            )
        if len(numbers) > total:
            raise DataError(
                f"{where} has {len(numbers)} files {shown[0]} instead of {total}. Remove those "
                "that do not belong to it."
            )


def split_of(name: str) -> str:
    """Returns the split in the name of a file: 'train' of 'train-00000-of-00001.parquet'."""
    return _SPLIT_ENDS.split(name, 1)[0]


def _split_files(root: pathlib.Path, split: str) -> list[pathlib.Path]:
    """Returns the files of a split, [] if there is none."""
    present = _present(root)
    named = {path: split_of(path.name) for path in present}
    chosen = splits.choose(split, set(named.values()), str(root))
    files = [path for path in present if named[path] in chosen]
    _check_complete(files, split)
    return files


def open_parquet(
    root: pathlib.Path, split: str, siblings: Sequence[str] = splits.SPLITS
) -> ParquetSource:
    """Opens the files `<split>*.parquet` in a folder or in its folder `data`.

    Args:
      root: the folder.
      split: name of the split; for its synonyms see `splits.choose`.
      siblings: splits of the same dataset, whose classes are numbered together.

    Raises:
      ImportError: if pyarrow is not installed.
      FileNotFoundError: if the split has no file.
      DataError: if a file is damaged, missing or lacks an image column.
    """
    pyarrow_module()
    files = _split_files(root, split)
    if not files:
        present = _present(root)
        raise FileNotFoundError(
            f"{root} has no Parquet file of split '{split}' ({split}*.parquet); it has: "
            f"{', '.join(printable(path.name) for path in present[:5])}."
        )
    found: dict[str, FoundLabels] = {}
    names: tuple[str, ...] | None = None
    for name in splits.family(split, siblings):
        others = files if name == split else _split_files(root, name)
        if others:
            found[name] = read_labels(others, names)
            names = names or found[name].declared
    classes = splits.number_classes(
        f"parquet {root}", {name: labels.classes() for name, labels in found.items()}
    )
    return ParquetSource(root, split, files, classes, found[split])
