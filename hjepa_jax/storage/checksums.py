"""Checksums of the files of a checkpoint, and reading them with patience for failing devices."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import TypedDict, TypeVar

from hjepa_jax.storage import schema
from hjepa_jax.storage.files import UnfitFileError, check_regular, sha256, write_atomically
from hjepa_jax.storage.schema import Fields, Kind, Maybe, Number, Table, Text, Whole

_log = logging.getLogger(__name__)
_Read = TypeVar("_Read")

MANIFEST = "checksums.json"
_DIGEST = Text(most=64)
_MANIFEST_SCHEMA = Fields(
    {
        "format": Whole(1, 1),
        "sha256": _DIGEST,
        "checksums": Fields(
            {
                "files": Table(Fields({"bytes": Whole(0), "sha256": _DIGEST})),
                "metadata": Maybe(_DIGEST),
            }
        ),
    }
)
_METRICS = "metrics/"
_TIME = Maybe(Whole(0, 2**62))
_METADATA_SCHEMA = Fields(
    {},
    {
        "commit_timestamp_nsecs": _TIME,
        "init_timestamp_nsecs": _TIME,
        "performance_metrics": Maybe(Table(Number())),
    },
)
# Fields that orbax adds to the metadata when the arrays are written.
_WRITTEN_LAST = "item_handlers"
_METADATA_SECONDS, _POLL_SECONDS = 10.0, 0.005
_RETRY_SECONDS = (0.1, 0.5, 2.0)
METADATA = "_CHECKPOINT_METADATA"
# orbax touches these between the manifest and its atomic rename.
_WRITTEN_LATER = (MANIFEST, "commit_success.txt", METADATA)
# Fields of the step's metadata that orbax fills in at the rename.
_FILLED_LATER = ("commit_timestamp_nsecs", "performance_metrics")


class FileChecksum(TypedDict):
    """Size in bytes and SHA-256 of a file."""

    bytes: int
    sha256: str


class Checksums(TypedDict):
    """Checksums of files by name, and of the metadata; None if orbax never finished them."""

    files: dict[str, FileChecksum]
    metadata: str | None


class DamagedError(Exception):
    """A file of a checkpoint differs from what was written; the message names it."""


class UnreadableError(Exception):
    """A file is temporarily unreadable, whatever its content; the message names it."""


def read_patiently(
    path: pathlib.Path, read: Callable[[pathlib.Path], _Read], name: str | None = None
) -> _Read:
    """Returns `read(path)`, retrying a few times if a device or network may recover.

    Args:
      path: the file.
      read: the reader; raises OSError if the file cannot be read.
      name: the file's name in messages; None = its last path component.

    Returns:
      The result of `read`.

    Raises:
      DamagedError: if the file is missing or not a regular file.
      UnreadableError: if it is still unreadable after the last attempt.
    """
    for delay in (*_RETRY_SECONDS, None):
        try:
            return read(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DamagedError(f"{name or path.name} is missing") from error
        except UnfitFileError as error:
            raise DamagedError(str(error)) from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise DamagedError(f"{name or path.name} is a link to itself") from error
            if delay is None:
                reason = f"{path}: {error.strerror or error}"
                raise UnreadableError(reason) from error
            _log.warning("%s could not be read (%s): trying again", path, error)
            time.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


def _json(path: pathlib.Path, kind: Kind[_Read]) -> _Read:
    """Reads a JSON file, allowing Infinity and NaN, which orbax writes."""
    try:
        return read_patiently(path, lambda p: schema.read_json(p, kind, constants=True))
    except ValueError as error:
        raise DamagedError(str(error)) from error


def _json_digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _metadata_digest(folder: pathlib.Path) -> str:
    """Returns the digest of the step's metadata, excluding fields that orbax fills in later."""
    content = _json(folder / METADATA, _METADATA_SCHEMA)
    kept = {name: value for name, value in content.items() if name not in _FILLED_LATER}
    return _json_digest(kept)


