"""User-given paths, bounded reads of regular files, and atomic writes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import pathlib
import re
import stat
import tempfile
import unicodedata
import urllib.parse
from collections.abc import Mapping
from typing import BinaryIO, Protocol, overload, runtime_checkable

from hjepa_jax.errors import UserError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_CHUNK_BYTES = 1 << 20
# 'gs://bucket/x', which pathlib turns into 'gs:/bucket/x'.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
# TensorStore treats a backslash as a slash, and orbax 'gs:' anywhere in a path as an address.
_LOST_BY_ORBAX = re.compile(r"\\|[\ud800-\udfff]|(?<=/)(gs|s3|gcs|http|https):(?=/|$)")
# Paths of files below a folder must fit Linux's limit on path length.
_LONGEST_PATH, _ROOM = 4096, 512
_PROBE_BYTES = 4096
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FAILED = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


class UnfitFileError(OSError):
    """A path is not a regular file, or exceeds the size limit; the message is a sentence."""


def kind_of(mode: int) -> str:
    """Describes the type of a path that is not a regular file, from its `st_mode`."""
    return _KINDS.get(stat.S_IFMT(mode), "something else")


def _check(path: str | os.PathLike[str], found: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = kind_of(found.st_mode)
        raise UnfitFileError(f"{printable(path)} is {kind}, not a file; remove or replace it.")
    if found.st_size > limit:
        raise _too_large(path, f"{found.st_size}", limit)


def _too_large(path: str | os.PathLike[str], size: str, limit: int) -> UnfitFileError:
    return UnfitFileError(f"{printable(path)} has {size} bytes; at most {limit} are read.")


def check_regular(path: str | os.PathLike[str], limit: int) -> os.stat_result:
    """Checks a file that a library will open by name.

    Args:
      path: the file; links are followed.
      limit: maximum size in bytes.

    Returns:
      Its `os.stat` result.

    Raises:
      UnfitFileError: if it is not a regular file (folder, pipe, socket, device) or is larger.
      OSError: if it does not exist or is not accessible.
    """
    found = os.stat(path)
    _check(path, found, limit)
    return found


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """Reads an entire untrusted file, without blocking on pipes or reading endlessly.

    Args:
      path: the file; links are followed.
      limit: maximum size in bytes.

    Returns:
      Its content.

    Raises:
      UnfitFileError: if it is not a regular file (folder, pipe, socket, device) or is larger.
      OSError: if it does not exist or cannot be read.
    """
    check_regular(path, limit)
    # It may have changed since; without O_NONBLOCK, opening a pipe would wait for a writer.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(handle)
        _check(path, found, limit)
        # Reading one byte past the size detects the end, or a wrong size (as in /proc).
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


def sha256(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def printable(name: str | os.PathLike[str]) -> str:
    """Returns a file name for display, with control characters and invalid UTF-8 escaped."""
    text = os.fspath(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def local_path(text: str | os.PathLike[str], what: str) -> pathlib.Path:
    """Parses a path given by the user, expanding `~` and removing 'file://'.

    Args:
      text: a path, or a 'file://' URL of this machine.
      what: the option it came from, for messages, such as '--workdir'.

    Raises:
      UserError: if it is empty, a remote URL, has control characters or invalid UTF-8, or if the
        home folder is unknown.
    """
    given = os.fspath(text)
    if not given.strip():
        raise UserError(f"{what} is empty: give the path of a folder or file.")
    scheme = _SCHEME.match(given)
    if scheme and scheme[1].lower() == "file":
        given = _without_scheme(given, what)
    elif scheme:
        raise UserError(
            f"{what}={given} is a remote address, which is not read or written directly: mount it "
            "as a folder (for example with gcsfuse, mountpoint-s3 or rclone mount) and give that."
        )
    bad = [c for c in given if unicodedata.category(c) in ("Cc", "Cs")]
    if bad:
        raise UserError(
            f"{what}={given!a} contains the character {bad[0]!a}: use a path of printable UTF-8 "
            f"text."
        )
    try:
        return pathlib.Path(given).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{what}={given}: its home folder is unknown; give an absolute path."
        ) from error


def _without_scheme(address: str, what: str) -> str:
    """Returns the path of a 'file:' URL.

    Raises:
      UserError: if it names another machine or a relative path.
    """
    rest = address[len("file:") :]
    host, slash, path = rest[2:].partition("/") if rest.startswith("//") else ("", "/", rest[1:])
    if not slash or host not in ("", "localhost"):
        raise UserError(
            f"{what}={address} is on another machine or not an absolute path: write a 'file://' "
            f"address with three slashes, for example file:///data/runs/x."
        )
    return urllib.parse.unquote(f"/{path}")


def check_writable_folder(
    folder: pathlib.Path, what: str, *, checkpoints: bool = False, keep: bool = True
) -> None:
    """Creates a folder and writes a test file to it, before hours of work depend on it.

    Args:
      folder: from `local_path`.
      what: the option it came from, for messages, such as '--workdir'.
      checkpoints: whether orbax will write there, which loses files below some names.
      keep: whether to keep folders that had to be created.

    Raises:
      UserError: if nothing can be written there.
    """
    place = folder.absolute()
    if checkpoints:
        check_holds_checkpoints(folder, what)
    if len(os.fsencode(place)) > _LONGEST_PATH - _ROOM:
        raise UserError(f"{what}={str(folder)[:60]}... is too long: choose a shorter path.")
    absent = [p for p in (place, *place.parents) if not os.path.lexists(p)]
    try:
        place.mkdir(parents=True, exist_ok=True)
        _try_writing(place)
    except OSError as error:
        raise UserError(f"{what}={folder} cannot be written to: {_cause(place, error)}") from error
    finally:
        if not keep:
            for created in absent:
                with contextlib.suppress(OSError):
                    created.rmdir()


def check_holds_checkpoints(folder: pathlib.Path, what: str) -> None:
    """Refuses a path below which orbax could not find its own checkpoints again.

    Raises:
      UserError: naming the offending part of the path.
    """
    place = str(folder.absolute())
    if lost := _LOST_BY_ORBAX.search(place):
        raise UserError(
            f"{what}={printable(folder)} has {lost[0]!a} in its path ({printable(place)}), below "
            "which checkpoints cannot be found again: choose another folder."
        )


def check_writable_file(path: pathlib.Path, what: str) -> None:
    """Checks that a file can be written, without touching an existing one.

    Raises:
      UserError: if it cannot.
    """
    if os.path.isdir(path):
        raise UserError(f"{what}={path} is a folder: give the name of a file.")
    if len(os.fsencode(path.name)) > 200:
        raise UserError(f"{what}={str(path)[:60]}... is too long: choose a shorter name.")
    check_writable_folder(path.parent, what)


def _try_writing(folder: pathlib.Path) -> None:
    # Unbuffered: closing a buffered file of a full disk fails again.
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-", buffering=0) as file:
        if file.write(bytes(_PROBE_BYTES)) < _PROBE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())


def _cause(place: pathlib.Path, error: OSError) -> str:
    """Explains why a folder cannot be written to."""
    for path in reversed((place, *place.parents)):
        if os.path.lexists(path) and not os.path.isdir(path):
            kind = "a broken link" if path.is_symlink() else "a file"
            return f"{path} is {kind}, not a folder; choose another place."
    reason = error.strerror or type(error).__name__
    return f"{reason}; choose another place, or free space and fix its permissions."


def open_log(path: pathlib.Path) -> BinaryIO:
    """Opens a log file for appending, creating it if needed.

    Raises:
      UserError: if the path is a link, pipe, folder or device, or cannot be written.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o666)
        file = os.fdopen(handle, "ab")
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            file.close()
            raise UnfitFileError("it is not a file")
    except OSError as error:
        reason = "it is a link" if path.is_symlink() else error.strerror or str(error)
        raise UserError(
            f"{printable(path)} cannot be appended to ({reason}): remove it, or choose another "
            "folder."
        ) from error
    return file


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file atomically, so readers and crashes never see half of it; text as UTF-8.

    A link at the path is replaced; its target is not touched.

    Raises:
      UnfitFileError: if the path is a folder.
      OSError: if it cannot be written.
    """
    if path.is_dir() and not path.is_symlink():
        raise UnfitFileError(f"{printable(path)} is a folder, not a file; remove or replace it.")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        # mkstemp makes files private; give it the usual permissions.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def is_disk_full(error: BaseException | None) -> bool:
    """Returns whether an error or one of its causes says that the disk or a quota is full."""
    return _says(error, _FULL)


def is_unreadable(error: BaseException | None) -> bool:
    """Returns whether an error or one of its causes says that a device or network failed."""
    return _says(error, _FAILED)


def _says(error: BaseException | None, numbers: tuple[int, ...]) -> bool:
    texts = [os.strerror(number).lower() for number in numbers]
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in numbers:
            return True
        # TensorStore and some Python layers pass the system's message on as text.
        if any(text in str(error).lower() for text in texts):
            return True
        error = error.__cause__ or error.__context__
    return False


@runtime_checkable
class _Listable(Protocol):
    """A numpy or jax array or scalar."""

    def tolist(self) -> object: ...


@overload
def json_ready(value: Mapping[str, object]) -> dict[str, object]: ...
@overload
def json_ready(value: object) -> object: ...
def json_ready(value: object) -> object:
    """Converts a value to strict JSON types; arrays and tuples become lists.

    NaN and infinity become None; a dictionary then lists them by path under 'not_finite', such as
    {'a.b.0': 'nan'}.
    """
    lost: dict[str, str] = {}
    ready = _json_ready(value, "", lost)
    return {**ready, "not_finite": lost} if lost and isinstance(ready, dict) else ready


def _json_ready(value: object, path: str, lost: dict[str, str]) -> object:
    if isinstance(value, _Listable):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _json_ready(v, f"{path}.{k}", lost) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(v, f"{path}.{i}", lost) for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        lost[path.removeprefix(".")] = str(value)
        return None
    return value


def json_text(value: object) -> str:
    """Returns a value as indented, strict JSON; see `json_ready`."""
    return json.dumps(json_ready(value), indent=2, allow_nan=False) + "\n"


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
