"""Reading regular files within bounds, and writing text files whole or not at all."""

from __future__ import annotations

import os
import pathlib
import stat
import tempfile

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_CHUNK_BYTES = 1 << 20


class UnfitFileError(OSError):
    """A path leads to no regular file, or to more bytes than allowed; the message is a sentence."""


def _check(path: str | os.PathLike[str], found: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise UnfitFileError(f"{printable(path)} is {kind}, not a file; remove or replace it.")
    if found.st_size > limit:
        raise _too_large(path, f"{found.st_size}", limit)


def _too_large(path: str | os.PathLike[str], size: str, limit: int) -> UnfitFileError:
    return UnfitFileError(f"{printable(path)} has {size} bytes; at most {limit} are read.")


def check_regular(path: str | os.PathLike[str], limit: int) -> os.stat_result:
    """Checks a file that a library will open by its name.

    Args:
      path: the file; links are followed.
      limit: the most bytes that it may have.

    Returns:
      Its status.

    Raises:
      UnfitFileError: if it is no regular file (a folder, pipe, socket, device), or is larger.
      OSError: if it does not exist or cannot be looked at.
    """
    found = os.stat(path)
    _check(path, found, limit)
    return found


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """Reads a whole file that others provide; never waits for a pipe or reads without end.

    Args:
      path: the file; links are followed.
      limit: the most bytes that it may have.

    Returns:
      Its content.

    Raises:
      UnfitFileError: if it is no regular file (a folder, pipe, socket, device), or is larger.
      OSError: if it does not exist or cannot be read.
    """
    check_regular(path, limit)
    # It may have changed since; without O_NONBLOCK, opening a pipe waits for somebody to write.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(handle)
        _check(path, found, limit)
        # One byte more than the size shows the end, or that the size is not true (as in /proc).
        parts, count, wanted = list[bytes](), 0, found.st_size + 1
        while part := os.read(handle, min(wanted, limit + 1 - count)):
            parts.append(part)
            count += len(part)
            if count > limit:
                raise _too_large(path, f"more than {limit}", limit)
            wanted = max(found.st_size + 1 - count, _CHUNK_BYTES)
        return b"".join(parts)
    finally:
        os.close(handle)


def printable(name: str | os.PathLike[str]) -> str:
    """Returns a file name for people: what is not UTF-8 or a control character is escaped."""
    text = os.fspath(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a text file so that a reader, or a crash, never meets half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp makes files private; what is written here is as readable as any other file.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
