"""Labels of Parquet files, by class name; null, NaN, '' and -1 mean no label."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from hjepa_jax.data.formats.parquet_tables import (
    LABEL_COLUMNS,
    concatenate,
    find_column,
    num_rows,
    pyarrow_module,
    read_column,
)
from hjepa_jax.data.sources.base import NO_LABEL
from hjepa_jax.data.sources.splits import warn_once
from hjepa_jax.errors import DataError
from hjepa_jax.storage.files import printable
from hjepa_jax.storage.schema import Anything, Fields, Items, Maybe, parse_json, readable

if TYPE_CHECKING:
    import pyarrow

_Label: TypeAlias = int | float | str


class FoundLabels(NamedTuple):
    """The labels of one split.

    Attributes:
      names: class name of each distinct label; None for one that means no label.
      indices: int64 [N], each row's index into `names`; -1 for no label.
      declared: the classes listed by the files' metadata, in order; None if there is no list.
    """

    names: tuple[str | None, ...]
    indices: npt.NDArray[np.int64]
    declared: tuple[str, ...] | None

    def classes(self) -> tuple[str, ...]:
        """Returns the classes of the split: those declared, in order, then any others found."""
        found = tuple(name for name in self.names if name is not None)
        return found if self.declared is None else tuple(dict.fromkeys((*self.declared, *found)))

    def numbers(self, class_names: Sequence[str]) -> npt.NDArray[np.int32]:
        """Returns the labels int32 [N] as indices into `class_names`; -1 for no label."""
        number = {name: position for position, name in enumerate(class_names)}
        table = [NO_LABEL if name is None else number[name] for name in self.names]
        return np.array([*table, NO_LABEL], np.int32)[self.indices]


def _declared(
    path: pathlib.Path, metadata: Mapping[bytes, bytes] | None, column: str
) -> tuple[str, ...] | None:
    """Returns the class names in the Hugging Face metadata; None if there are none."""
    text = (metadata or {}).get(b"huggingface")
    if text is None:
        return None
    named = Maybe(Fields(optional={"names": Maybe(Items(Anything(), least=1))}))
    features = Maybe(Fields(optional={column: named}))
    declared = Fields(optional={"info": Maybe(Fields(optional={"features": features}))})
    try:
        content = parse_json(text, declared, printable(path), field="huggingface")
    except ValueError as error:
        raise DataError(str(error)) from error
    found = ((content.get("info") or {}).get("features") or {}).get(column) or {}
    names = found.get("names")
    return None if names is None else _distinct([readable(name) for name in names])


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Makes class names distinct: ImageNet has two classes called 'crane'."""
    distinct: dict[str, None] = {}
    for number, name in enumerate(names):
        while name in distinct:
            name = f"{name} ({number})"
        distinct[name] = None
    return tuple(distinct)


def _plain(value: _Label | bytes | None) -> _Label | None:
    """Returns a label as None (no label), an integer, a float or a string."""
    if value is None or value == "" or value == b"":
        return None
    if isinstance(value, bytes):
        # Escaped, so that different bytes remain different classes.
        return value.decode(errors="backslashreplace")
    if isinstance(value, float):
        if math.isnan(value):
            return None
        value = int(value) if value.is_integer() else value
    return None if value == NO_LABEL else value


def _sorted(values: set[_Label]) -> list[_Label]:
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=str)


def _name(value: _Label, declared: tuple[str, ...] | None, where: str) -> str:
    """Returns the class name of a label, looked up among the declared names if it is a number."""
    if declared is None or isinstance(value, str):
        return str(value)
    if not isinstance(value, int) or not 0 <= value < len(declared):
        raise DataError(f"The label {value} in {where} is outside 0 .. {len(declared) - 1}.")
    return declared[value]


def read_labels(files: Sequence[pathlib.Path], usual: tuple[str, ...] | None = None) -> FoundLabels:
    """Reads the labels of a split.

    Args:
      files: the split's files.
      usual: classes declared by another split of the dataset, for files that declare none.

    Returns:
      The labels; all -1, with a warning, if there is no label column.

    Raises:
      DataError: if a file is damaged, or a label is outside the declared classes.
    """
    pyarrow = pyarrow_module()
    columns, declared = [], None
    for path in files:
        column, schema = find_column(path, LABEL_COLUMNS)
        if column is None:
            warn_once(
                f"{printable(path)} has no label column ({', '.join(LABEL_COLUMNS)}), so its "
                f"images have no labels; its columns are: {', '.join(schema.names)}."
            )
            columns.append(pyarrow.table({"label": pyarrow.nulls(num_rows(path))}))
            continue
        declared = declared or _declared(path, schema.metadata, column)
        columns.append(read_column(path, column).rename_columns(["label"]))
    where = printable(files[0])
    labels = _concatenate_labels(columns)
    try:
        encoded = labels.combine_chunks().dictionary_encode()
        values = encoded.dictionary.to_pylist()
        indices = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        plain = [_plain(value) for value in values]
        order = _sorted({value for value in plain if value is not None})
    # Out-of-range dates and invalid text are only detected on conversion.
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"The labels in {where} are {labels.type}; expected one number or text each."
        ) from error
    names = [_name(value, declared or usual, where) for value in order]
    position = {value: number for number, value in enumerate(order)}
    table = [-1 if value is None else position[value] for value in plain]
    rows = np.array([*table, -1], np.int64)[np.asarray(indices, np.int64)]
    return FoundLabels(tuple(names), rows, declared)


def _concatenate_labels(columns: Sequence[pyarrow.Table]) -> pyarrow.ChunkedArray:
    """Returns one chunked array; all-null columns take the type of the others."""
    pyarrow = pyarrow_module()
    kinds = [table.schema.field(0).type for table in columns]
    kind = next((kind for kind in kinds if not pyarrow.types.is_null(kind)), kinds[0])
    schema = pyarrow.schema([pyarrow.field("label", kind)])
    empty = [pyarrow.types.is_null(one) for one in kinds]
    return concatenate(
        [table.cast(schema) if no else table for table, no in zip(columns, empty)]
    ).column(0)