def _metadata_when_written(folder: pathlib.Path) -> str | None:
    """Returns the digest of the metadata once orbax has finished it; None if it never does.

    Orbax writes it in a thread that nothing waits for before the rename: a digest taken too early
    would make a good checkpoint look damaged.
    """
    for _ in range(round(_METADATA_SECONDS / _POLL_SECONDS)):
        with contextlib.suppress(DamagedError):  # half written, or not there yet
            if _json(folder / METADATA, Fields()).get(_WRITTEN_LAST):
                return _metadata_digest(folder)
        time.sleep(_POLL_SECONDS)
    _log.warning("%s of %s was never finished: it is not checked later", METADATA, folder)
    return None


def _listed(folder: pathlib.Path) -> list[pathlib.Path]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in files if str(path.relative_to(folder)) not in _WRITTEN_LATER]


def write_manifest(folder: pathlib.Path) -> None:
    """Atomically writes size and SHA-256 of every file below `folder` to `checksums.json`."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in _listed(folder)
    }
    metadata = _metadata_when_written(folder)
    checksums = {"files": files, "metadata": metadata}
    content = {"format": 1, "checksums": checksums, "sha256": _json_digest(checksums)}
    write_atomically(folder / MANIFEST, json.dumps(content, indent=1))


def read_manifest(folder: pathlib.Path) -> Checksums:
    """Returns the checksums of a checkpoint.

    Raises:
      DamagedError: if `checksums.json` is missing, altered or malformed.
      UnreadableError: if it is temporarily unreadable.
    """
    content = _json(folder / MANIFEST, _MANIFEST_SCHEMA)
    if content["sha256"] != _json_digest(content["checksums"]):
        raise DamagedError(f"{MANIFEST} is altered: its own checksum differs")
    return content["checksums"]


def content_digest(folder: pathlib.Path) -> str:
    """Returns a digest of a checkpoint's content, as its checksums tell it.

    Raises:
      DamagedError: if they are missing, altered or malformed.
      UnreadableError: if they are temporarily unreadable.
    """
    return _json_digest(read_manifest(folder))


def _check_files(folder: pathlib.Path, files: Mapping[str, FileChecksum]) -> None:
    for name, expected in files.items():
        size, path = expected["bytes"], folder / name
        try:
            found = read_patiently(path, lambda p: check_regular(p, 2**63), name).st_size
            if found != size:
                raise DamagedError(f"{name} has {found} bytes instead of {size}")
            if read_patiently(path, sha256, name) != expected["sha256"]:
                raise DamagedError(f"{name} is altered: its checksum differs")
        except ValueError as error:  # a name that no file can have
            raise DamagedError(f"{MANIFEST} names {name!r:.80}: {error}") from error


def verify(folder: pathlib.Path) -> None:
    """Checks every file of a checkpoint, except those of `metrics`, against its manifest.

    A checkpoint without a manifest counts as damaged, since every version has written one.

    Raises:
      DamagedError: naming the first file that is missing, truncated or altered.
      UnreadableError: if a file is temporarily unreadable.
    """
    manifest = read_manifest(folder)
    state = {n: file for n, file in manifest["files"].items() if not n.startswith(_METRICS)}
    _check_files(folder, state)
    check_metadata(folder, manifest)


def check_metadata(folder: pathlib.Path, manifest: Checksums) -> None:
    """Checks orbax's metadata of a checkpoint against its manifest.

    Raises:
      DamagedError: if they are missing, altered or malformed.
      UnreadableError: if they are temporarily unreadable.
    """
    if manifest["metadata"] not in (None, _metadata_digest(folder)):
        raise DamagedError(f"{METADATA} is altered: its checksum differs")


def read_meta(folder: pathlib.Path, kind: Kind[_Read]) -> _Read:
    """Returns the JSON saved beside the arrays, checked to have the structure `kind`.

    Raises:
      DamagedError: if it is missing or has another structure.
      UnreadableError: if it is temporarily unreadable.
    """
    return _json(folder / "meta" / "metadata", kind)


def read_metrics(folder: pathlib.Path) -> dict[str, float] | None:
    """Returns the metrics a checkpoint is ranked by; None if it was saved without metrics.

    Raises:
      DamagedError: if they are missing, altered or not numbers.
      UnreadableError: if they are temporarily unreadable.
    """
    files = read_manifest(folder)["files"]
    ours = {name: file for name, file in files.items() if name.startswith(_METRICS)}
    if not ours:
        return None
    _check_files(folder, ours)
    return _json(folder / "metrics" / "metrics", Table(Number()))
