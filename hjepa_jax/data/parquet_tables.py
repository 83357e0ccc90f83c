"""One column of Parquet files, found by its usual names."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from hjepa_jax.errors import DataError

IMAGE_COLUMNS = ("image", "img", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls")


def pyarrow_module() -> Any:
    """Returns pyarrow; ImportError with a sentence if it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "Reading Parquet files needs pyarrow: pip install 'hjepa_jax[parquet]'."
        ) from error
    return pyarrow


def find_column(path: pathlib.Path, candidates: Sequence[str]) -> tuple[str | None, Any]:
    """Returns the first of the candidates that a file has (None if none), and its schema.

    Raises:
      DataError: If the file is damaged.
    """
    pyarrow = pyarrow_module()
    try:
        schema = pyarrow.parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"Cannot read the Parquet file {path}: {error}.") from error
    return next((name for name in candidates if name in schema.names), None), schema


def read_column(path: pathlib.Path, column: str) -> Any:
    """Returns the table of one column of a file.

    Raises:
      DataError: If the file is damaged.
    """
    pyarrow = pyarrow_module()
    try:
        return pyarrow.parquet.read_table(path, columns=[column], memory_map=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"Cannot read the Parquet file {path}: {error}.") from error


def read_tables(files: Sequence[pathlib.Path], candidates: Sequence[str]) -> list[Any]:
    """Returns the image column of each file, as tables of one column 'image'.

    Raises:
      DataError: If a file is damaged, or has no column of images.
    """
    pyarrow = pyarrow_module()
    tables = []
    for path in files:
        name, schema = find_column(path, candidates)
        if name is None:
            raise DataError(
                f"{path} has no image column ({', '.join(candidates)}); its columns are: "
                f"{', '.join(schema.names)}."
            )
        kind = schema.field(name).type
        if pyarrow.types.is_struct(kind):
            fits = "bytes" in [kind.field(i).name for i in range(kind.num_fields)]
        else:
            fits = pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)
        if not fits:
            raise DataError(
                f"The column '{name}' of {path} is {kind}; expected binary, or a struct of bytes "
                "and path."
            )
        tables.append(read_column(path, name).rename_columns(["image"]))
    return tables


def concatenate(tables: Sequence[Any]) -> Any:
    """Returns the tables as one.

    Raises:
      DataError: If their types differ.
    """
    pyarrow = pyarrow_module()
    try:
        return pyarrow.concat_tables([table.replace_schema_metadata() for table in tables])
    except pyarrow.ArrowException as error:
        raise DataError(f"The Parquet files of one split do not fit together: {error}.") from error
