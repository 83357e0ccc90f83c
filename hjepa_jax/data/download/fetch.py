"""Downloads one file: continued where it was cut off, bounded, and checked before it counts."""

from __future__ import annotations

import dataclasses
import http.client
import pathlib
import re
import shutil
import time
from collections.abc import Sequence
from typing import BinaryIO, TypedDict

from hjepa_jax.data.download import connection
from hjepa_jax.data.download.cache_folder import too_full, unwritable
from hjepa_jax.data.download.catalog import Checksum
from hjepa_jax.data.download.connection import NoConnectionError, RangeError, RefusedError
from hjepa_jax.data.download.display import Display, megabytes
from hjepa_jax.errors import DataError, first_line
from hjepa_jax.storage import schema
from hjepa_jax.storage.files import json_text, printable, write_atomically

# Pauses before further attempts, for as long as no attempt gets further than those before it.
RETRY_SECONDS = (1.0, 2.0, 4.0)
_CHUNK_BYTES = 1 << 18
# A published size may be out of date; what is far larger is something else.
_TOLERANCE = 2
_LARGEST_BYTES = 1 << 40
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})")


class _Begun(TypedDict):
    """Address, version and complete size of a file of which a part was received."""

    url: str
    validator: str | None
    total: int | None


_BEGUN: schema.Fields[_Begun] = schema.Fields(
    {
        "url": schema.Text(most=4000),
        "validator": schema.Maybe(schema.Text(most=500)),
        "total": schema.Maybe(schema.Whole(0)),
    }
)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A file to download.

    Attributes:
      url: where it is.
      size: its published size in bytes.
      checksum: its published checksum.
      place: where it belongs.
    """

    url: str
    size: int
    checksum: Checksum
    place: pathlib.Path

    @property
    def part(self) -> pathlib.Path:
        """The file that is received; complete after `fetch`."""
        return self.place.with_name(f"{self.place.name}.part")

    @property
    def begun(self) -> pathlib.Path:
        """The file that says what `part` is a part of."""
        return self.place.with_name(f"{self.place.name}.part.json")

    @property
    def by_hand(self) -> str:
        """How to get it without this program, to complete a sentence."""
        return (
            f"download {self.url} ({self.checksum}) on any machine and put it at "
            f"{printable(self.place)}"
        )

    def discard(self) -> None:
        """Removes what was received."""
        self.part.unlink(missing_ok=True)
        self.begun.unlink(missing_ok=True)


class _CutError(Exception):
    """A connection could not be made, or broke; the message says how."""


def fetch(wanted: Wanted, retry_seconds: Sequence[float] = RETRY_SECONDS) -> None:
    """Downloads a file to `wanted.part`, and checks it.

    What an earlier call received is continued if the server still has the same version (HTTP ranges
    with If-Range); otherwise the download starts anew. A connection that breaks is made again.

    Args:
      wanted: the file.
      retry_seconds: the pauses before further attempts.

    Raises:
      DataError: if there is no connection, the server refuses, the disk is full, or the checksum
        is wrong, which also removes the file.
    """
    try:
        wanted.place.parent.mkdir(parents=True, exist_ok=True)
        with Display(wanted.place.name) as display:
            _complete(wanted, display, retry_seconds)
        found = wanted.checksum.of(wanted.part)
        if found != wanted.checksum:
            wanted.discard()
    except OSError as error:
        raise unwritable(wanted.part, error, _kept(wanted)) from error
    if found != wanted.checksum:
        raise DataError(
            f"What {wanted.url} sends has the checksum {found} instead of the published "
            f"{wanted.checksum}, so it was deleted. Start the same command again; if that does not "
            f"help, {wanted.by_hand}."
        )


def _complete(wanted: Wanted, display: Display, retry_seconds: Sequence[float]) -> None:
    """Receives a file in as many attempts as it takes."""
    furthest, failures, received = _size(wanted), 0, False
    while not _is_whole(wanted):
        before = _size(wanted)
        try:
            _receive(wanted, display)
        except RangeError:
            if before == 0:
                raise
            wanted.discard()  # another version, which starts anew
        except RefusedError as error:
            raise DataError(f"{error} Otherwise, {wanted.by_hand}.") from error
        except _CutError as error:
            received = received or _size(wanted) != before
            failures = 0 if _size(wanted) > furthest else failures + 1
            furthest = max(furthest, _size(wanted))
            if not received or failures > len(retry_seconds):
                raise DataError(
                    f"{wanted.url} cannot be downloaded ({error}): start the same command again "
                    f"when there is a connection{_kept(wanted)}, or {wanted.by_hand}."
                ) from error
            time.sleep(retry_seconds[max(failures - 1, 0)] if retry_seconds else 0.0)


def _receive(wanted: Wanted, display: Display) -> None:
    """Receives a file, or what is left of it, in one attempt.

    Raises:
      _CutError: if the connection cannot be made, or breaks.
      RangeError: if what was received belongs to another version.
      DataError: if the server refuses, or the file is too large for the disk.
      OSError: if it cannot be written.
    """
    begun, offset, headers = _read_begun(wanted), 0, dict[str, str]()
    if begun is not None and begun["validator"] is not None and (offset := _size(wanted)):
        headers = {"Range": f"bytes={offset}-", "If-Range": begun["validator"]}
    try:
        with connection.opened(wanted.url, headers) as response:
            version = _version(response)
            if response.status == http.client.PARTIAL_CONTENT:
                total = _total(response, offset)
                if begun is None or version != begun["validator"]:
                    raise RangeError(f"{wanted.url} has changed.")
            else:  # the whole file: the server knows no ranges, or has another version
                offset, total = 0, response.length
            _check_size(wanted, offset, total)
            new = _Begun(url=wanted.url, validator=version, total=total)
            write_atomically(wanted.begun, json_text(new))
            with wanted.part.open("r+b" if offset else "wb", buffering=0) as file:
                file.seek(offset)
                file.truncate()
                received = _copy(wanted, response, file, display, offset, total)
            if total is None:
                write_atomically(wanted.begun, json_text({**new, "total": received}))
    except NoConnectionError as error:
        raise _CutError(f"{error}") from error


def _copy(
    wanted: Wanted,
    response: http.client.HTTPResponse,
    file: BinaryIO,
    display: Display,
    received: int,
    total: int | None,
) -> int:
    """Writes the body of a response to a file; returns the size of the file."""
    while True:
        display.show(received, total)
        try:
            chunk = response.read1(_CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            cause = first_line(error) or type(error).__name__
            raise _CutError(f"the connection broke after {received} bytes: {cause}") from error
        if not chunk:
            if total is not None and received < total:
                raise _CutError(f"the connection broke after {received} of {total} bytes")
            return received
        left = memoryview(chunk)
        while left:  # a disk that is nearly full takes a part
            left = left[file.write(left) :]
        received += len(chunk)
        _check_size(wanted, received, received)


def _check_size(wanted: Wanted, offset: int, total: int | None) -> None:
    """Refuses a file that is far larger than published, or has no room on the disk."""
    limit = min(wanted.size * _TOLERANCE, _LARGEST_BYTES)
    if total is not None and total > limit:
        wanted.discard()
        raise DataError(
            f"{wanted.url} sends more than {limit} bytes, where {wanted.size} are published: it is "
            f"not that file. Find out where it has moved, or {wanted.by_hand}."
        )
    if total is not None and total - offset > shutil.disk_usage(wanted.place.parent).free:
        raise too_full(wanted.part, _kept(wanted))


def _version(response: http.client.HTTPResponse) -> str | None:
    """Returns what tells this version of a file from others; None if nothing does."""
    tag = response.headers.get("ETag")
    # A weak tag may be that of another file with the same meaning.
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _total(response: http.client.HTTPResponse, offset: int) -> int:
    """Returns the complete size that a partial response states.

    Raises:
      RangeError: if it is not the part that was asked for.
    """
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != offset:
        raise RangeError("The server sends another part of the file than was asked for.")
    return int(found[2])


def _read_begun(wanted: Wanted) -> _Begun | None:
    """Returns what a received part belongs to; None if nothing usable is known."""
    try:
        begun = schema.read_json(wanted.begun, _BEGUN)
    except (ValueError, OSError):
        return None
    return begun if begun["url"] == wanted.url else None


def _is_whole(wanted: Wanted) -> bool:
    begun = _read_begun(wanted)
    return begun is not None and begun["total"] == _size(wanted) and wanted.part.exists()


def _size(wanted: Wanted) -> int:
    return wanted.part.stat().st_size if wanted.part.exists() else 0


def _kept(wanted: Wanted) -> str:
    """Says what the next download continues."""
    size = _size(wanted)
    return f" (it continues after {megabytes(size)})" if size else ""
