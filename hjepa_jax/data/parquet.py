"""Parquet files with an image column, as the Hugging Face hub stores data sets.

Needs pyarrow (`pip install hjepa_jax[parquet]`).
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hjepa_jax.data.sources import Record, digest

_IMAGE_COLUMNS = ("image", "img", "jpg", "png")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls")
_ALIASES = {"test": ("test", "validation", "val"), "val": ("val", "validation", "test")}


def has_parquet(root: pathlib.Path) -> bool:
    """Returns whether there are Parquet files in a folder or in its folder `data`."""
    return any(next(folder.glob("*.parquet"), None) for folder in (root, root / "data"))


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "Reading Parquet files needs pyarrow: pip install 'hjepa_jax[parquet]'."
        ) from error
    return pyarrow


class ParquetSource:
    """Encoded images from Parquet files; the columns stay in memory, memory-mapped if possible."""

    def __init__(self, root: pathlib.Path, split: str, files: Sequence[pathlib.Path]):
        self._root = root
        self._split = split
        self._files = tuple(files)
        table = _read_table(self._files)
        self._images = table.column(0)
        labels = table.column(1).to_numpy()
        names = _class_names(table.schema, table.schema.names[1])
        if names is None:
            classes, labels = np.unique(labels, return_inverse=True)
            names = tuple(str(name) for name in classes)
        self._labels = np.asarray(labels, np.int32)
        self.class_names = names
        if len(self._labels) == 0:
            raise ValueError(f"The Parquet files of {root} ({split}) have no rows.")
        if self._labels.min() < 0 or self._labels.max() >= len(names):
            raise ValueError(f"A label in {root} ({split}) is outside 0 .. {len(names) - 1}.")

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes read the files again rather than receive their content.
        return ParquetSource, (self._root, self._split, self._files)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def description(self) -> str:
        return (
            f"parquet {self._root} ({self._split}): {len(self)} images, {self.num_classes} classes"
        )

    def __len__(self) -> int:
        return len(self._labels)

    def record(self, index: int) -> Record:
        value = self._images[index].as_py()
        name = f"{self._root} ({self._split}) row {index}"
        if isinstance(value, dict):
            if value.get("path"):
                name = f"{name} ({value['path']})"
            value = value.get("bytes")
        return Record(value or b"", None, int(self._labels[index]), name)

    def labels(self) -> npt.NDArray[np.int32]:
        return self._labels

    def fingerprint(self) -> str:
        sizes = [f"{path.name} {path.stat().st_size}" for path in self._files]
        return digest(self.class_names, sizes, self._labels.tobytes())


def _column(names: Sequence[str], candidates: Sequence[str], what: str, path: pathlib.Path) -> str:
    for candidate in candidates:
        if candidate in names:
            return candidate
    raise ValueError(
        f"{path} has no {what} column ({', '.join(candidates)}); its columns are: "
        f"{', '.join(names)}."
    )


def _read_table(files: Sequence[pathlib.Path]) -> Any:
    """Returns a table of two columns, images and labels."""
    pyarrow = _pyarrow()
    tables = []
    for path in files:
        try:
            names = pyarrow.parquet.read_schema(path).names
            image = _column(names, _IMAGE_COLUMNS, "image", path)
            label = _column(names, _LABEL_COLUMNS, "label", path)
            table = pyarrow.parquet.read_table(path, columns=[image, label], memory_map=True)
        except pyarrow.ArrowException as error:
            raise ValueError(f"Cannot read the Parquet file {path}: {error}.") from error
        kind = table.schema.field(image).type
        if pyarrow.types.is_struct(kind):
            fields = [kind.field(i).name for i in range(kind.num_fields)]
            fits = "bytes" in fields
        else:
            fits = pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)
        if not fits:
            raise ValueError(
                f"The column '{image}' of {path} is {kind}; expected binary, or a struct of bytes "
                "and path."
            )
        tables.append(table.select([image, label]))
    return pyarrow.concat_tables(tables)


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """Returns the class names that the Hugging Face metadata gives, if it does."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    features = json.loads(metadata).get("info", {}).get("features", {})
    names = features.get(label, {}).get("names")
    return None if names is None else tuple(str(name) for name in names)


def open_parquet(root: pathlib.Path, split: str) -> ParquetSource:
    """Opens the files `<split>*.parquet` in a folder or in its folder `data`.

    Raises:
      ImportError: If pyarrow is not installed.
      FileNotFoundError: If the split has no file.
      ValueError: If a file is damaged or lacks an image or label column.
    """
    _pyarrow()
    present = sorted([*root.glob("*.parquet"), *(root / "data").glob("*.parquet")])
    for name in _ALIASES.get(split, (split,)):
        files = [path for path in present if path.name.split("-")[0].split(".")[0] == name]
        if files:
            return ParquetSource(root, split, files)
    raise FileNotFoundError(
        f"{root} has no Parquet file of split '{split}' ({split}*.parquet); it has: "
        f"{', '.join(path.name for path in present[:5])}."
    )
