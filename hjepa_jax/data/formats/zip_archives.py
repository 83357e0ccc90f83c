"""Zip archives, unpacked within bounds and without links."""

from __future__ import annotations

import lzma
import pathlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable

from hjepa_jax.data.formats import archives
from hjepa_jax.data.formats.archives import ArchiveError, Member, Unpacking
from hjepa_jax.errors import first_line
from hjepa_jax.storage.files import check_regular, printable

_CHUNK = 1 << 20
_ENCRYPTED = 0x1
# What `zipfile` raises on bytes that are no intact archive.
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error, ValueError)
_DAMAGE += (NotImplementedError, RuntimeError, OverflowError, IndexError)


def is_zip(path: pathlib.Path) -> bool:
    """Returns whether a file begins as a zip archive does."""
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def unpack(
    path: pathlib.Path, folder: pathlib.Path, wanted: Callable[[str], bool], member_bytes: int
) -> int:
    """Writes the wanted files of a zip archive below a new, empty folder, and nothing elsewhere.

    Args:
      path: the archive.
      folder: an empty folder.
      wanted: whether to unpack a file, by its name.
      member_bytes: maximum size of a file.

    Returns:
      The number of other files.

    Raises:
      ValueError: if it is damaged, encrypted, or too large, or if a wanted member is a link or
        leads out of the folder.
      OSError: if it cannot be read, or its files cannot be written.
    """
    size = check_regular(path, archives.ARCHIVE_BYTES).st_size
    unpacking = Unpacking(folder, member_bytes, archives.unpacked_limit(size))
    others = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.is_dir():
                    continue
                if not wanted(info.filename):
                    others += 1
                    continue
                member = Member(info.filename, _kind(info), info.file_size)
                if info.flag_bits & _ENCRYPTED:
                    raise ArchiveError(f"{printable(info.filename)} is encrypted")
                with archive.open(info) as stream:
                    unpacking.write(member, iter(lambda stream=stream: stream.read(_CHUNK), b""))
    except ArchiveError as error:
        raise ValueError(f"Cannot unpack {printable(path)}: {error}.") from error
    except _DAMAGE as error:
        raise ValueError(
            f"Cannot unpack {printable(path)}: it is damaged or of an unknown kind "
            f"({first_line(error)})."
        ) from error
    return others


def _kind(info: zipfile.ZipInfo) -> str:
    """Returns the kind of a member, by the mode that Unix programs store."""
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) in (0, stat.S_IFREG):
        return archives.FILE
    return "a link" if stat.S_ISLNK(mode) else "not a plain file"
