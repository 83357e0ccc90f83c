"""Opens ArrayRecord files after checking the sizes they claim.

`array_record` verifies a hash of every chunk but unpacks whatever a chunk claims to hold: a file of
100 kB may contain a record of gigabytes. All chunks of small files are therefore checked when they
are opened; in large files that would cost one read per record.
"""

from __future__ import annotations

import pathlib
import struct

from array_record.python.array_record_data_source import ArrayRecordDataSource

from hjepa_jax.data.decode import MAX_ENCODED_BYTES
from hjepa_jax.errors import first_line
from hjepa_jax.storage.files import check_regular, read_regular

MAX_SHARD_BYTES = 1 << 40
_LOOKED_AT_BYTES = 64 << 20
# A record has a name and a label in addition to the encoded image.
_MAX_CHUNK_BYTES = MAX_ENCODED_BYTES + (1 << 20)
# The layout of Riegeli/records: blocks with a header each, and chunks that run across them.
_BLOCK = 1 << 16
_BLOCK_HEADER = 24
# Hash, size of the data, hash of the data, type and number of records, size of the decoded data.
_CHUNK = struct.Struct("<8xQ8xQQ")


def open_array_record(path: pathlib.Path, count: int) -> ArrayRecordDataSource:
    """Opens one file.

    Args:
      path: the file.
      count: number of records that the dataset's index says it has.

    Returns:
      A source of the stored records as bytes, by index.

    Raises:
      OSError: if it is missing or not a regular file.
      ValueError: if it is visibly damaged, has another number of records, or claims records larger
        than any image.
    """
    try:
        if check_regular(path, MAX_SHARD_BYTES).st_size <= _LOOKED_AT_BYTES:
            _check_chunks(read_regular(path, _LOOKED_AT_BYTES))
        reader = ArrayRecordDataSource([str(path)])
    # array_record raises RuntimeError for every kind of problem.
    except (RuntimeError, _DamagedError) as error:
        raise ValueError(
            f"The shard {path} is damaged ({first_line(error)}); delete it and prepare the data "
            "again."
        ) from error
    if len(reader) != count:
        raise ValueError(
            f"The shard {path} has {len(reader)} records instead of {count}; delete it and prepare "
            "the data again."
        )
    return reader


class _DamagedError(ValueError):
    """The chunks of a file are not contiguous, or claim too many bytes."""


def _after(position: int, size: int) -> int:
    """Returns the position after `size` more bytes, not counting block headers."""
    within = position % _BLOCK
    # Payload bytes of the block before this position.
    done = max(0, within - _BLOCK_HEADER)
    blocks, rest = divmod(done + size, _BLOCK - _BLOCK_HEADER)
    start = position - within + blocks * _BLOCK
    return start + _BLOCK_HEADER + rest if rest else start


def _check_chunks(content: bytes) -> None:
    """Walks the chunks of a file from start to end and checks their claimed sizes.

    Raises:
      _DamagedError: if they are not contiguous or claim too many bytes.
    """
    position = 0
    while position < len(content):
        begin = max(position, position - position % _BLOCK + _BLOCK_HEADER)
        end = _after(begin, _CHUNK.size)
        header = content[begin:end]
        if len(header) > _CHUNK.size:
            border = end - end % _BLOCK - begin
            header = header[:border] + header[border + _BLOCK_HEADER :]
        if len(header) < _CHUNK.size:
            raise _DamagedError("its last chunk is truncated")
        size, number, decoded = _CHUNK.unpack(header)
        if decoded > _MAX_CHUNK_BYTES:
            raise _DamagedError(f"a record at byte {begin} claims {decoded} bytes")
        # A chunk has at least as many bytes as records, not counting the type byte.
        position = max(_after(end, size), begin + (number >> 8))
    if position != len(content):
        raise _DamagedError("its last chunk is truncated")
