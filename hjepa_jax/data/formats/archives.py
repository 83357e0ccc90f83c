"""Tar archives, read as a bounded stream and unpacked without links.

`tarfile` trusts the length claimed by an extended header and reads that much into memory, so this
module walks the headers itself; `tarfile` still parses their blocks.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import pathlib
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple, Protocol

from hjepa_jax.data.decode import MAX_ENCODED_BYTES
from hjepa_jax.storage.files import check_regular, printable

_BLOCK = 512
_CHUNK = 1 << 20
# Maximum bytes of a name; the longest path in Linux has 4096 bytes.
_MAX_NAME_HEADER = 1 << 16
# Maximum bytes of an archive.
ARCHIVE_BYTES = 1 << 40
# Maximum expansion: images hardly compress, but text files among them do.
_UNPACKED_BYTES = 1 << 30
_UNPACKED_RATIO = 30


class _Stream(Protocol):
    """A stream of bytes, unpacked as it is read."""

    def read(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


_OPENERS: dict[bytes, Callable[[BinaryIO], _Stream]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
_KINDS = {
    tarfile.LNKTYPE: "a link",
    tarfile.SYMTYPE: "a link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: "a folder",
}
FILE = "a file"
FOLDER = "a folder"


class ArchiveError(ValueError):
    """An archive is damaged or exceeds a bound; the message completes a sentence."""


class Member(NamedTuple):
    """One entry of an archive.

    Attributes:
      name: name as stored; may be absolute or lead out of the folder.
      kind: `FILE`, `FOLDER`, or a description of anything else.
      size: claimed size in bytes.
    """

    name: str
    kind: str
    size: int


class Archive:
    """A tar archive, plain or compressed by gzip, bzip2 or xz, that is read once, front to back."""

    def __init__(self, stream: _Stream, limit: int, headers: int):
        self._stream = stream
        self._left = self._limit = limit
        self._headers_left = headers
        self._rest = 0

    def read(self, size: int) -> bytes:
        """Returns up to `size` further bytes of the current member; b'' at its end.

        Raises:
          ArchiveError: if the archive is truncated or unpacks to more than its bound.
        """
        size = min(size, self._rest)
        self._rest -= size
        return self._take(size)

    def chunks(self) -> Iterator[bytes]:
        """Yields the rest of the current member in chunks of at most 1 MiB; errors as `read`."""
        while self._rest:
            yield self.read(_CHUNK)

    def members(self) -> Iterator[Member]:
        """Yields the members; unread bytes of each are skipped.

        Raises:
          ArchiveError: if the archive is damaged, or unpacks to more than its bound.
        """
        while (header := self._header()) is not None:
            given: dict[str, str] = {}
            while header.type in (
                tarfile.XHDTYPE,
                tarfile.SOLARIS_XHDTYPE,
                tarfile.XGLTYPE,
                tarfile.GNUTYPE_LONGNAME,
                tarfile.GNUTYPE_LONGLINK,
            ):
                given |= self._extension(header)
                header = self._header()
                if header is None:
                    raise ArchiveError("it ends after the header of a name")
            size = self._size(header, given)
            self._rest = size
            yield Member(given.get("path", header.name), self._kind(header, given), size)
            for _ in self.chunks():
                pass
            self._take(-size % _BLOCK)

    def _take(self, size: int) -> bytes:
        if size > self._left:
            raise ArchiveError(f"it unpacks to more than {self._limit >> 20} MiB")
        parts, wanted = [], size
        while wanted:
            part = self._stream.read(wanted)
            if not part:
                raise ArchiveError("it ends too early")
            parts.append(part)
            wanted -= len(part)
        self._left -= size
        return b"".join(parts)

    def _header(self) -> tarfile.TarInfo | None:
        """Returns the next header; None at the end."""
        self._headers_left -= 1
        if self._headers_left < 0:
            raise ArchiveError("it has too many members")
        first = self._stream.read(1)
        if not first:
            return None
        block = first + self._take(_BLOCK - 1)
        if not any(block):
            return None
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")

    def _extension(self, header: tarfile.TarInfo) -> dict[str, str]:
        """Returns the attributes that an extended header gives the next member."""
        if not 0 <= header.size <= _MAX_NAME_HEADER:
            raise ArchiveError(f"the header of a name claims {header.size} bytes")
        content = self._take(header.size)
        self._take(-header.size % _BLOCK)
        if header.type == tarfile.GNUTYPE_LONGNAME:
            return {"path": content.split(b"\0")[0].decode("utf-8", "surrogateescape")}
        if header.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            return {}
        return dict(_records(content))

    @staticmethod
    def _size(header: tarfile.TarInfo, given: dict[str, str]) -> int:
        if header.type in _KINDS:
            return 0
        text = given.get("size", str(header.size))
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise ArchiveError(f"the member {printable(header.name)} claims {text[:40]!r} bytes")
        return int(text)

    @staticmethod
    def _kind(header: tarfile.TarInfo, given: dict[str, str]) -> str:
        plain = header.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
        if plain and not any(key.startswith("GNU.sparse") for key in given):
            return FOLDER if header.name.endswith("/") else FILE
        return _KINDS.get(header.type, "not a plain file")


def _records(content: bytes) -> Iterator[tuple[str, str]]:
    """Yields the (key, value) records `LENGTH KEY=VALUE` of a pax header."""
    while content.strip(b"\0"):
        digits, _, _ = content.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        key, equals, value = content[len(digits) + 1 : length - 1].partition(b"=")
        if not equals or content[length - 1 : length] != b"\n":
            raise ArchiveError("the header of a name is damaged")
        yield key.decode("utf-8", "replace"), value.decode("utf-8", "surrogateescape")
        content = content[length:]


@contextlib.contextmanager
def opened(path: pathlib.Path, limit: int, headers: int) -> Iterator[Archive]:
    """Opens a tar archive for one pass over its members.

    Args:
      path: the archive; a regular file.
      limit: maximum number of bytes to unpack in total.
      headers: maximum number of headers, extended ones included.

    Yields:
      The archive.

    Raises:
      OSError: if it cannot be opened or is not a regular file.
      ArchiveError: if it is damaged or exceeds a bound, also while it is read inside the block.
    """
    check_regular(path, ARCHIVE_BYTES)
    with path.open("rb") as file:
        start = file.read(8)
        file.seek(0)
        opener = next((o for magic, o in _OPENERS.items() if start.startswith(magic)), None)
        stream = file if opener is None else opener(file)
        with contextlib.closing(stream):
            try:
                yield Archive(stream, limit, headers)
            except tarfile.TarError as error:
                raise ArchiveError(
                    f"it is not a tar archive, or it is damaged ({error})"
                ) from error
            except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
                raise ArchiveError(f"its compression is damaged ({error})") from error


def unpacked_limit(size: int) -> int:
    """Returns how many bytes an archive of `size` bytes may unpack to."""
    return _UNPACKED_BYTES + _UNPACKED_RATIO * size


class Unpacking:
    """Writes members below a folder, and nothing elsewhere, up to a number of bytes."""

    def __init__(self, folder: pathlib.Path, member_bytes: int, limit: int):
        """Takes an empty folder, the maximum size of a member, and that of all together."""
        self._folder, self._member_bytes = folder, member_bytes
        self._left = self._limit = limit

    def write(self, member: Member, chunks: Iterator[bytes]) -> None:
        """Writes a file, or makes a folder.

        Raises:
          ArchiveError: if it is a link or a device, leads out of the folder, or is too large.
          OSError: if it cannot be written.
        """
        target = self._folder / _inside(member, self._member_bytes)
        if member.kind == FOLDER:
            target.mkdir(parents=True, exist_ok=True)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        written = 0
        with target.open("wb") as file:
            for chunk in chunks:
                written += len(chunk)
                self._left -= len(chunk)
                if written > self._member_bytes:
                    # It claimed to be smaller.
                    raise too_large(member, written, self._member_bytes)
                if self._left < 0:
                    raise ArchiveError(f"it unpacks to more than {self._limit >> 20} MiB")
                file.write(chunk)


def too_large(member: Member, size: int, limit: int) -> ArchiveError:
    """Returns the error of a member that has, or claims, too many bytes."""
    shown = printable(member.name[:200])
    return ArchiveError(f"{shown} has {size} bytes; at most {limit} are unpacked")


def unpack(
    path: pathlib.Path,
    folder: pathlib.Path,
    member_bytes: int = MAX_ENCODED_BYTES,
    wanted: Callable[[str], bool] | None = None,
) -> int:
    """Writes the files of a tar archive below a new, empty folder, and nothing elsewhere.

    No links are created, so none can be followed. Archives that unpack to far more than their own
    size are refused, and members that are too large.

    Args:
      path: the archive.
      folder: an empty folder.
      member_bytes: maximum size of a member; by default, that of an image.
      wanted: whether to unpack a member, by its name; None = all are.

    Returns:
      The number of files that are not wanted.

    Raises:
      ValueError: if it is damaged or too large, or holds links, devices, or names that leave the
        folder.
      OSError: if it cannot be read, or its files cannot be written.
    """
    limit = unpacked_limit(check_regular(path, ARCHIVE_BYTES).st_size)
    unpacking, others = Unpacking(folder, member_bytes, limit), 0
    try:
        with opened(path, limit, limit // _BLOCK) as archive:
            for member in archive.members():
                if wanted is None or wanted(member.name):
                    unpacking.write(member, archive.chunks())
                elif member.kind != FOLDER:
                    others += 1
    except ArchiveError as error:
        raise ValueError(f"Cannot unpack {printable(path)}: {error}.") from error
    return others


def _inside(member: Member, member_bytes: int) -> pathlib.PurePosixPath:
    """Returns the relative path of a member, checked to stay inside the target folder."""
    shown = printable(member.name[:200])
    if member.kind not in (FILE, FOLDER):
        raise ArchiveError(
            f"{shown} is {member.kind}; only files and folders are unpacked (tar's options "
            "--dereference and --hard-dereference store files in place of links)"
        )
    name = pathlib.PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\0" in member.name:
        raise ArchiveError(f"{shown} leads out of the folder that it is unpacked to")
    if member.size > member_bytes:
        raise too_large(member, member.size, member_bytes)
    return name
