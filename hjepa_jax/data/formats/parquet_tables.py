"""Reads one column of Parquet files, found by its usual names."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from hjepa_jax.errors import DataError, first_line
from hjepa_jax.storage.files import check_regular, printable

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

IMAGE_COLUMNS = ("image", "img", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls")
_FILE_BYTES = 1 << 40
# Images hardly shrink when they are packed; labels and raw pixels do.
_DECODED_BYTES = 256 << 20
_DECODED_RATIO = 20
_BATCH_ROWS = 1024


def pyarrow_module() -> ModuleType:
    """Imports pyarrow.

    Raises:
      ImportError: if it is not installed; the message says how to install it.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "Reading Parquet files needs pyarrow: pip install 'hjepa_jax[parquet]'."
        ) from error
    return pyarrow


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    """Opens a Parquet file.

    Errors of pyarrow inside the block become a DataError that names the file.

    Yields:
      The `pyarrow.parquet.ParquetFile`.

    Raises:
      DataError: if it is damaged, not a regular file, or claims more rows than it has bytes.
    """
    pyarrow = pyarrow_module()
    try:
        size = check_regular(path, _FILE_BYTES).st_size
        # Not memory-mapped: truncating a mapped file would kill the process.
        with (
            # As bytes: pyarrow does not accept strings for names that are not UTF-8.
            pyarrow.OSFile(os.fsencode(path)) as stored,
            pyarrow.parquet.ParquetFile(stored) as file,
        ):
            rows = file.metadata.num_rows
            # An image has more than one byte, even if rows repeat.
            if not 0 <= rows <= size:
                raise ValueError(f"it claims {rows} rows in {size} bytes")
            yield file
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        raise DataError(
            f"Cannot read the Parquet file {printable(path)}: {first_line(error).rstrip('.')}."
        ) from error


def find_column(path: pathlib.Path, candidates: Sequence[str]) -> tuple[str | None, pyarrow.Schema]:
    """Returns the first candidate that is a column of a file (else None), and the file's schema.

    Raises:
      DataError: if the file is damaged or has that column twice.
    """
    with opened(path) as file:
        schema = file.schema_arrow
        found = [name for name in candidates if name in schema.names]
        if found and schema.names.count(found[0]) > 1:
            raise ValueError(f"it has the column '{found[0]}' twice")
        return next(iter(found), None), schema


def num_rows(path: pathlib.Path) -> int:
    """Returns the number of rows.

    Raises:
      DataError: if the file is damaged.
    """
    with opened(path) as file:
        return file.metadata.num_rows


def read_column(path: pathlib.Path, column: str) -> pyarrow.Table:
    """Returns one column of a file as a table, decoded in bounded steps.

    A value shared by many rows is stored once, so a small file may decode to any size.

    Raises:
      DataError: if the file is damaged, or decodes to far more than its size.
    """
    pyarrow = pyarrow_module()
    batches, total = [], 0
    with opened(path) as file:
        limit = _DECODED_BYTES + _DECODED_RATIO * path.stat().st_size
        schema = pyarrow.schema([file.schema_arrow.field(column)], file.schema_arrow.metadata)
        for group in range(file.num_row_groups):
            claimed = _claimed_bytes(file.metadata.row_group(group), column)
            # No value is larger than its unpacked group, which bounds a batch by half.
            rows = min(_BATCH_ROWS, max(1, limit // 2 // max(1, claimed)))
            if claimed + total <= limit:
                for batch in file.iter_batches(rows, row_groups=[group], columns=[column]):
                    total += batch.nbytes
                    batches.append(batch)
                    if total > limit:
                        break
            if max(claimed, total) > limit:
                raise ValueError(f"its column '{column}' decodes to more than {limit >> 20} MiB")
        table = pyarrow.Table.from_batches(batches, schema)
        if len(table) != file.metadata.num_rows:
            raise ValueError(f"it has {len(table)} rows instead of {file.metadata.num_rows}")
        return table


def _claimed_bytes(group: pyarrow.parquet.RowGroupMetaData, column: str) -> int:
    """Returns the unpacked bytes of a column in a row group, as claimed by the metadata."""
    parts = [group.column(number) for number in range(group.num_columns)]
    return sum(
        part.total_uncompressed_size
        for part in parts
        if part.path_in_schema == column or part.path_in_schema.startswith(f"{column}.")
    )


def read_tables(files: Sequence[pathlib.Path], candidates: Sequence[str]) -> list[pyarrow.Table]:
    """Returns the image column of each file, as a table with the single column 'image'.

    Raises:
      DataError: if a file is damaged, or has no column of images.
    """
    pyarrow = pyarrow_module()
    tables = []
    for path in files:
        name, schema = find_column(path, candidates)
        if name is None:
            raise DataError(
                f"{printable(path)} has no image column ({', '.join(candidates)}); its columns "
                f"are: {', '.join(schema.names)}."
            )
        kind = schema.field(name).type
        stored = kind
        if pyarrow.types.is_struct(kind):
            inner = kind.get_field_index("bytes")
            stored = kind.field(inner).type if inner >= 0 else None
        if stored is None or not any(
            fits(stored)
            for fits in (
                pyarrow.types.is_binary,
                pyarrow.types.is_large_binary,
                pyarrow.types.is_null,
            )
        ):
            raise DataError(
                f"The column '{name}' of {printable(path)} is {kind}; expected binary, or a "
                "struct of bytes and path."
            )
        tables.append(read_column(path, name).rename_columns(["image"]))
    return tables


def concatenate(tables: Sequence[pyarrow.Table]) -> pyarrow.Table:
    """Concatenates tables.

    Raises:
      DataError: if their types differ.
    """
    pyarrow = pyarrow_module()
    try:
        return pyarrow.concat_tables([table.replace_schema_metadata() for table in tables])
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"The Parquet files of one split have different types: {error}.") from error
